"""S4D: a diagonal linear state-space model per channel; time-invariant, so a convolution and a recurrence at once.

Paper: On the Parameterization and Initialization of Diagonal State Space Models, https://arxiv.org/abs/2206.11893.
"""

import torch
from torch import Tensor, nn

from longseq.backbone import Mixer, State, zero_padding
from longseq.layers.gated_output import GatedOutput
from longseq.layers.hippo import DiagonalInit, diagonal_poles, log_uniform
from longseq.layers.marks import mark
from longseq.ops.diagonal_ssm import Discretization, Implementation, diagonal_ssm, diagonal_ssm_kernel, diagonal_ssm_step
from longseq.registry import register_backbone

# Published rate of the recurrence's parameters: faster training makes it unstable, decay pulls it from its spectrum.
SSM_LR = 1e-3


@register_backbone(
    "s4d",
    summary="diagonal linear state space; time-invariant, smooth signals, changes of the sampling rate",
    paper="https://arxiv.org/abs/2206.11893",
    cost="O(L)",
    state="d_model x d_state",
    mlp_ratio=0.0,
)
class S4DMixer(Mixer):
    """One S4D layer: `glu(linear(gelu(ssm(x) + D x)))`, with `h' = A h + B x`, `ssm(x) = 2 Re(C h)` per channel.

    A is diagonal and complex and its poles start at the spectrum of HiPPO-LegS or close to it. Unlike Mamba nothing depends
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
        super().__init__()
        n_ssm = d_model if n_ssm is None else n_ssm
        if n_ssm < 1 or d_model % n_ssm:
            raise ValueError(f"n_ssm={n_ssm} must divide d_model={d_model}")
        if not rate > 0.0:
            raise ValueError(f"rate must be above 0, found {rate}")
        self.d_model, self.causal, self.can_step, self.rate = d_model, causal, causal, rate
        self.chunk_size = chunk_size
        self.discretization: Discretization = discretization
        self.implementation: Implementation = implementation
        real_N, imag_N, B_N2 = (t.float() for t in diagonal_poles(init, d_state))
        pairs = real_N.shape[0]
        self.log_dt = self._slow(log_uniform(d_model, dt_min, dt_max))
        self.log_A_real = self._slow((-real_N).log().repeat(n_ssm, 1))
        self.A_imag = self._slow(imag_N.repeat(n_ssm, 1))
        self.B = self._slow(B_N2.repeat(n_ssm, 1, 1))
        # One C per direction; real and imaginary parts of variance 1/2 each.
        self.C = nn.Parameter(torch.randn(1 if causal else 2, d_model, pairs, 2) * 0.5**0.5)
        self.D = mark(nn.Parameter(torch.randn(d_model)), weight_decay=0.0)
        self.output = GatedOutput(d_model, inner_dropout, tie_dropout)

    @staticmethod
    def _slow(value: Tensor) -> nn.Parameter:
        return mark(nn.Parameter(value), weight_decay=0.0, max_lr=SSM_LR)

    def continuous(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt (D,), the real and imaginary parts of A (D, N/2), and B (D, N/2, 2), for the present `rate`, in fp32."""
        dtype = torch.promote_types(self.log_dt.dtype, torch.float32)
        tied = self.d_model // self.A_imag.shape[0]
        dt_D = torch.exp(self.log_dt.to(dtype)) * self.rate
        A_real_DN = -torch.exp(self.log_A_real.to(dtype)).repeat(tied, 1)
        return dt_D, A_real_DN, self.A_imag.to(dtype).repeat(tied, 1), self.B.to(dtype).repeat(tied, 1, 1)

    def kernel(self, length: int) -> Tensor:
        """The convolution kernels, (directions, D, length): the impulse responses without D."""
        dt_D, A_real_DN, A_imag_DN, B_DN2 = self.continuous()
        taps = [
            diagonal_ssm_kernel(dt_D, A_real_DN, A_imag_DN, C_DN2, length, B_DN2, discretization=self.discretization)
            for C_DN2 in self.C
        ]
        return torch.stack(taps)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        y_BLD, _ = self._run(x_BLD, None, mask_BL, segment_ids_BL)
        if not self.causal:
            y_BLD = y_BLD + self._run(x_BLD, None, mask_BL, segment_ids_BL, reverse=True)[0]
        return self.output(y_BLD)

    def init_state(self, batch_size: int) -> State:
        """Zeros (B, D, N/2, 2): the state's real and imaginary parts."""
        if not self.causal:
            raise self.cannot_step()
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return torch.zeros(batch_size, *self.C.shape[1:], dtype=dtype, device=self.C.device)

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        if not self.causal:
            raise self.cannot_step()
        y_BLD, state = self._run(x_BLD, state, mask_BL, None)
        return self.output(y_BLD), state

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.causal:
            raise self.cannot_step()
        dt_D, A_real_DN, A_imag_DN, B_DN2 = self.continuous()
        y_BD, state = diagonal_ssm_step(
            x_BD,
            dt_D,
            A_real_DN,
            A_imag_DN,
            self.C[0],
            B_DN2,
            self.D,
            discretization=self.discretization,
            state_BDN2=state,
        )
        return self.output(y_BD), state

    def _run(
        self,
        x_BLD: Tensor,
        state: Tensor | None,
        mask_BL: Tensor | None,
        segment_ids_BL: Tensor | None,
        *,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        dt_D, A_real_DN, A_imag_DN, B_DN2 = self.continuous()
        return diagonal_ssm(
            zero_padding(x_BLD, mask_BL),
            dt_D,
            A_real_DN,
            A_imag_DN,
            self.C[1 if reverse else 0],
            B_DN2,
            None if reverse else self.D,
            discretization=self.discretization,
            initial_state_BDN2=state,
            mask_BL=mask_BL,
            segment_ids_BL=segment_ids_BL,
            reverse=reverse,
            chunk_size=self.chunk_size,
            implementation=self.implementation,
        )
