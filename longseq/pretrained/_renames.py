"""What the formats share: renaming by rules, and reading a config that may be incomplete."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longseq.errors import CheckpointError

Config = Mapping[str, Any]
Weights = Mapping[str, Tensor]
Options = Mapping[str, Any]
# (regular expression for the whole published name, our name with \1 ... for its groups)
Rules = Sequence[tuple[str, str]]
# (regular expression for the whole published name, why it is not needed)
Drops = Sequence[tuple[str, str]]


@dataclass
class Renaming:
    """A checkpoint's tensors under our names.

    Attributes:
        tensors: by our name; names that no rule knows stay as they were.
        sources: the published name of each.
        dropped: published names that are not needed, with the reason.
        computed: shell patterns of our names that may be missing, since they follow from the config.
        notes: what the user should know.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def add(self, new: str, old: str, tensor: Tensor) -> None:
        """Puts a tensor under our name; a second one of the same name must be equal to the first.

        Raises:
            CheckpointError: if it differs.
        """
        if new not in self.tensors:
            self.tensors[new], self.sources[new] = tensor, old
        elif tensor.shape == self.tensors[new].shape and torch.equal(tensor, self.tensors[new]):
            self.dropped[old] = f"the same tensor as {self.sources[new]}"
        else:
            raise CheckpointError(
                f"{old} and {self.sources[new]} are one parameter in this architecture, but they differ in the file: "
                "the weights were trained with untied parameters, which is another network"
            )


def rename_keys(weights: Weights, rules: Rules, drops: Drops = ()) -> Renaming:
    """Applies the first rule that fits each name.

    Raises:
        CheckpointError: if two tensors get one name and differ.
    """
    renaming = Renaming()
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    for old, tensor in weights.items():
        reason = next((why for pattern, why in drops if re.fullmatch(pattern, old)), None)
        if reason is not None:
            renaming.dropped[old] = reason
            continue
        found = ((match, new) for pattern, new in compiled if (match := pattern.fullmatch(old)))
        match, new = next(found, (None, old))
        renaming.add(old if match is None else match.expand(new), old, tensor)
    return renaming


def add_prefix(rules: Rules, prefix: str) -> Rules:
    """Rules for a network that stands inside a module of another's."""
    return [(re.escape(prefix) + pattern, new) for pattern, new in rules]


def add_zero_bias(renaming: Renaming, head: str) -> None:
    """A published output map without a bias gets one of zeros, where ours always has one."""
    weight, bias = renaming.tensors.get(f"{head}.weight"), f"{head}.bias"
    if weight is not None and bias not in renaming.tensors:
        renaming.tensors[bias] = weight.new_zeros(weight.shape[0])
        renaming.sources[bias] = renaming.sources[f"{head}.weight"]
        renaming.notes.append(f"{renaming.sources[bias]} comes without a bias: {bias} is zero")


def need(config: Config, *keys: str) -> Any:
    """The first of several keys that a config has.

    Raises:
        CheckpointError: if it has none of them.
    """
    for key in keys:
        if config.get(key) is not None:
            return config[key]
    found = ", ".join(sorted(key for key in config if config[key] is not None)) or "no keys at all"
    raise CheckpointError(
        f"config.json lacks {' or '.join(map(repr, keys))}, without which the network cannot be built; it has {found}. "
        "Take the config.json that was published with these weights"
    )


def require(config: Config, key: str, allowed: Iterable[Any], why: str) -> None:
    """Checks that an option, where it is set, has a value that we compute.

    Raises:
        CheckpointError: if it has another.
    """
    allowed = tuple(allowed)
    if key in config and config[key] not in allowed:
        expected = " or ".join(map(repr, allowed))
        raise CheckpointError(f"config.json has {key}={config[key]!r}, this loader knows {expected}: {why}")


def find(weights: Weights, pattern: str, what: str) -> Tensor:
    """The tensor whose name a regular expression ends with.

    Raises:
        CheckpointError: if there is none.
    """
    for name, tensor in weights.items():
        if re.search(pattern + "$", name):
            return tensor
    shown = ", ".join(list(weights)[:4])
    raise CheckpointError(f"the checkpoint has no {what} (a tensor {pattern!r}); it begins with {shown}")


def vocabulary(embedding_VD: Tensor, size: int, width: int, multiple: int = 1) -> int:
    """Rows of a token embedding, which published files pad beyond the vocabulary.

    Raises:
        CheckpointError: if there are fewer or many more rows than the config's vocabulary, or the network that would be
            built is of another width.
    """
    rows, found = embedding_VD.shape
    if found != width:
        raise CheckpointError(
            f"the token embedding is {found} wide, config.json says {width!r}: the weights and the config belong to different "
            "networks"
        )
    padded = -(-size // multiple) * multiple
    if rows not in (size, padded):
        expected = f"{size}" if padded == size else f"{size}, or {padded} with padding"
        raise CheckpointError(
            f"the token embedding has {rows} rows, config.json says {expected}: the weights and the config belong to "
            "different vocabularies"
        )
    return rows


def is_tied(embedding_VD: Tensor, weights: Weights, head: str, default: bool) -> bool:
    """Whether a language-model head shares its matrix with the embedding; what the file holds outweighs its config."""
    for name, tensor in weights.items():
        if re.fullmatch(head, name):
            return tensor.shape == embedding_VD.shape and torch.equal(tensor, embedding_VD)
    return default


def count(weights: Weights, pattern: str) -> int:
    """How many layers a file holds: the distinct first groups of a regular expression."""
    return len({match.group(1) for name in weights if (match := re.search(pattern, name))})
