"""Operators of a linear model over short chunks, kept from one chunk of a stream to the next."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.ops.diagonal_ssm.blocks import ChunkOperators

# Lengths of chunks whose operators are kept for the next one of the same length.
HELD = 8


class _Held(NamedTuple):
    """One set of parameters and what was made from it; never changed, so that threads may read it at any time.

    Attributes:
        made_for: what told the parameters from others, with the rate.
        parameters: views of them, which keep their memory from being given to others.
        values: copies.
        by_length: the operators.
    """

    made_for: tuple[object, ...]
    parameters: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    by_length: dict[int, ChunkOperators]


class HeldOperators:
    """Operators by the chunk's length, as long as the parameters that they were made from are unchanged.

    Every call compares memory and version of the parameters. An assignment through `.data` leaves no trace in either, so the
    beginning of a stream compares values too. Copies and pickles of a model start with nothing held.
    """

    def __init__(self) -> None:
        self._held = _Held((), (), (), {})

    def get(
        self, rate: float, parameters: Iterable[Tensor], length: int, build: Callable[[int], ChunkOperators]
    ) -> ChunkOperators:
        """The operators for chunks of a length, made by `build` if need be."""
        parameters = tuple(parameters)
        made_for = (rate, *((p.data_ptr(), p._version, p.dtype, p.device) for p in parameters))
        held = self._held
        if held.made_for != made_for:
            held = _Held(made_for, tuple(p.detach() for p in parameters), tuple(p.detach().clone() for p in parameters), {})
        operators = held.by_length.get(length)
        if operators is None:
            operators = build(length)
            kept = list(held.by_length.items())[-HELD + 1 :]
            self._held = held._replace(by_length=dict([*kept, (length, operators)]))
        return operators

    def forget_changed(self) -> None:
        """Drops what was made from values that the parameters' memory does not hold any more."""
        held = self._held
        if not all(torch.equal(now, then) for now, then in zip(held.parameters, held.values, strict=True)):
            self._held = _Held((), (), (), {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeldOperators":
        return HeldOperators()

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldOperators, ()
