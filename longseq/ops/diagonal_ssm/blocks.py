"""Chunked evaluation of any linear time-invariant state-space model, as matrix products.

With M real numbers of state per channel, a chunk of T positions X and its entering state S gives

    Y = toeplitz(K) X + V S        S' = A^T S + W X

where K holds the first T kernel taps, `V_t = C A^(t+1)`, `W_j = A^(T-1-j) B`. The transition A^T over a whole chunk is
either diagonal and complex (M = 2N numbers, real and imaginary parts side by side) or a dense M x M matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from longseq.ops.autocast import without_autocast


class ChunkOperators(NamedTuple):
    """A model over one chunk of T positions.

    Attributes:
        taps_DT: K, the kernel's first T taps.
        out_DTM: V, what the entering state adds to each output.
        in_DMT: W, what each input adds to the leaving state.
        step: A^T; (D, M/2, 2) for a diagonal complex transition, (D, M, M) for a dense one.
    """

    taps_DT: Tensor
    out_DTM: Tensor
    in_DMT: Tensor
    step: Tensor


def run_chunks(
    x_BLD: Tensor, operators: ChunkOperators, initial_BDM: Tensor, fresh_Bc: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs, and the states at every chunk's beginning and after the last chunk.

    Keeps x and the chunk states for backward, and nothing else. Not traceable; `longseq.ops.diagonal_ssm.traced` is.

    Args:
        x_BLD: input, any floating dtype.
        operators: in the computing dtype.
        initial_BDM: state before the first position.
        fresh_Bc: bool, True where a chunk starts from zero instead of from the state before it.

    Returns:
        y (B, L, D) in the computing dtype, and states (D, B, c + 1, M).
    """
    y_BLD, states_DBcM = _Chunks.apply(x_BLD, *operators, initial_BDM, fresh_Bc)  # type: ignore[misc]
    return y_BLD, states_DBcM


def is_dense(step: Tensor, n_numbers: int) -> bool:
    """Whether a transition over states of M numbers is a dense matrix and not M/2 complex numbers."""
    return tuple(step.shape[-2:]) == (n_numbers, n_numbers)


def toeplitz(taps_DT: Tensor) -> Tensor:
    """(D, T, T) with `taps[i - j]` at row i, column j, and zeros above the diagonal."""
    size = taps_DT.shape[1]
    place_T = torch.arange(size, device=taps_DT.device)
    lag_TT = place_T[:, None] - place_T
    return taps_DT[:, lag_TT.clamp(min=0)].masked_fill(lag_TT < 0, 0.0)


class _Chunks(torch.autograd.Function):
    """`run_chunks` that keeps x and the chunk states, and transposes x again in backward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x_BLD: Tensor,
        taps_DT: Tensor,
        out_DTM: Tensor,
        in_DMT: Tensor,
        step: Tensor,
        initial_BDM: Tensor,
        fresh_Bc: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        n_batch, length, _ = x_BLD.shape
        x_DRT = _to_rows(x_BLD, taps_DT.shape[1], taps_DT.dtype)
        made_DBcM = torch.bmm(x_DRT, in_DMT.transpose(1, 2)).unflatten(1, (n_batch, -1))
        states_DBcM = _scan(made_DBcM, step, initial_BDM.transpose(0, 1), fresh_Bc)
        entering_DRM = _entering(states_DBcM, fresh_Bc)
        y_DRT = torch.bmm(x_DRT, toeplitz(taps_DT).transpose(1, 2))
        y_DRT.baddbmm_(entering_DRM, out_DTM.transpose(1, 2))
        ctx.save_for_backward(x_BLD, taps_DT, out_DTM, in_DMT, step, states_DBcM, fresh_Bc)
        return _from_rows(y_DRT, n_batch, length), states_DBcM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLD: Tensor, dstates_DBcM: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # Where backward is called within autocast, its products would be of 16 bits.
        with without_autocast(dy_BLD):
            return _gradients(dy_BLD, dstates_DBcM, *ctx.saved_tensors)


def _gradients(
    dy_BLD: Tensor,
    dstates_DBcM: Tensor,
    x_BLD: Tensor,
    taps_DT: Tensor,
    out_DTM: Tensor,
    in_DMT: Tensor,
    step: Tensor,
    states_DBcM: Tensor,
    fresh_Bc: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Of x, the operators and the initial state, and None for `fresh`."""
    n_batch, length = x_BLD.shape[:2]
    size = taps_DT.shape[1]
    dy_DRT = _to_rows(dy_BLD, size, taps_DT.dtype)
    dout_DBcM = torch.bmm(dy_DRT, out_DTM).unflatten(1, (n_batch, -1))
    adjoint_DBcM = _scan_back(dout_DBcM, dstates_DBcM, step, fresh_Bc)
    leaving_DRM = adjoint_DBcM[:, :, 1:].flatten(1, 2)
    dx_DRT = torch.bmm(dy_DRT, toeplitz(taps_DT))
    dx_DRT.baddbmm_(leaving_DRM, in_DMT)
    x_DRT = _to_rows(x_BLD, size, taps_DT.dtype)
    entering_DRM = _entering(states_DBcM, fresh_Bc)
    return (
        _from_rows(dx_DRT, n_batch, length).to(x_BLD.dtype),
        _sum_diagonals(torch.bmm(dy_DRT.transpose(1, 2), x_DRT)),
        torch.bmm(dy_DRT.transpose(1, 2), entering_DRM),
        torch.bmm(leaving_DRM.transpose(1, 2), x_DRT),
        _step_gradient(leaving_DRM, entering_DRM, step),
        adjoint_DBcM[:, :, 0].transpose(0, 1),
        None,
    )


def _to_rows(x_BLD: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(B, L, D) -> (D, B c, T), zero-padded: one matrix of chunks per channel."""
    n_batch, length, width = x_BLD.shape
    n_chunks = (length + size - 1) // size
    x_DBL = x_BLD.new_zeros((width, n_batch, n_chunks * size), dtype=dtype)
    x_DBL[:, :, :length] = x_BLD.permute(2, 0, 1)
    return x_DBL.view(width, n_batch * n_chunks, size)


def _from_rows(x_DRT: Tensor, n_batch: int, length: int) -> Tensor:
    """The inverse of `_to_rows`."""
    return x_DRT.view(x_DRT.shape[0], n_batch, -1)[:, :, :length].permute(1, 2, 0).contiguous()


def _entering(states_DBcM: Tensor, fresh_Bc: Tensor | None) -> Tensor:
    """(D, B c, M): the states that chunks start from."""
    states_DBcM = states_DBcM[:, :, :-1]
    if fresh_Bc is not None:
        states_DBcM = states_DBcM * (~fresh_Bc).to(states_DBcM.dtype)[..., None]
    return states_DBcM.flatten(1, 2)


def _scan(made_DBcM: Tensor, step: Tensor, initial_DBM: Tensor, fresh_Bc: Tensor | None) -> Tensor:
    """States before each chunk and after the last: `S_(c+1) = A^T S_c + made_c`, one product per chunk."""
    n_chunks = made_DBcM.shape[2]
    states_DBcM = made_DBcM.new_empty((*made_DBcM.shape[:2], n_chunks + 1, made_DBcM.shape[3]))
    states_DBcM[:, :, 0] = initial_DBM
    kept_Bc1 = None if fresh_Bc is None else (~fresh_Bc).to(made_DBcM.dtype).unsqueeze(-1)
    advance, states, made = _stepper(step, states_DBcM, made_DBcM)
    for c in range(n_chunks):
        entering = states[:, :, c] if kept_Bc1 is None else states[:, :, c] * kept_Bc1[:, c]
        advance(made[:, :, c], entering, states[:, :, c + 1])
    return states_DBcM


def _scan_back(dout_DBcM: Tensor, dstates_DBcM: Tensor, step: Tensor, fresh_Bc: Tensor | None) -> Tensor:
    """Adjoints of all states: `G_c = dS_c + kept_c (V^T dY_c + (A^T)^T G_(c+1))`."""
    adjoint_DBcM = dstates_DBcM.contiguous().clone()
    kept_Bc1 = None if fresh_Bc is None else (~fresh_Bc).to(dout_DBcM.dtype).unsqueeze(-1)
    back = (
        step.transpose(1, 2).contiguous()
        if is_dense(step, dout_DBcM.shape[-1])
        else torch.stack([step[..., 0], -step[..., 1]], -1)
    )
    advance, adjoint, dout = _stepper(back, adjoint_DBcM, dout_DBcM)
    update = torch.empty_like(adjoint[:, :, 0])
    for c in reversed(range(dout_DBcM.shape[2])):
        advance(dout[:, :, c], adjoint[:, :, c + 1], update)
        adjoint[:, :, c].add_(update if kept_Bc1 is None else update * kept_Bc1[:, c])
    return adjoint_DBcM


def _stepper(step: Tensor, states_DBcM: Tensor, made_DBcM: Tensor) -> tuple[Callable[..., Any], Tensor, Tensor]:
    """`advance(made, state, out)` writing `step state + made`, and both buffers in the view that it works on."""
    if is_dense(step, states_DBcM.shape[-1]):
        step_t = step.transpose(1, 2)
        return (lambda made, state, out: torch.baddbmm(made, state, step_t, out=out)), states_DBcM, made_DBcM
    # Eager code may use complex views; the traced form may not.
    z_D1N = torch.view_as_complex(step.contiguous()).unsqueeze(1)
    states_DBcN, made_DBcN = (torch.view_as_complex(t.unflatten(-1, (-1, 2))) for t in (states_DBcM, made_DBcM))
    # On a GPU torch compiles addcmul of complex numbers at its first call, for two seconds.
    return (lambda made, state, out: torch.mul(z_D1N, state, out=out).add_(made)), states_DBcN, made_DBcN


def _sum_diagonals(product_DTT: Tensor) -> Tensor:
    """(D, T): the sums over i - j = t of a (D, T, T) product, the adjoint of `toeplitz`."""
    size = product_DTT.shape[1]
    # Rows of 2T - 1 instead of 2T elements shift row i by i, which turns diagonals into columns.
    skewed_DTS = F.pad(product_DTT.flip(2), (0, size)).flatten(1)[:, :-size].unflatten(1, (size, 2 * size - 1))
    return skewed_DTS.sum(1)[:, size - 1 :]


def _step_gradient(leaving_DRM: Tensor, entering_DRM: Tensor, step: Tensor) -> Tensor:
    if is_dense(step, leaving_DRM.shape[-1]):
        return torch.bmm(leaving_DRM.transpose(1, 2), entering_DRM)
    leaving_DRN, entering_DRN = (torch.view_as_complex(t.unflatten(-1, (-1, 2))) for t in (leaving_DRM, entering_DRM))
    return torch.view_as_real((leaving_DRN * entering_DRN.conj()).sum(1))
