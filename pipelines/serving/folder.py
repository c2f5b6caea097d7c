"""What a folder must hold to be served, and whether its model can answer while its input arrives."""

from pathlib import Path

from longseq.checkpoint import read_config
from longseq.errors import CheckpointError, ConfigError
from longseq.inference import OUTPUTS, Inference
from longseq.streaming import Stream

# Tasks whose pooled answer, and those whose answers per position, a stream can give.
STREAMED = ("classification", "multilabel", "regression", "frames", "base_labels", "ctc", "lm")
# Tasks that nobody asks a server for, with the reason.
NOT_SERVED = {
    "masked_patch": "its model tells hidden cells of images, which is pre-training and answers nobody's question: fine-tune it "
    "(longseq finetune pretrained=...) and serve that, or measure it with longseq predict",
}


def check_folder(folder: Path) -> None:
    """Raises CheckpointError for folders of exported graphs alone, and for tasks that this version does not know."""
    if not (folder / "model.safetensors").is_file() and any(folder.glob("model.*")):
        found = ", ".join(sorted(path.name for path in folder.glob("model.*")))
        raise CheckpointError(
            f"{folder} holds {found}, longseq serve needs config.json and model.safetensors: export with format=safetensors, "
            "or name the run folder"
        )
    config = read_config(folder)
    task = config.get("task")
    if task is not None and task not in OUTPUTS:
        raise CheckpointError(f"{folder}/config.json has task={task!r}; this version answers for {', '.join(OUTPUTS)}")
    if task in NOT_SERVED:
        raise ConfigError(f"{folder} was trained for task={task}, which is not served: {NOT_SERVED[task]}")
    domain = config.get("domain")
    if not isinstance(domain, str) or not domain.isidentifier():
        raise CheckpointError(f"{folder}/config.json has domain={domain!r}, which is no domain's name")


def cannot_stream(inference: Inference) -> str | None:
    """Why a model has no `/stream`; None if it has one."""
    if inference.task not in STREAMED:
        return f"task={inference.task} answers whole inputs"
    if inference.rc_average:
        return "the model averages both strands, which needs the whole sequence (rc_average=false serves one)"
    try:
        Stream(inference.model)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None
