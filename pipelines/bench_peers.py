"""What others offer for the same operators, from the same inputs: whichever of their packages can be imported here.

A peer gets the inputs in its own layout, made before the clock runs. Its row says in which way it computes something else.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.pipelines.bench_cases import Case, Peer
from longseq.pipelines.bench_peers_attention import flex, sdpa, transformers_longformer

# These have no backward pass for a CPU, or nothing at all.
_GPU_ONLY = ("mamba_ssm", "flashfftconv", "causal_conv1d", "flex_attention")


def peers_of(case: Case, device: str) -> list[tuple[str, Callable[[], Peer]]]:
    """Names, and what makes each of them ready; only those whose packages are here."""
    known: dict[str, list[tuple[str, str, Callable[[Case], Peer]]]] = {
        "selective_scan": [("mamba_ssm", "mamba_ssm", _mamba_scan)],
        "ssd": [("mamba_ssm", "mamba_ssm", _mamba_ssd)],
        "diagonal_ssm": [("torch.fft", "torch", _fft_diagonal)],
        "dplr_ssm": [("torch.fft", "torch", _fft_dplr)],
        "fft_conv": [("torch.fft", "torch", _fft_hyena), ("flashfftconv", "flashfftconv", _flash_fft)],
        "window_attention": [
            ("flex_attention", "torch", flex),
            ("SDPA, full", "torch", sdpa),
            ("transformers", "transformers", transformers_longformer),
        ],
        "causal_conv1d": [("torch conv1d", "torch", _conv1d), ("causal_conv1d", "causal_conv1d", _causal_conv1d)],
        "add_norm": [("torch", "torch", _layer_norm), ("mamba_ssm", "mamba_ssm", _mamba_norm)],
    }
    here = [row for row in known[case.operator] if importlib.util.find_spec(row[1])]
    return [(name, partial(make, case)) for name, _, make in here if device == "cuda" or name not in _GPU_ONLY]


def turned(v_BLD: Tensor, contiguous: bool = True) -> Tensor:
    """(B, L, ...) as (B, ..., L), a leaf of its own."""
    v = v_BLD.detach().movedim(1, -1)
    return (v.contiguous() if contiguous else v).requires_grad_()


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _mamba_scan(case: Case) -> Peer:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found]

    given = case.named
    names = ("x", "dt", "B", "C", "z")
    x, dt, B, C, z = (turned(given[name]) for name in names)

    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        return selective_scan_fn(x, dt, A, B, C, D, z, bias, delta_softplus=True)

    others = {name: _leaf(given[name]) for name in ("A", "D", "dt_bias")}
    return Peer("mamba_ssm", call, [x, dt, others["A"], B, C, others["D"], z, others["dt_bias"]])


def _mamba_ssd(case: Case) -> Peer:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # type: ignore[import-not-found]

    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        return mamba_chunk_scan_combined(x, dt, A, B, C, 256, D=D, dt_bias=bias, dt_softplus=True)

    return Peer("mamba_ssm", call, [_leaf(v) for v in case.leaves])


def fft_convolve(u_BDL: Tensor, k_DL: Tensor, skip_D: Tensor) -> Tensor:
    """The causal convolution as the Hyena and S4 repositories write it: padded to twice the length, in float32."""
    length = u_BDL.shape[-1]
    spectrum = torch.fft.rfft(u_BDL.float(), n=2 * length) * torch.fft.rfft(k_DL.float(), n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    return (y + u_BDL * skip_D[:, None]).to(u_BDL.dtype)


def _fft_diagonal(case: Case) -> Peer:
    x, *rest = case.leaves

    def call(u: Tensor, dt: Tensor, A: Tensor, frequency: Tensor, C: Tensor, skip: Tensor) -> Tensor:
        # The kernel of a diagonal model as S4D's short form makes it: all powers of all poles at once.
        poles = torch.complex(A, frequency)
        step = poles * dt[:, None]
        weights = torch.view_as_complex(C) * (torch.exp(step) - 1.0) / poles
        powers = torch.exp(step[:, :, None] * torch.arange(u.shape[-1], device=u.device))
        return fft_convolve(u, 2.0 * torch.einsum("dn,dnl->dl", weights, powers).real, skip)

    return Peer("torch.fft", call, [turned(x), *(_leaf(v) for v in rest)])


def _fft_dplr(case: Case) -> Peer:
    from longseq.ops.dplr_ssm import dplr_ssm_kernel

    x, *rest = case.leaves

    def call(u: Tensor, *parameters: Tensor) -> Tensor:
        dt, A, frequency, P, B, C, skip = parameters
        return fft_convolve(u, dplr_ssm_kernel(dt, A, frequency, P, B, C, u.shape[-1], method="cauchy"), skip)

    note = "kernel by our Cauchy products"
    return Peer("torch.fft", call, [turned(x), *(_leaf(v) for v in rest)], note)


def _fft_hyena(case: Case) -> Peer:
    given = case.named

    def call(u: Tensor, k: Tensor, skip: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        return post * fft_convolve(pre * u, k, skip)

    u, pre, post = (turned(given[name]) for name in ("u", "pre", "post"))
    return Peer("torch.fft", call, [u, _leaf(given["k"]), _leaf(given["D"]), pre, post])


def _flash_fft(case: Case) -> Peer:
    from flashfftconv import FlashFFTConv  # type: ignore[import-not-found]

    given = case.named
    convolve: Any = FlashFFTConv(2 * case.size["L"], dtype=given["u"].dtype).to(given["u"].device)

    def call(u: Tensor, k: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        return convolve(u, k, pregate=pre, postgate=post)

    u, pre, post = (turned(given[name]) for name in ("u", "pre", "post"))
    return Peer("flashfftconv", call, [u, _leaf(given["k"]), pre, post], "without the skip term")


def _conv1d(case: Case) -> Peer:
    x, weight, bias = case.leaves
    taps = weight.shape[1]

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.conv1d(x, weight, bias, padding=taps - 1, groups=x.shape[1])[..., : x.shape[-1]])

    return Peer("torch conv1d", call, [turned(x), _leaf(weight[:, None].to(x.dtype)), _leaf(bias.to(x.dtype))])


def _causal_conv1d(case: Case) -> Peer:
    from causal_conv1d import causal_conv1d_fn  # type: ignore[import-not-found]

    x, weight, bias = case.leaves

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d_fn(x, weight, bias, activation="silu")

    return Peer("causal_conv1d", call, [turned(x), _leaf(weight), _leaf(bias)])


def _layer_norm(case: Case) -> Peer:
    dtype = case.leaves[0].dtype

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + x
        return F.layer_norm(total, total.shape[-1:], weight, bias).to(dtype), total

    return Peer("torch", call, [_leaf(v) for v in case.leaves])


def _mamba_norm(case: Case) -> Peer:
    from mamba_ssm.ops.triton.layer_norm import layer_norm_fn  # type: ignore[import-not-found]

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return layer_norm_fn(x, weight, bias, residual=residual, eps=1e-5, prenorm=True, residual_in_fp32=True)

    return Peer("mamba_ssm", call, [_leaf(v) for v in case.leaves])
