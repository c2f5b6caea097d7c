"""The pretrained model that a task's data ask for: the checkpoint's backbone and embedding, and a head that fits the labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf, open_dict
from rich.console import Console
from rich.text import Text

from longseq.backbone import Backbone
from longseq.domains.base import DomainData
from longseq.domains.tasks import Task
from longseq.errors import ConfigError
from longseq.model import SequenceModel
from longseq.pipelines.finetune_embedding import adopt_data_options, fit_class_token, fit_embedding, fit_head
from longseq.pipelines.finetune_modes import layer_names
from longseq.pipelines.finetune_options import patterns
from longseq.pipelines.fit import grid_options
from longseq.pretrained import KeyReport, Opened, build_opened, open_pretrained

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Options of a backbone that change how it is trained or computed, not what its weights mean.
FREE_OPTIONS = ("dropout", "drop_path", "gradient_checkpointing", "implementation")
# What must be equal for the same input to mean the same.
TOKENIZER_KEYS = ("type", "name", "vocab", "k")


def open_for_task(cfg: "DictConfig") -> Opened:
    """Reads the checkpoint, and puts its backbone into the config with the command's options on top.

    Raises:
        CheckpointError: if it cannot be read.
        ConfigError: if the command's backbone contradicts it.
    """
    check_named(cfg)
    options: Any = OmegaConf.to_container(cfg.format_options, resolve=True)
    opened = open_pretrained(cfg.pretrained, revision=cfg.revision, format=cfg.format, options=options)
    if unknown := sorted(set(options) - set(opened.options)):
        known = ", ".join(opened.options) or "none"
        raise ConfigError(f"the format {opened.format} has no option {unknown[0]!r}; its options: {known}")
    described = opened.config["backbone"]
    check_backbone(cfg, described)
    with open_dict(cfg):
        cfg.backbone = {**described, **backbone_options(cfg)}
    adopted = adopt_data_options(cfg, opened.config)
    if adopted:
        shown = ", ".join(f"data.{name}={short(value)}" for name, value in adopted.items())
        Console().print(Text(f"as the checkpoint was trained: {shown}"))
    return opened


def check_named(cfg: "DictConfig") -> None:
    """Raises ConfigError if the command names no checkpoint, or what goes with it is no mapping."""
    if OmegaConf.is_missing(cfg, "pretrained") or not cfg.pretrained:
        raise ConfigError(
            "pretrained= must name what to start from: a run folder, a model folder, a file of weights, or a hub id "
            "(longseq list pretrained)"
        )
    if not OmegaConf.is_dict(cfg.format_options):
        raise ConfigError(f"format_options holds the format's own options by name, found {cfg.format_options!r}")


def check_backbone(cfg: "DictConfig", described: dict[str, Any]) -> None:
    """Raises ConfigError if the command says another backbone than the checkpoint."""
    named = [str(o).partition("=")[2] for o in cfg.overrides if str(o).split("=")[0] == "backbone"]
    if named and named[-1] not in ("null", described["name"]):
        raise ConfigError(
            f"backbone={named[-1]} contradicts the checkpoint {cfg.pretrained}, whose backbone is {described['name']}: "
            "leave backbone= out, the checkpoint says what it is"
        )
    for key, value in backbone_options(cfg).items():
        if key not in FREE_OPTIONS and key in described and described[key] != value:
            why = ": its filters are measured against the length they were trained for" if key == "max_length" else ""
            raise ConfigError(
                f"backbone.{key}={value} contradicts the checkpoint {cfg.pretrained}, which has {key}={described[key]}{why}; "
                f"leave it out. What may differ: {', '.join(FREE_OPTIONS)}"
            )


def backbone_options(cfg: "DictConfig") -> dict[str, Any]:
    """The backbone's options that hold beside the checkpoint's: all that were typed, and an experiment's free ones."""
    typed = {str(o).split("=")[0].lstrip("+").removeprefix("backbone.") for o in cfg.overrides if "backbone." in str(o)}
    given: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    # With a name it is a whole group, whose other values are defaults that nobody chose.
    return {key: value for key, value in given.items() if key in typed or (key in FREE_OPTIONS and "name" not in given)}


def build_for_task(cfg: "DictConfig", opened: Opened, data: DomainData, task: Task) -> tuple[SequenceModel, KeyReport]:
    """The model to fine-tune, and what became of each key of the checkpoint.

    Args:
        cfg: of the verb finetune.
        opened: from `open_for_task`.
        data: read.
        task: told by the data what its labels are.

    Raises:
        CheckpointError: if the weights do not fit their own config.
        ConfigError: if the model does not go with the data or the task.
    """

    def adapt(config: dict[str, Any], backbone: Backbone) -> tuple[dict[str, Any], Sequence[str]]:
        name = str(config["backbone"]["name"])
        check_direction(task.name, backbone.causal, str(cfg.pretrained))
        check_length(data, backbone, name)
        wanted = data.model_options(backbone)
        check_tokenizer(config.get("tokenizer"), wanted.get("tokenizer"), str(cfg.pretrained))
        fresh = [pattern for pattern in patterns(cfg.allow_missing) if pattern.startswith("embedding")]
        embedding, starts = fit_embedding(config["embedding"], wanted["embedding"], str(cfg.domain), replace=bool(fresh))
        head = data.head_options(backbone, task.head())
        if cfg.domain == "vision":
            embedding, head, more = fit_class_token(embedding, wanted["embedding"].get("class_token"), head)
            starts += more
        head, of_head = fit_head(config, head, task)
        fresh += starts + of_head
        fresh += reinitialized(cfg.finetune.reinit_layers, backbone)
        parts = {"embedding": embedding, "backbone": config["backbone"], "head": head}
        described = {"domain": cfg.domain, **task.config(), **wanted, **parts, "pretrained": config["pretrained"]}
        return described, fresh

    try:
        # Orders are no weights: those of another size, or around a class token, are made anew.
        grid = grid_options({**opened.config["backbone"], "grid": None}, data)
        options = {**grid, **backbone_options(cfg)}
        return build_opened(opened, adapt, allow_missing=patterns(cfg.allow_missing), options=options)
    except TypeError as error:
        raise ConfigError(f"backbone: {error}") from error


def check_direction(task: str, causal: bool, source: str) -> None:
    """Raises ConfigError for a language model of the other direction than the checkpoint's backbone."""
    if task in ("lm", "mlm") and causal != (task == "lm"):
        here, other = ("only the past", "lm") if causal else ("both sides", "mlm")
        wanted = "from both sides" if task == "mlm" else "from the past alone"
        raise ConfigError(
            f"task={task} predicts tokens {wanted}, but the backbone of {source} sees {here}: go on with task={other}, or take "
            "a checkpoint of the other kind"
        )


def check_length(data: DomainData, backbone: Backbone, name: str) -> None:
    """Raises ConfigError if the data's sequences are longer than the checkpoint can take."""
    if backbone.max_length is None or data.max_length <= backbone.max_length:
        return
    raise ConfigError(
        f"the longest sequence has {data.max_length} positions, the checkpoint's {name} takes {backbone.max_length}: its "
        "weights are other filters at another length, so it cannot be stretched. Set data.max_length="
        f"{backbone.max_length} to crop longer sequences, or take a checkpoint of a longer length"
    )


def check_tokenizer(found: Any, wanted: Any, source: str) -> None:
    """Raises ConfigError if the checkpoint's tokenizer would give the same input other ids."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return
    for key in TOKENIZER_KEYS:
        if key in found and key in wanted and found[key] != wanted[key]:
            raise ConfigError(
                f"the tokenizer of {source} differs from the data's in {key}: {short(found[key])} there, {short(wanted[key])} "
                "here. Its weights would see other tokens than they were trained on"
            )


def short(value: Any) -> str:
    """A value in at most a line's third."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def reinitialized(layers: int | str, backbone: Backbone) -> list[str]:
    """Patterns of the parameters that start anew.

    Raises:
        ConfigError: if there are fewer layers.
    """
    if layers == "all":
        return ["*"]
    names = layer_names(backbone)
    if not isinstance(layers, int) or not 0 <= layers <= len(names):
        raise ConfigError(f"finetune.reinit_layers must be 0 to {len(names)}, the number of layers, or all; found {layers!r}")
    return [f"backbone.{name}.*" for name in names[len(names) - layers :]]
