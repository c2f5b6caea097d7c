"""Checks of arguments that operators on sequences share. Sizes are not read while torch traces: they may be symbols."""

import torch
from torch import Tensor


def check_sequence(name: str, x: Tensor, ndim: int) -> None:
    """A floating-point tensor (B, L, ...) of `ndim` dimensions with at least one row, position and channel.

    Raises:
        ValueError: another number of dimensions, or none of something.
        TypeError: not floating point.
    """
    if x.ndim != ndim:
        expected = "(batch, length, width)" if ndim == 3 else f"{ndim} dimensions"
        raise ValueError(f"{name}: expected {expected}, found shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, found {x.dtype}")
    check_not_empty(name, x)


def check_not_empty(name: str, x: Tensor) -> None:
    """Raises ValueError for (B, L, ...) without a row, a position or a channel."""
    if not torch.compiler.is_compiling() and 0 in x.shape:
        what = "position, found length 0" if x.shape[1] == 0 else f"row and one channel, found shape {tuple(x.shape)}"
        raise ValueError(f"{name}: expected at least one {what}")


def check_parameters(expected: dict[str, tuple[Tensor | None, tuple[int, ...]]], what: str) -> None:
    """Floating-point tensors of fixed shapes; None is one left out.

    Args:
        expected: each name with its tensor and shape.
        what: what the shapes follow from, for the message.

    Raises:
        ValueError: another shape.
        TypeError: not floating point.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape} for {what}, found {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, found {tensor.dtype}")


def check_rows(
    shape_BL: tuple[int, ...],
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    state: tuple[str, Tensor | None, tuple[int, ...]],
) -> None:
    """Mask, segment ids, and the name, tensor and shape of the initial state.

    Raises:
        ValueError: another shape.
        TypeError: a mask that is not bool, segment ids that are not integers, or a state that is not floating point.
    """
    if mask_BL is not None and mask_BL.dtype != torch.bool:
        raise TypeError(f"mask_BL: expected bool with True at real positions, found {mask_BL.dtype}")
    if segment_ids_BL is not None and (segment_ids_BL.is_floating_point() or segment_ids_BL.dtype == torch.bool):
        raise TypeError(f"segment_ids_BL: expected integers, found {segment_ids_BL.dtype}")
    if torch.compiler.is_compiling():
        return
    for name, tensor in (("mask_BL", mask_BL), ("segment_ids_BL", segment_ids_BL)):
        if tensor is not None and tensor.shape != shape_BL:
            raise ValueError(f"{name}: expected (batch, length) = {tuple(shape_BL)}, found {tuple(tensor.shape)}")
    name, tensor, shape = state
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected {shape}, found {tuple(tensor.shape)}")
    if tensor is not None and not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, found {tensor.dtype}")


def check_chunk_size(chunk_size: int) -> None:
    """Raises ValueError below one position."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: expected 1 or more positions")
