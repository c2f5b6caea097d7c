"""The long convolution through the FFT in ordinary operators, with no choice that depends on a size, for torch.export."""

import torch
from torch import Tensor

from longseq.ops.fft_conv.traceable_fourier import convolve_causally
from longseq.ops.tracing import is_exporting_onnx


def fft_conv_traceable(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
) -> Tensor:
    """Plain form of `longseq.ops.fft_conv.fft_conv`; see there for the arguments. Batch and length may be symbols.

    Cost: O(B D n log n) time for n = M + L + K (2 L for a kernel as long as the input); all spectra at once.
    """
    dtype = torch.float64 if u_BLD.dtype == torch.float64 else torch.float32
    v_BLD = u_BLD.to(dtype)
    if pre_gate_BLD is not None:
        v_BLD = v_BLD * pre_gate_BLD.to(dtype)
    x_BSD = v_BLD if history_BMD is None else torch.cat([history_BMD.to(dtype), v_BLD], dim=1)
    n_inputs = x_BSD.shape[1]
    # onnxruntime's own transform takes 50 times as long as these products and is off by 1e-3 at 16,000 positions.
    convolve = convolve_causally if is_exporting_onnx() else _convolve
    y_BLD = convolve(x_BSD, k_DK.to(dtype))[:, n_inputs - u_BLD.shape[1] :]
    if bias_D is not None:
        y_BLD = y_BLD + bias_D.to(dtype) * v_BLD
    if post_gate_BLD is not None:
        y_BLD = y_BLD * post_gate_BLD.to(dtype)
    return y_BLD.to(u_BLD.dtype)


def _convolve(x_BSD: Tensor, k_DK: Tensor) -> Tensor:
    n_inputs = x_BSD.shape[1]
    n = n_inputs + k_DK.shape[1]
    spectrum_BDF = torch.fft.rfft(x_BSD.transpose(1, 2), n=n) * torch.fft.rfft(k_DK, n=n)
    return torch.fft.irfft(spectrum_BDF, n=n)[..., :n_inputs].transpose(1, 2)
