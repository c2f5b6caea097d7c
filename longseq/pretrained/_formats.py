"""The formats, found by file name, and what is known to be published in them."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from longseq.errors import CheckpointError
from longseq.pretrained._renames import Config, Options, Renaming, Weights
from longseq.pretrained._sources import find_checkpoint
from longseq.pretrained._weights import read_weights


@dataclass(frozen=True)
class PretrainedInfo:
    """A published checkpoint.

    Attributes:
        id: on the Hugging Face hub.
        format: the name of the format's file.
        domain: `dna`, `text`, `audio` or `vision`.
        parameters: as published, such as `130M`; empty if not stated.
        length: longest sequence in tokens; None if not stated or not limited.
        licence: as published; empty if not stated here (see the model's page).
    """

    id: str
    format: str
    domain: str
    parameters: str = ""
    length: int | None = None
    licence: str = ""

    def __str__(self) -> str:
        return self.id


class Format(Protocol):
    """What each format's file holds.

    Attributes:
        CHECKPOINTS: what is published in it.
        OPTIONS: its own options with their defaults; all other options are the backbone's.
        TOKENS: the ids that a tokenizer beside the weights must have; empty if any will do.
    """

    CHECKPOINTS: tuple[PretrainedInfo, ...]
    OPTIONS: Options
    TOKENS: dict[str, int]

    def matches(self, config: Config, keys: Collection[str]) -> bool:
        """Whether a checkpoint is of this format."""
        ...

    def model_config(self, config: Config, weights: Weights, options: Options) -> dict[str, Any]:
        """The config that `build_model` builds the network from."""
        ...

    def rename(self, weights: Weights, config: Config, options: Options) -> Renaming:
        """The tensors under our names."""
        ...


@cache
def list_formats() -> tuple[str, ...]:
    """Names of all formats."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


def get_format(name: str) -> Format:
    """A format by name.

    Raises:
        CheckpointError: for an unknown one.
    """
    if name not in list_formats():
        raise CheckpointError(f"unknown checkpoint format {name!r}; known: {', '.join(list_formats())}")
    return cast(Format, import_module(f"longseq.pretrained.{name}"))


def list_pretrained() -> list[PretrainedInfo]:
    """Published checkpoints that can be loaded by their id."""
    return [info for name in list_formats() for info in get_format(name).CHECKPOINTS]


def choose_format(name: str, config: Config, keys: Collection[str]) -> str:
    """The format of a checkpoint.

    Raises:
        CheckpointError: if none fits, or several do.
    """
    known = {info.format for info in list_pretrained() if name == info.id or name.startswith(info.id + "/")}
    fitting = [format for format in list_formats() if get_format(format).matches(config, keys)]
    if len(known & set(fitting)) == 1:
        return (known & set(fitting)).pop()
    if len(fitting) == 1:
        return fitting[0]
    # Published files are called after their network.
    named = [format for format in fitting if format in Path(name).name.lower()]
    if len(named) == 1:
        return named[0]
    if fitting:
        raise CheckpointError(f"{name} could be of the formats {' or '.join(fitting)}: say which, with format={fitting[0]}")
    kind = config.get("model_type") or config.get("architectures") or "not stated"
    raise CheckpointError(
        f"{name} is of no known checkpoint format (model_type in its config: {kind}; first tensors: "
        f"{', '.join(sorted(keys)[:4])}); known: {', '.join(list_formats())}"
    )


def detect_format(folder: str | Path) -> str:
    """The name of the format of a checkpoint's folder or file, from its config.json and the names of its tensors.

    Raises:
        CheckpointError: if there is no checkpoint, or it is of no known format.
    """
    checkpoint = find_checkpoint(folder)
    return choose_format(checkpoint.name, checkpoint.config, read_weights(checkpoint.files))
