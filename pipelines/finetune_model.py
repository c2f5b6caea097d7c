"""The pretrained model that a task's data ask for: the checkpoint's backbone and embedding, and a head that fits the labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf, open_dict

from longseq.backbone import Backbone
from longseq.domains.base import DomainData
from longseq.domains.tasks import Task
from longseq.errors import ConfigError
from longseq.model import SequenceModel
from longseq.pipelines.finetune_modes import layer_names
from longseq.pipelines.fit import check_causality
from longseq.pretrained import KeyReport, Opened, build_opened, open_pretrained

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Options of a backbone that change how it is trained or computed, not what its weights mean.
FREE_OPTIONS = ("dropout", "drop_path", "gradient_checkpointing", "implementation")
# Options of an embedding where the checkpoint's own value is right for its weights, whatever the data say.
KEPT = ("dropout", "init_std", "size", "frames", "mean", "std", "positions", "class_token", "permutation_seed")
# Options that only pretraining needs, with the parameters they make.
PRETRAINING = {"mask_token": "embedding.mask_vector"}
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
    return opened


def check_named(cfg: "DictConfig") -> None:
    """Raises ConfigError if the command names no checkpoint."""
    if OmegaConf.is_missing(cfg, "pretrained") or cfg.pretrained is None:
        raise ConfigError(
            "pretrained= must name what to start from: a run folder, a model folder, a file of weights, or a hub id "
            "(longseq list pretrained)"
        )


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
        check_causality(task.name, backbone.causal, name)
        check_length(data, backbone, name)
        wanted = data.model_options(backbone)
        check_tokenizer(config.get("tokenizer"), wanted.get("tokenizer"), str(cfg.pretrained))
        fresh = [str(pattern) for pattern in cfg.allow_missing if str(pattern).startswith("embedding")]
        embedding = fit_embedding(config["embedding"], wanted["embedding"], cfg.domain, replace=bool(fresh))
        head = data.head_options(backbone, task.head())
        if same_head(config, head, task):
            head = config["head"]
        else:
            fresh.append("head.*")
        fresh += [made for option, made in PRETRAINING.items() if option in config["embedding"] and option not in embedding]
        fresh += reinitialized(cfg.finetune.reinit_layers, backbone)
        parts = {"embedding": embedding, "backbone": config["backbone"], "head": head}
        described = {"domain": cfg.domain, **task.config(), **wanted, **parts, "pretrained": config["pretrained"]}
        return described, fresh

    try:
        return build_opened(opened, adapt, allow_missing=list(cfg.allow_missing), options=backbone_options(cfg))
    except TypeError as error:
        raise ConfigError(f"backbone: {error}") from error


def check_length(data: DomainData, backbone: Backbone, name: str) -> None:
    """Raises ConfigError if the data's sequences are longer than the checkpoint can take."""
    if backbone.max_length is None or data.max_length <= backbone.max_length:
        return
    raise ConfigError(
        f"the longest sequence has {data.max_length} positions, the checkpoint's {name} takes {backbone.max_length}: its "
        "weights are other filters at another length, so it cannot be stretched. Set data.max_length="
        f"{backbone.max_length} to crop longer sequences, or take a checkpoint of a longer length"
    )


def fit_embedding(found: dict[str, Any], wanted: dict[str, Any], domain: str, *, replace: bool) -> dict[str, Any]:
    """The checkpoint's embedding, if the data's input means to it what it meant in pretraining.

    Args:
        found: the checkpoint's.
        wanted: the data's.
        domain: named in the error.
        replace: take the data's, untrained.

    Raises:
        ConfigError: naming the first option that differs.
    """
    if replace:
        return wanted
    found = {key: value for key, value in found.items() if key not in PRETRAINING or key in wanted}
    differing = [
        key for key in sorted({*found, *wanted}) if key not in KEPT and found.get(key) != wanted.get(key) and key in wanted
    ]
    if found["name"] == wanted["name"] and not differing:
        # The statistics of series are those of the data at hand; those of sounds and images belong to the weights.
        statistics = ("mean", "std", "covariate_mean", "covariate_std") if domain == "timeseries" else ()
        return {**found, **{key: wanted[key] for key in statistics if key in wanted}}
    key = "name" if found["name"] != wanted["name"] else differing[0]
    raise ConfigError(
        f"the checkpoint's embedding has {key}={found.get(key)!r}, domain={domain} with these data gives "
        f"{key}={wanted.get(key)!r}: choose the data options it was trained with, or start with a new embedding: "
        "allow_missing=[embedding.*]"
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


def same_head(config: dict[str, Any], head: dict[str, Any], task: Task) -> bool:
    """Whether the checkpoint's head answers this very question: the same task, labels and outputs."""
    mine = task.config()
    same = all(config.get(key) == mine.get(key) for key in ("task", "labels"))
    # A published language model's head fits any language model over its vocabulary.
    published = "task" not in config and task.name in ("lm", "mlm")
    sizes = all(config["head"].get(key) == head.get(key) for key in ("name", "n_outputs"))
    return (same or published) and sizes


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
