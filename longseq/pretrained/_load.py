"""Loading a published checkpoint into a model: everything is checked before the first weight is copied."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longseq.backbone import Backbone
from longseq.errors import CheckpointError
from longseq.model import SequenceModel, build_model
from longseq.pretrained._formats import Format, choose_format, get_format
from longseq.pretrained._modules import register_modules
from longseq.pretrained._renames import Renaming
from longseq.pretrained._report import KeyReport
from longseq.pretrained._sources import Checkpoint, find_checkpoint
from longseq.pretrained._weights import read_weights
from longseq.registry import create_backbone

# From the checkpoint's config and its backbone: the config of the model to build, and shell patterns of its parameters that
# start anew whatever the file holds.
Adapt = Callable[[dict[str, Any], Backbone], tuple[dict[str, Any], Sequence[str]]]


def load_pretrained(
    source: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    revision: str | None = None,
    format: str | None = None,
    **options: Any,
) -> tuple[SequenceModel, KeyReport]:
    """A model with published weights, in evaluation mode, and what became of each key.

    Args:
        source: a hub id such as `LongSafari/hyenadna-small-32k-seqlen-hf`, a folder, a file, or the folder of a model or run
            of ours.
        allow_missing: shell patterns of parameters that may keep their initial values, such as `backbone.blocks.7.*`.
        revision: of the hub: a branch, a tag or a commit.
        format: skips the detection; see `list_formats`.
        **options: `head` puts another head in the place of the published one, as in `head={"name": "pool", "n_outputs": 2}`;
            some formats have their own (their files say which); the rest are options of the backbone.

    Returns:
        The model, and the report; `str(report)` is for people, `report.to_dict()` for JSON.

    Raises:
        CheckpointError: if anything but the head is missing or does not fit, or the file cannot be trusted or read.
        TypeError: for an option that the backbone does not have, or a head that is no mapping.

    Cost: the file's size in memory, beside the model's.
    """
    head = options.pop("head", None)
    if head is not None and not isinstance(head, Mapping):
        raise TypeError(f"head must be a mapping such as {{'name': 'pool', 'n_outputs': 2}}, found {head!r}")
    opened = open_pretrained(source, revision=revision, format=format, options=options)

    def adapt(config: dict[str, Any], backbone: Backbone) -> tuple[dict[str, Any], Sequence[str]]:
        del backbone
        return (config if head is None else {**config, "head": dict(head)}), ()

    # One pattern alone is no list of letters.
    allow_missing = [allow_missing] if isinstance(allow_missing, str) else allow_missing
    left = {key: value for key, value in options.items() if key not in opened.options}
    return build_opened(opened, adapt, allow_missing=allow_missing, keep_head=head is None, options=left)


@dataclass(frozen=True)
class Opened:
    """A checkpoint that was read and described, and not yet built.

    Attributes:
        checkpoint: where it stands.
        weights: its tensors, by their published names.
        format: the format's name.
        options: the format's own, defaults included.
        config: of the model that it describes: `embedding`, `backbone`, `head`, and what a model of ours says of its task.
        notes: what the user should know of the file.
    """

    checkpoint: Checkpoint
    weights: dict[str, Tensor]
    format: str
    options: dict[str, Any]
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def open_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Opened:
    """Reads a checkpoint and says what network it describes; nothing is built yet.

    Args:
        source: see `load_pretrained`.
        revision: of the hub.
        format: skips the detection.
        options: of the format; others are left alone.

    Raises:
        CheckpointError: if there is none, it cannot be read or trusted, or its tokenizer is not that of its format.
    """
    register_modules()
    checkpoint = find_checkpoint(source, revision)
    notes: list[str] = []
    weights = read_weights(checkpoint.files, notes)
    name = format or choose_format(checkpoint.name, checkpoint.config, weights)
    chosen = get_format(name)
    _check_vocabulary(checkpoint, chosen, name)
    own = {key: (options or {}).get(key, default) for key, default in chosen.OPTIONS.items()}
    with _strangers_file(checkpoint):
        config = chosen.model_config(checkpoint.config, weights, own)
    pinned = checkpoint.commit or revision
    config["pretrained"] = {"source": checkpoint.name, "format": name, **({"revision": pinned} if pinned else {})}
    return Opened(checkpoint, weights, name, own, config, tuple(notes))


def build_opened(
    opened: Opened,
    adapt: Adapt,
    *,
    allow_missing: Sequence[str] = (),
    keep_head: bool = True,
    options: Mapping[str, Any] | None = None,
) -> tuple[SequenceModel, KeyReport]:
    """The model of an opened checkpoint, which may differ from the published one outside its backbone.

    Args:
        opened: may be built several times.
        adapt: gets the config and the backbone built from it; returns the config of the model to build around that
            backbone, and shell patterns of parameters that keep their fresh values.
        allow_missing: see `load_pretrained`.
        keep_head: False takes the file's head only if all of its tensors fit the model's.
        options: of the backbone, over those of the config.

    Returns:
        The model, in evaluation mode, and the report.

    Raises:
        CheckpointError: see `load_pretrained`; what `adapt` raises goes through.
        TypeError: for an option that the backbone does not have.
    """
    checkpoint, chosen = opened.checkpoint, get_format(opened.format)
    config = {**opened.config, "backbone": {**opened.config["backbone"], **(options or {})}}
    try:
        backbone = create_backbone(**config["backbone"])
    except (ValueError, TypeError) as error:
        if isinstance(error, TypeError) and options:
            raise
        raise _cannot_be_built(checkpoint, error) from error
    config, fresh = adapt(config, backbone)
    try:
        model = build_model(config, backbone)
    except (ValueError, TypeError) as error:
        raise _cannot_be_built(checkpoint, error) from error
    with _strangers_file(checkpoint):
        renaming = chosen.rename(opened.weights, checkpoint.config, opened.options)
    notes = [*opened.notes, *renaming.notes]
    report = KeyReport(checkpoint.name, opened.format, dropped=renaming.dropped, notes=notes, revision=checkpoint.commit)
    _drop_fresh(model, renaming, fresh)
    if not keep_head:
        _drop_other_head(model, renaming)
    tensors = _fit(model, renaming, report, allow_missing, fresh)
    model.load_state_dict(tensors, strict=False)
    return model.eval(), report


def _cannot_be_built(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    return CheckpointError(f"{checkpoint.name}: no network can be built from its config and the options: {error}")


@contextmanager
def _strangers_file(checkpoint: Checkpoint) -> Iterator[None]:
    """Any value of a config, and any tensor's shape, may be of another kind than a format expects."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.name}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{checkpoint.name}: its config.json or tensors are not those of this format ({found})"
        ) from error


def _fit(
    model: SequenceModel, renaming: Renaming, report: KeyReport, allow_missing: Sequence[str], fresh: Sequence[str] = ()
) -> dict[str, Tensor]:
    """What to copy; fills the report, or raises before anything is copied."""
    own = model.state_dict()
    tensors = dict(renaming.tensors)
    surplus = [name for name in tensors if name not in own]
    # What a rule renamed, and anything in a file of ours, must have its place; other names are reported.
    displaced = [name for name in surplus if name != renaming.sources[name] or report.format == "longseq"]
    other = [
        f"{renaming.sources[name]} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in tensors
        if name in own and tensors[name].shape != own[name].shape
    ]
    # Integers are weights of a quantised network, without what they are to be multiplied with.
    quantised = [
        f"{renaming.sources[name]} ({str(tensors[name].dtype).removeprefix('torch.')})"
        for name in tensors
        if name in own and own[name].is_floating_point() and not tensors[name].is_floating_point()
    ]
    for name in surplus:
        report.unexpected[renaming.sources[name]] = tuple(tensors.pop(name).shape)
    _merge_tied(own, tensors, renaming, report)
    for name, tensor in tensors.items():
        report.shapes[name] = tuple(tensor.shape)
        if renaming.sources[name] == name:
            report.matched.append(name)
        else:
            report.renamed[name] = renaming.sources[name]
    buffers = {name for name, _ in model.named_buffers()}
    absent = _place_absent(own, tensors, renaming, report, allow_missing, fresh, buffers)
    problems = (
        ("missing", absent),
        ("of another shape", other),
        ("of whole numbers, as quantised networks have", quantised),
        ("without a place in the network that config.json describes", [renaming.sources[name] for name in displaced]),
    )
    found = "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in problems if names)
    if found:
        raise CheckpointError(
            f"{report.source} does not fit the {report.format} network of its config: {found}. The weights and the config "
            "belong to different networks, or the file is incomplete (allow_missing=[...] accepts missing parameters)"
        )
    return tensors


def _drop_fresh(model: SequenceModel, renaming: Renaming, fresh: Sequence[str]) -> None:
    """Takes out of the file what is to start anew, or has no place in this task."""
    own = model.state_dict()
    for name in [name for name in renaming.tensors if any(fnmatchcase(name, pattern) for pattern in fresh)]:
        del renaming.tensors[name]
        why = "the head was replaced" if name.startswith("head.") else "starts anew" if name in own else "not of this task"
        renaming.dropped[renaming.sources.pop(name)] = why


def _drop_other_head(model: SequenceModel, renaming: Renaming) -> None:
    """A head in the published one's place takes its weights only if all of them fit."""
    ours = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith("head.")}
    theirs = [name for name in renaming.tensors if name.startswith("head.")]
    if all(ours.get(name) == renaming.tensors[name].shape for name in theirs):
        return
    for name in theirs:
        del renaming.tensors[name]
        renaming.dropped[renaming.sources.pop(name)] = "the head was replaced"


def _merge_tied(own: dict[str, Tensor], tensors: dict[str, Tensor], renaming: Renaming, report: KeyReport) -> None:
    """Of names that are one parameter in the model the first is loaded; a head never overwrites the embedding."""
    first: dict[int, str] = {}
    for name in sorted((name for name in tensors if own[name].numel()), key=lambda name: name.startswith("head.")):
        holder = first.setdefault(own[name].data_ptr(), name)
        if holder != name:
            report.tied[name] = holder
            if not torch.equal(tensors[name], tensors[holder]):
                report.dropped[renaming.sources[name]] = f"replaced by {holder}, which this head shares"
            del tensors[name]


def _place_absent(
    own: dict[str, Tensor],
    tensors: dict[str, Tensor],
    renaming: Renaming,
    report: KeyReport,
    allow_missing: Sequence[str],
    fresh: Sequence[str],
    buffers: Collection[str],
) -> list[str]:
    """Puts each parameter that the checkpoint lacks where it belongs in the report; returns those that may not be missing."""
    loaded = {own[name].data_ptr(): name for name in tensors if own[name].numel()}
    absent = []
    for name, tensor in own.items():
        if name in tensors:
            continue
        # A buffer that is to start anew holds what the new config says, such as the statistics of other data.
        computed = (*renaming.computed, *(fresh if name in buffers else ()))
        if tensor.numel() and tensor.data_ptr() in loaded:
            report.tied[name] = loaded[tensor.data_ptr()]
        elif any(fnmatchcase(name, pattern) for pattern in computed):
            report.computed[name] = tuple(tensor.shape)
        elif name.startswith("head.") or any(fnmatchcase(name, pattern) for pattern in fresh):
            report.reinitialized[name] = tuple(tensor.shape)
        elif any(fnmatchcase(name, pattern) for pattern in allow_missing):
            report.missing[name] = tuple(tensor.shape)
        else:
            absent.append(name)
    return absent


def _check_vocabulary(checkpoint: Checkpoint, chosen: Format, name: str) -> None:
    found, expected = checkpoint.vocabulary, chosen.TOKENS
    wrong = [f"{token} is {found[token]} instead of {i}" for token, i in expected.items() if found.get(token, i) != i]
    absent = [token for token in expected if found and token not in found]
    if wrong or absent:
        parts = wrong[:4] + ([f"no {', '.join(absent[:4])}"] if absent else [])
        raise CheckpointError(
            f"the tokenizer beside {checkpoint.name} is not that of {name}: {'; '.join(parts)}. Its weights would see other "
            "tokens than they were trained on; take the tokenizer that was published with them"
        )
