"""How a checkpoint's embedding and head meet the data at hand: which of their options hold, and what starts anew."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from omegaconf import OmegaConf, open_dict

from longseq.domains.tasks import Task
from longseq.errors import ConfigError
from longseq.pipelines.cli import CONFIGS

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Options of an embedding where the checkpoint's own value is right for its weights, whatever the data say.
KEPT = ("dropout", "init_std", "size", "frames", "mean", "std", "positions", "permutation_seed")
# Options that only pretraining needs, with the parameters they make.
PRETRAINING = {"mask_token": "embedding.mask_vector"}
CLASS_VECTOR = "embedding.class_vector"
# Statistics of series are those of the data at hand; those of sounds and images belong to the weights.
STATISTICS = ("mean", "std", "floor", "covariate_mean", "covariate_std")
SERIES_BUFFERS = (*(f"embedding.normalizer.{name}_C" for name in ("mean", "std", "floor")), "embedding.covariate_*_K")
# Layouts that send each channel through the network by itself, so that their number may change.
ONE_BY_ONE = ("series_patch", "series_variate")
# Options of the data that are the task's, not the embedding's; the class token is looked at by itself.
OF_THE_TASK = ("horizon", "targets", "past_covariates", "season", "levels", "mean", "std", "class_token")
# Options of a head that may differ while its weights keep their meaning.
HEAD_FREE = ("dropout", "tie", "bias")
HEAD_CHANNELS = ("n_channels", "calibrated_channels")
# Where an embedding's option is called otherwise among those of the data.
DATA_NAMES = {
    "stride": "patch_stride",
    "strides": "stem_strides",
    "window_s": "frame_s",
    "hop_s": "frame_hop_s",
    "name": "tokenizer",
    "n_channels": "channels",
}


def adopt_data_options(cfg: "DictConfig", config: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the data options that the checkpoint decides, such as its tokenizer, where the command leaves the defaults.

    Args:
        cfg: of the verb finetune; changed.
        config: that the checkpoint describes.

    Returns:
        What was changed, by name.
    """
    own: Any = get_class(cfg.data._target_)
    typed = {str(o).split("=")[0].lstrip("+") for o in cfg.overrides}
    defaults = data_defaults(str(cfg.domain))
    wanted = own.options_of(config) if config.get("domain", cfg.domain) == cfg.domain else {}
    changed = {}
    for name, value in wanted.items():
        if name in OF_THE_TASK or name not in defaults or f"data.{name}" in typed or value == defaults[name]:
            continue
        current: Any = OmegaConf.to_container(cfg.data)[name]  # type: ignore[index, call-overload]
        if current == defaults[name]:
            changed[name] = value
    with open_dict(cfg):
        for name, value in changed.items():
            cfg.data[name] = value
    return changed


def fit_embedding(
    found: dict[str, Any], wanted: dict[str, Any], domain: str, *, replace: bool
) -> tuple[dict[str, Any], list[str]]:
    """The checkpoint's embedding, if the data's input means to it what it meant in pretraining.

    Args:
        found: the checkpoint's.
        wanted: the data's.
        domain: named in the error.
        replace: take the data's, untrained.

    Returns:
        The embedding's config, and patterns of what in it starts anew.

    Raises:
        ConfigError: naming the first option that differs.
    """
    if replace:
        return wanted, []
    fresh = [made for option, made in PRETRAINING.items() if (option in found) != (option in wanted)]
    found = {key: value for key, value in found.items() if key not in PRETRAINING}
    found |= {key: wanted[key] for key in PRETRAINING if key in wanted}
    if domain == "timeseries" and found["name"] == wanted["name"]:
        found, of_series = series_options(found, wanted)
        fresh += of_series
    ignored = (*KEPT, "class_token")
    differing = [
        key for key in sorted({*found, *wanted}) if key not in ignored and found.get(key) != wanted.get(key) and key in wanted
    ]
    if found["name"] == wanted["name"] and not differing:
        return found, fresh
    key = "name" if found["name"] != wanted["name"] else differing[0]
    option = DATA_NAMES.get(key, key)
    choose = f"choose the data options it was trained with (data.{option}), or " if option in data_defaults(domain) else ""
    raise ConfigError(
        f"the checkpoint's embedding has {key}={found.get(key)!r}, domain={domain} with these data gives "
        f"{key}={wanted.get(key)!r}: {choose}start with a new embedding, which is trained: allow_missing=[embedding.*]"
    )


def data_defaults(domain: str) -> dict[str, Any]:
    """The data options of a domain, with their defaults."""
    found: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "domain" / f"{domain}.yaml").data)
    return found


def series_options(found: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A series' embedding with the statistics of the data at hand, and with their channels where each goes by itself."""
    own = (*STATISTICS, "n_channels") if found["name"] in ONE_BY_ONE else STATISTICS
    fresh = list(SERIES_BUFFERS)
    if found.get("n_channels") != wanted.get("n_channels"):
        fresh.append("embedding.normalizer.*_C")
    kept = {key: value for key, value in found.items() if key not in own}
    return {**kept, **{key: wanted[key] for key in own if key in wanted}}, fresh


def fit_class_token(
    embedding: dict[str, Any], asked: str | None, head: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Embedding and head that agree on the class token.

    Args:
        embedding: the checkpoint's.
        asked: where the data options want the token; None for nowhere.
        head: that the task wants.

    Returns:
        Both, and patterns of what starts anew.

    Raises:
        ConfigError: if the checkpoint's token stands elsewhere.
    """
    own = embedding.get("class_token")
    if head["name"] not in ("pool", "class_token"):
        # Answers at every position have no place for it.
        return {key: value for key, value in embedding.items() if key != "class_token"}, head, [CLASS_VECTOR] if own else []
    if own is None:
        return (embedding if asked is None else {**embedding, "class_token": asked}), head, [CLASS_VECTOR] if asked else []
    if asked not in (None, own):
        raise ConfigError(
            f"data.class_token={asked}, but the checkpoint's class token stands at {own}, where it was trained: leave "
            "data.class_token out"
        )
    options = {key: head[key] for key in ("n_outputs", "dropout") if key in head}
    return embedding, {"name": "class_token", "place": own, **options}, []


def fit_head(config: dict[str, Any], head: dict[str, Any], task: Task) -> tuple[dict[str, Any], list[str]]:
    """The checkpoint's head if it answers this very question, else a new one; and patterns of what starts anew.

    Args:
        config: of the checkpoint.
        head: that the task and the data want.
        task: told by the data what its labels are.
    """
    theirs = config["head"]
    free = HEAD_FREE
    if theirs.get("layout") in ("channels", "variate"):
        # The same weights answer for every channel.
        free = (*free, *HEAD_CHANNELS)
    # A published head may say less of itself than ours does.
    differing = [key for key in head if key not in free and key in theirs and theirs[key] != head[key]]
    differing += [key for key in theirs if key not in free and key not in head and key != "norm_eps"]
    mine = task.config()
    same = all(config.get(key) == mine.get(key) for key in ("task", "labels"))
    if theirs.get("layout") not in (None, "channels", "variate"):
        same = same and config.get("channels") == mine.get("channels")
    # A published language model's head fits any language model over its vocabulary.
    published = "task" not in config and task.name in ("lm", "mlm")
    if differing or not (same or published):
        return head, ["head.*"]
    changed = [key for key in HEAD_CHANNELS if theirs.get(key) != head.get(key)]
    adapted = {key: head[key] for key in ("dropout", *changed) if key in head and key in theirs}
    return {**theirs, **adapted}, ["head.offset_FCQ"] if changed else []
