"""The long convolution: causal, with a kernel of any length, both gates and the skip term in one operator."""

from typing import Any

from torch import Tensor

from longseq.ops.checks import check_not_empty
from longseq.ops.dispatch import Operator
from longseq.ops.fft_conv.chunked import fft_conv_chunked
from longseq.ops.fft_conv.reference import fft_conv_reference
from longseq.ops.tracing import is_exporting

__all__ = ["fft_conv"]

# Up to this many taps the sum over lags is faster, forward and backward: on a CPU it loses to the FFT from 8 taps on for
# 16 x 1,024 x 64, and from 16 on for 1 x 32,768 x 128.
_SHORT_KERNEL = 6


def _shortcut(_: Tensor, k_DK: Tensor, *__: Tensor | None, **___: Any) -> str | None:
    # An exporter gets the same operators for all lengths.
    short = isinstance(k_DK.shape[1], int) and k_DK.shape[1] <= _SHORT_KERNEL
    return "reference" if short and not is_exporting() else None


_operator = Operator("fft_conv", reference=fft_conv_reference, chunked=fft_conv_chunked, shortcut=_shortcut)


def fft_conv(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None = None,
    *,
    pre_gate_BLD: Tensor | None = None,
    post_gate_BLD: Tensor | None = None,
    history_BMD: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Gated causal convolution of each channel with its own kernel, which may be as long as the input.

    With `v = pre_gate * u`, it is `y_t = post_gate_t * (sum over j >= 0 of k_j v_(t-j) + bias * v_t)`, where positions
    before the first are the history's, or 0. A product of zero-padded spectra gives the sum: linear, not circular. It is
    not the short convolution of a few taps in front of a state space model (`longseq.ops.causal_conv1d`).

    Args:
        u_BLD: input (B, L, D).
        k_DK: kernels (D, K), lag 0 first; K may be smaller or larger than L.
        bias_D: the skip term's factor (D,), 0 by default.
        pre_gate_BLD: factor on the input, of its shape.
        post_gate_BLD: factor on the output, of its shape.
        history_BMD: the M values of v (the *gated* input) before the first position, oldest first, for running in
            chunks. No output is given for them.
        implementation: "auto", "reference" (a sum over lags), "chunked" (the FFT in plain PyTorch), "triton" (GPU).

    Returns:
        y (B, L, D) in the dtype of `u_BLD`. The transforms run in float32 (float64 for a float64 input; on a GPU bf16 of up to
        4,096 positions, on Hopper also of 10,923 to 1,048,576, as 16-bit products with float32 sums), under autocast too, and
        every input has a gradient.

    Raises:
        ValueError: shapes that do not fit together, or an implementation that does not exist or is not available here.
        TypeError: inputs that are not floating point.

    Cost: O(B D n log n) time for n about M + 2 L; backward keeps the inputs only, and transforms them again.

    Paper: Hyena Hierarchy, https://arxiv.org/abs/2302.10866, definition 3.1 (one step of its recurrence). The authors'
    code pads to 2 L and keeps all spectra; here n is the next fast length that leaves the wanted outputs whole.
    """
    _check(u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
    return _operator(implementation, u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)


def _check(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
) -> None:
    named = {"u_BLD": u_BLD, "k_DK": k_DK, "bias_D": bias_D, "pre_gate_BLD": pre_gate_BLD}
    named |= {"post_gate_BLD": post_gate_BLD, "history_BMD": history_BMD}
    for name, x in named.items():
        if x is not None and not x.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, found {x.dtype}")
    if u_BLD.dim() != 3:
        raise ValueError(f"u_BLD: expected (batch, length, width), found shape {tuple(u_BLD.shape)}")
    check_not_empty("u_BLD", u_BLD)
    batch, _, width = u_BLD.shape
    if k_DK.dim() != 2 or k_DK.shape[0] != width or k_DK.shape[1] < 1:
        raise ValueError(f"k_DK: expected (width={width}, taps) with at least one tap, found shape {tuple(k_DK.shape)}")
    if bias_D is not None and bias_D.shape != (width,):
        raise ValueError(f"bias_D: expected shape ({width},), found {tuple(bias_D.shape)}")
    for name, gate_BLD in (("pre_gate_BLD", pre_gate_BLD), ("post_gate_BLD", post_gate_BLD)):
        if gate_BLD is not None and gate_BLD.shape != u_BLD.shape:
            raise ValueError(f"{name}: expected the shape of u_BLD, {tuple(u_BLD.shape)}, found {tuple(gate_BLD.shape)}")
    if history_BMD is not None and (history_BMD.dim() != 3 or history_BMD.shape[::2] != (batch, width)):
        raise ValueError(
            f"history_BMD: expected (batch={batch}, past positions, width={width}), found shape {tuple(history_BMD.shape)}"
        )
