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

    Each chunk's logits are computed once forward and once more backward, so value and gradients are those of the plain loss
    and memory is that of one chunk. Positions without a label are left out before anything is computed.

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
    labelled_N = labels_N != ignore_index
    x_ND, labels_N = x_ND[labelled_N], labels_N[labelled_N]

    def chunk_loss(x_nD: Tensor, labels_n: Tensor) -> Tensor:
        return F.cross_entropy(project(x_nD).float(), labels_n, reduction="sum")

    total = x_ND.new_zeros((), dtype=torch.float32)
    for part in position_chunks(len(labels_N), n_outputs, logits_at_once):
        loss = checkpoint(chunk_loss, x_ND[part], labels_N[part], use_reentrant=False)
        assert isinstance(loss, Tensor)
        total = total + loss
    return total / len(labels_N) if len(labels_N) else total * torch.nan
