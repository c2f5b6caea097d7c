"""The long convolution written as a sum over lags: one multiply-add of the whole batch for each kernel tap."""

import torch
from torch import Tensor


def fft_conv_reference(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
) -> Tensor:
    """Direct form of `longseq.ops.fft_conv.fft_conv`; see there for the arguments.

    Computes in float32, or in float64 for float64 inputs.

    Cost: O(B L D min(K, M + L)) time, with one pass over the input for each tap.
    """
    dtype = torch.float64 if u_BLD.dtype == torch.float64 else torch.float32
    v_BLD = u_BLD.to(dtype)
    if pre_gate_BLD is not None:
        v_BLD = v_BLD * pre_gate_BLD.to(dtype)
    x_BSD = v_BLD if history_BMD is None else torch.cat([history_BMD.to(dtype), v_BLD], dim=1)
    y_BLD = _causal_sum(x_BSD, k_DK.to(dtype), v_BLD.shape[1])
    if bias_D is not None:
        y_BLD = y_BLD + bias_D.to(dtype) * v_BLD
    if post_gate_BLD is not None:
        y_BLD = y_BLD * post_gate_BLD.to(dtype)
    return y_BLD.to(u_BLD.dtype)


def _causal_sum(x_BSD: Tensor, k_DK: Tensor, length: int) -> Tensor:
    """The last `length` of the S positions of `y_t = sum over j of k_j x_(t - j)`."""
    n_inputs = x_BSD.shape[1]
    y_BLD = k_DK[:, 0] * x_BSD[:, n_inputs - length :]
    for lag in range(1, min(k_DK.shape[1], n_inputs)):
        # Positions before `lag` have no input that far back: they get no term.
        first = max(n_inputs - length, lag)
        term = k_DK[:, lag] * x_BSD[:, first - lag : n_inputs - lag]
        missing = length - term.shape[1]
        y_BLD = y_BLD + torch.nn.functional.pad(term, (0, 0, missing, 0))
    return y_BLD
