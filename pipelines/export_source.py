"""What is exported: a run's model with what its config and metrics say, or a model folder by itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from omegaconf import OmegaConf

from longseq.checkpoint import load_model
from longseq.errors import ConfigError
from longseq.inference import POOLED, Inference
from longseq.model import SequenceModel
from longseq.pipelines.run_folder import LAST_STEP, MODEL, PREDICTIONS, read_config, read_metrics, resume_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Options of the data that decide what files mean.
READING = (
    "sequence_column",
    "id_column",
    "header",
    "invalid",
    "time_column",
    "frequency",
    "decimal",
    "day_first",
    "gaps",
    "missing",
    "min_lookback",
    "known_covariates",
    "image_key",
    "window",
    "stride",
    "on_long",
    "clip_s",
    "hop_s",
    "window_stride",
)


@dataclass
class ExportSource:
    """A model and what is known of its training.

    Attributes:
        name: run or model folder, as it was given.
        model: the network, with the weights that were tested.
        inference: the same with its task's answer behind it.
        run: the run's folder; None for a model folder.
        run_config: the config that it was trained with.
        metrics: its metrics.json.
    """

    name: str
    model: SequenceModel
    inference: Inference
    run: Path | None = None
    run_config: "DictConfig | None" = None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def data_length(self) -> int | None:
        """The longest input that the data's options allow, in tokens or samples; None if they set no limit."""
        if self.run_config is None or not self.inference.takes_mask or self.carries:
            return None
        data = self.run_config.data
        rate = self.sample_rate_hz
        if rate is not None and data.get("clip_s") is not None:
            return max(1, round(float(data.clip_s) * int(rate)))
        # Of records that are read in windows, the model has only seen windows.
        window = data.get("window") if self.inference.task in POOLED else None
        limits = [int(limit) for limit in (data.get("max_length"), window) if limit is not None]
        return min(limits) if limits else None

    @property
    def sample_rate_hz(self) -> int | None:
        """Of what the model hears."""
        rate = self.model.config.get("tokenizer", {}).get("sample_rate_hz")
        return None if rate is None else int(rate)

    @property
    def carries(self) -> bool:
        """Whether inputs of any length are read in one pass, as `longseq predict` does by a carried state."""
        backbone = self.model.backbone
        fixed = backbone.can_step and not backbone.state_grows and backbone.max_length is None
        return fixed and self.inference.task in ("lm", "ctc", "frames")

    @property
    def reading(self) -> dict[str, Any]:
        """How the run's data were read, as far as predict.py has to know: columns, what is missing, windows of long inputs."""
        if self.run_config is None:
            return {}
        data: Any = OmegaConf.to_container(self.run_config.data, resolve=True)
        found = {name: data[name] for name in READING if data.get(name) is not None}
        if not self.carries:
            window = get_class(data["_target_"]).long_window(self.inference.task, data, self.sample_rate_hz)
            found |= {} if window is None else {"long_window": window}
        return found

    @property
    def data_files(self) -> list[str]:
        """Where the training data came from, as the run's config has them."""
        if self.run_config is None:
            return []
        found = ((name, self.run_config.data.get(name)) for name in ("train", "val", "test"))
        return [f"{name}: {value}" for name, value in found if value is not None]

    @property
    def averaged(self) -> float | None:
        """Decay of the moving average that the weights are; None if they are those of the last step."""
        if self.metrics.get("weights") == LAST_STEP:
            return None
        callbacks = None if self.run_config is None else self.run_config.get("callbacks")
        ema = None if callbacks is None else callbacks.get("ema")
        return None if ema is None else float(ema.get("decay", 0.999))

    @property
    def predictions(self) -> Path | None:
        """The run's predictions.csv, if there is one."""
        path = None if self.run is None else self.run / PREDICTIONS
        return path if path is not None and path.is_file() else None


def open_source(run: str | None, model: str | None) -> ExportSource:
    """Opens what the command names.

    Raises:
        ConfigError: unless it names exactly one, or if the run has no model yet.
        CheckpointError: if the folder is not a model's.
    """
    if (run is None) == (model is None):
        raise ConfigError("give either run= a run folder or model= a model folder" + ("" if run is None else ", not both"))
    if model is not None:
        network = load_model(model)
        return ExportSource(str(model), network, _inference(network))
    folder = Path(str(run))
    saved = read_config(folder)
    if not (folder / MODEL).is_dir():
        raise ConfigError(f"{folder} has no {MODEL}/ yet: the run has not finished ({resume_command(folder)})")
    network = load_model(folder / MODEL)
    options = inference_options(saved)
    if options:
        network.config["inference"] = {**options, **network.config.get("inference", {})}
    return ExportSource(str(folder), network, _inference(network), folder, saved, read_metrics(folder))


def inference_options(saved: "DictConfig") -> dict[str, Any]:
    """What a run's module does beyond its model in evaluation, as options of `Inference`."""
    module = saved.get("module") or {}
    found: dict[str, Any] = {}
    if module.get("rc_average"):
        found["rc_average"] = True
    if module.get("span") is not None and saved.task.name == "anomaly":
        found["span"] = int(module["span"])
    return found


def _inference(model: SequenceModel) -> Inference:
    return Inference(model).eval().requires_grad_(False)
