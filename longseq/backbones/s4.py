"""S4: a linear state-space model per channel whose transition is HiPPO-LegS, a diagonal plus a rank-one term.

Equation: (1 - dt/2 A) h_t = (1 + dt/2 A) h_{t-1} + dt B x_t with A = diag(lambda) - P P* (h' = A h + B x, bilinear rule)
          y_t = 2 Re(C h_t) + D x_t, for each channel.
Good at smooth signals (sound, sensors) over long spans, also at another sampling rate. Not S4D, which leaves P out, and not
Mamba, whose dynamics depend on the input.

Paper: Efficiently Modeling Long Sequences with Structured State Spaces, https://arxiv.org/abs/2111.00396.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from longseq.backbone import Mixer
from longseq.layers.hippo import legs_low_rank
from longseq.layers.linear_ssm import LinearSSM, slow
from longseq.ops.diagonal_ssm.blocks import ChunkOperators
from longseq.ops.diagonal_ssm.layout import compact
from longseq.ops.dplr_ssm import dplr_ssm, dplr_ssm_kernel, dplr_ssm_step, undo_length_correction
from longseq.ops.dplr_ssm.chunked import ChunkModel
from longseq.ops.fft_conv import fft_conv
from longseq.registry import register_backbone

Algorithm = Literal["auto", "chunked", "powers", "cauchy"]


@register_backbone(
    "s4",
    summary="HiPPO-LegS state space (diagonal plus rank one); time-invariant, long memory of smooth signals",
    paper="https://arxiv.org/abs/2111.00396",
    cost="O(L)",
    state="d_model x d_state",
    mlp_ratio=0.0,
)
class S4Mixer(LinearSSM, Mixer):
    """One S4 layer: `glu(linear(gelu(ssm(x) + D x)))`, with `h' = A h + B x`, `ssm(x) = 2 Re(C h)` per channel.

    `A = diag(lambda) - P P*` is HiPPO-LegS at the start, whose state holds the whole history in Legendre polynomials; S4D
    leaves P out. Discretised by the bilinear rule, it is run in one of two ways with the same result: chunk by chunk with a
    carried state, or as the paper trains it, by a convolution whose kernel is made first, from powers of the transition or, as
    there, from Cauchy products and an inverse FFT.

    Args:
        d_model: width in and out.
        d_state: real numbers of state per channel; even.
        dt_min: smallest initial step size.
        dt_max: largest initial step size; dt is log-uniform between them.
        n_ssm: sets of A, P and B, each shared by d_model / n_ssm channels; None gives every channel its own.
        causal: False adds a second model that runs from right to left, with a C of its own and the same A, P, B and dt.
        inner_dropout: between the activation and the linear map.
        tie_dropout: drop whole channels, for all positions alike.
        rate: time between samples, relative to that in training: 2.0 for half the sampling rate. Also an attribute, which
            may be set on a trained network.
        algorithm: `chunked`, or for whole rows a convolution with a kernel by `powers` or `cauchy`; packed rows, carried states
            and traced graphs are chunked in any case. `auto` is `powers` on a GPU, where a training step over 131,072 positions
            of 256 channels takes 14 ms for 187 (H100), and `chunked` elsewhere.
        chunk_size: positions per chunk.

    Raises:
        ValueError: an odd d_state, an n_ssm that does not divide d_model, an unknown algorithm, or a range out of order.

    Cost: O(L d_model (d_model + d_state + chunk_size)) time and O(d_model d_state^3) once a call, O(L d_model) memory
    (`cauchy`: O(L log L) time, several times slower on a CPU); a step costs the same at every position.

    Paper: https://arxiv.org/abs/2111.00396, theorem 1 and algorithm 1. Unlike the authors' code, C is stored without the
    correction for a kernel length (see `undo_length_correction`), and kernels of any length come from the same parameters.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        n_ssm: int | None = None,
        causal: bool = True,
        inner_dropout: float = 0.0,
        tie_dropout: bool = False,
        rate: float = 1.0,
        algorithm: Algorithm = "auto",
        chunk_size: int = 64,
    ) -> None:
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state={d_state}: expected an even number of states, 2 or more (they come in conjugate pairs)")
        if algorithm not in get_args(Algorithm):
            raise ValueError(f"algorithm={algorithm!r}: expected one of {', '.join(get_args(Algorithm))}")
        poles = legs_low_rank(d_state)
        super().__init__(
            d_model,
            (poles.real_N, poles.imag_N, poles.B_N2),
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            causal=causal,
            inner_dropout=inner_dropout,
            tie_dropout=tie_dropout,
            rate=rate,
            chunk_size=chunk_size,
        )
        self.P = slow(poles.P_N2.float().repeat(self.n_ssm, 1, 1))
        self.algorithm: Algorithm = algorithm

    def run_rows(self, x_BLD: Tensor, mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> Tensor:
        convolves = self.algorithm != "chunked" and (self.algorithm != "auto" or x_BLD.is_cuda)
        if convolves and segment_ids_BL is None and not torch.compiler.is_compiling():
            return self._convolve(x_BLD, mask_BL)
        return super().run_rows(x_BLD, mask_BL, segment_ids_BL)

    def run(
        self,
        x_BLD: Tensor,
        direction: int,
        state_BDN2: Tensor | None,
        mask_BL: Tensor | None,
        segment_ids_BL: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return dplr_ssm(
            x_BLD,
            *self._system(),
            self.C[direction],
            self.D if direction == 0 else None,
            initial_state_BDN2=state_BDN2,
            mask_BL=mask_BL,
            segment_ids_BL=segment_ids_BL,
            reverse=direction == 1,
            chunk_size=self.chunk_size,
        )

    def run_step(self, x_BD: Tensor, state_BDN2: Tensor) -> tuple[Tensor, Tensor]:
        return dplr_ssm_step(x_BD, *self._system(), self.C[0], self.D, state_BDN2=state_BDN2)

    def chunk_operators(self, direction: int, size: int) -> ChunkOperators:
        system = self._system()
        return ChunkModel(*system, self.C[direction].to(system[0].dtype)).build(size)

    def kernel(self, length: int) -> Tensor:
        method = "cauchy" if self.algorithm == "cauchy" else "powers"
        return dplr_ssm_kernel(*self._system(), self.C, length, method=method)

    @torch.no_grad()
    def undo_length_correction(self, length: int) -> None:
        """Turns C from `C (I - A^length)`, as published checkpoints store it with `l_kernel = length`, into C, in place.

        Args:
            length: the checkpoint's `l_kernel`; 0, a kernel that was never set, changes nothing.
        """
        if length < 0:
            raise ValueError(f"l_kernel={length}: expected 0 or more taps")
        if length > 0:
            # In float64: where the kernel has not died out after `length` taps, the system to solve is near singular.
            dt_D, A_real_DN, A_imag_DN, P_DN2, _ = (t.double() for t in self._system())
            for C_DN2 in self.C:
                C_DN2.copy_(undo_length_correction(dt_D, A_real_DN, A_imag_DN, P_DN2, C_DN2.double(), length))

    def _system(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        model = self.continuous()
        return model.dt_D, model.A_real_DN, model.A_imag_DN, self.tie(self.P), model.B_DN2

    def _convolve(self, x_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        """The paper's way over whole rows: kernels as long as the input, and one long convolution in each direction."""
        layout = None if mask_BL is None else compact(mask_BL, None, x_BLD[:, :, 0], self.chunk_size)
        u_BLD = x_BLD if layout is None else layout.place(x_BLD)
        taps_RDL = self.kernel(u_BLD.shape[1])
        y_BLD = fft_conv(u_BLD, taps_RDL[0], self.D)
        if not self.causal:
            y_BLD = y_BLD + fft_conv(u_BLD.flip(1), taps_RDL[1]).flip(1)
        return y_BLD if layout is None else layout.take(y_BLD)
