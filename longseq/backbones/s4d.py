"""S4D: a diagonal linear state-space model per channel; time-invariant, so a convolution and a recurrence at once.

Equation: h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) A^-1 B x_t with a diagonal complex A (zero-order hold)
          y_t = 2 Re(C h_t) + D x_t, for each channel.
Good at smooth signals (sound, sensors), also at another sampling rate; cheaper than S4 and about as good. Not S4, whose A has a
rank-one term besides, and not Mamba, whose dynamics depend on the input.

Paper: On the Parameterization and Initialization of Diagonal State Space Models, https://arxiv.org/abs/2206.11893.
"""

import torch
from torch import Tensor

from longseq.backbone import Mixer
from longseq.layers.hippo import DiagonalInit, diagonal_poles
from longseq.layers.linear_ssm import LinearSSM
from longseq.ops.diagonal_ssm import Discretization, Implementation, diagonal_ssm, diagonal_ssm_kernel, diagonal_ssm_step
from longseq.ops.diagonal_ssm.blocks import ChunkOperators
from longseq.ops.diagonal_ssm.chunked import diagonal_operators
from longseq.ops.diagonal_ssm.discretize import discretize
from longseq.registry import register_backbone


@register_backbone(
    "s4d",
    summary="diagonal linear state space; time-invariant, smooth signals, changes of the sampling rate",
    paper="https://arxiv.org/abs/2206.11893",
    cost="O(L)",
    state="d_model x d_state",
    mlp_ratio=0.0,
)
class S4DMixer(LinearSSM, Mixer):
    """One S4D layer: `glu(linear(gelu(ssm(x) + D x)))`, with `h' = A h + B x`, `ssm(x) = 2 Re(C h)` per channel.

    A is diagonal and complex, and its poles start at the spectrum of HiPPO-LegS or close to it. Unlike Mamba nothing depends
    on the input, so one set of weights serves any sampling rate: see `rate`.

    Args:
        d_model: width in and out.
        d_state: real numbers of state per channel; even.
        init: poles at the start: `legs`, `inv` or `lin`.
        discretization: `zoh` (the input is held between samples) or `bilinear`.
        dt_min: smallest initial step size.
        dt_max: largest initial step size; dt is log-uniform between them.
        n_ssm: sets of A and B, each shared by d_model / n_ssm channels; None gives every channel its own.
        causal: False adds a second model that runs from right to left, with a C of its own and the same A, B and dt.
        inner_dropout: between the activation and the linear map.
        tie_dropout: drop whole channels, for all positions alike.
        rate: time between samples, relative to that in training: 2.0 for half the sampling rate. Also an attribute, which
            may be set on a trained network.
        chunk_size: positions per chunk of the operator.
        implementation: of the operator: `auto`, `reference`, `chunked` or `triton`.

    Raises:
        ValueError: an odd d_state, an n_ssm that does not divide d_model, an unknown init, or a range out of order.

    Cost: O(L d_model (d_model + d_state + chunk_size)) time, O(L d_model) memory; a step costs the same at every position.

    Paper: https://arxiv.org/abs/2206.11893, equations 2, 3 and 7 to 9. Unlike the authors' code it runs in chunks with a
    carried state instead of an FFT, and the second direction includes the present position.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        init: DiagonalInit = "legs",
        discretization: Discretization = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        n_ssm: int | None = None,
        causal: bool = True,
        inner_dropout: float = 0.0,
        tie_dropout: bool = False,
        rate: float = 1.0,
        chunk_size: int = 64,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__(
            d_model,
            diagonal_poles(init, d_state),
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            causal=causal,
            inner_dropout=inner_dropout,
            tie_dropout=tie_dropout,
            rate=rate,
            chunk_size=chunk_size,
        )
        self.discretization: Discretization = discretization
        self.implementation: Implementation = implementation

    def run(
        self,
        x_BLD: Tensor,
        direction: int,
        state_BDN2: Tensor | None,
        mask_BL: Tensor | None,
        segment_ids_BL: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        model = self.continuous()
        return diagonal_ssm(
            x_BLD,
            model.dt_D,
            model.A_real_DN,
            model.A_imag_DN,
            self.C[direction],
            model.B_DN2,
            self.D if direction == 0 else None,
            discretization=self.discretization,
            initial_state_BDN2=state_BDN2,
            mask_BL=mask_BL,
            segment_ids_BL=segment_ids_BL,
            reverse=direction == 1,
            chunk_size=self.chunk_size,
            implementation=self.implementation,
        )

    def run_step(self, x_BD: Tensor, state_BDN2: Tensor) -> tuple[Tensor, Tensor]:
        model = self.continuous()
        return diagonal_ssm_step(
            x_BD,
            model.dt_D,
            model.A_real_DN,
            model.A_imag_DN,
            self.C[0],
            model.B_DN2,
            self.D,
            discretization=self.discretization,
            state_BDN2=state_BDN2,
        )

    def chunk_operators(self, direction: int, size: int) -> ChunkOperators:
        model = self.continuous()
        poles = discretize(model.dt_D, model.A_real_DN, model.A_imag_DN, model.B_DN2, self.discretization)
        return diagonal_operators(poles, self.C[direction].to(model.dt_D.dtype), size)

    def kernel(self, length: int) -> Tensor:
        model = self.continuous()
        poles = (model.dt_D, model.A_real_DN, model.A_imag_DN)
        taps = [diagonal_ssm_kernel(*poles, C_DN2, length, model.B_DN2, discretization=self.discretization) for C_DN2 in self.C]
        return torch.stack(taps)
