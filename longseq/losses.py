"""Losses over a vocabulary at every position, computed so that the logits of all positions never stand in memory at once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Logits that may stand in memory at once, in numbers: 256 MiB in float32.
LOGITS_AT_ONCE = 2**26


def position_chunks(n_positions: int, n_outputs: int, logits_at_once: int = LOGITS_AT_ONCE) -> Iterator[slice]:
    """Slices of the positions, each with at most `logits_at_once` logits, but at least one position."""
    size = max(1, logits_at_once // max(1, n_outputs))
    for start in range(0, n_positions, size):
        yield slice(start, min(start + size, n_positions))


def chunked_cross_entropy(
    project: Callable[[Tensor], Tensor],
    x_ND: Tensor,
    labels_N: Tensor,
    n_outputs: int,
    *,
    ignore_index: int = -100,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """`cross_entropy(project(x), labels)`, its mean over the labelled positions, with the logits of a chunk at a time.

    Where there are several chunks, each one's logits are computed once forward and once more backward, so value and gradients
    are those of the plain loss and memory is that of one chunk; the gradient of the head's matrix is summed chunk by chunk.
    Positions without a label are left out before anything is computed.

    Args:
        project: the head's map to logits, (n, D) -> (n, O); its parameters get their gradients.
        x_ND: features.
        labels_N: classes, or `ignore_index`.
        n_outputs: O.
        ignore_index: marks positions without a label.
        logits_at_once: see `position_chunks`.

    Returns:
        A scalar; NaN without any label, as the plain loss.

    Cost: O(N D O) time, twice forward; O(logits_at_once) memory beside the gradient of x.
    """
    x_ND, labels_N = _labelled(x_ND, labels_N, ignore_index)

    def chunk_loss(x_nD: Tensor, labels_n: Tensor) -> Tensor:
        return F.cross_entropy(project(x_nD).float(), labels_n, reduction="sum")

    count, size = len(labels_N), max(1, logits_at_once // max(1, n_outputs))
    if not count:
        return x_ND.new_full((), torch.nan, dtype=torch.float32)
    if count <= size:
        return chunk_loss(x_ND, labels_N) / count
    total = x_ND.new_zeros((), dtype=torch.float32)
    # Split at once: the gradient of a slice would be as long as all positions, for each of them.
    for x_nD, labels_n in zip(x_ND.split(size), labels_N.split(size), strict=True):
        loss = checkpoint(chunk_loss, x_nD, labels_n, use_reentrant=False)
        assert isinstance(loss, Tensor)
        total = total + loss
    return total / count


def _labelled(x_ND: Tensor, labels_N: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The positions with a label; without a copy if all have one."""
    places_n = (labels_N != ignore_index).nonzero().squeeze(1)
    if len(places_n) == len(labels_N):
        return x_ND, labels_N
    # Backward each place is written once; a boolean index would sort them first.
    return x_ND.index_select(0, places_n), labels_N[places_n]
