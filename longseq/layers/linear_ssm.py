"""A layer around a linear time-invariant state-space model: its parameters, both directions, and the gated output."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longseq.layers.gated_output import GatedOutput
from longseq.layers.held_operators import HeldOperators
from longseq.layers.hippo import log_uniform
from longseq.layers.marks import mark
from longseq.ops.diagonal_ssm.blocks import ChunkOperators, run_chunks
from longseq.ops.diagonal_ssm.lti import run_lti
from longseq.ops.tracing import runs_eagerly

# Published rate of the recurrence's parameters: faster training makes it unstable, decay pulls it from its spectrum.
SSM_LR = 1e-3
# Chunk of materialized operators; that which a traced graph of any length uses.
MATERIALIZED_CHUNK = 256


class Continuous(NamedTuple):
    """The continuous model of every channel, in fp32: `h' = A h + B x` over conjugate pairs.

    Attributes:
        dt_D: step sizes, for the present sampling rate.
        A_real_DN: real parts of A's diagonal.
        A_imag_DN: imaginary parts.
        B_DN2: input weights as (real, imaginary).
    """

    dt_D: Tensor
    A_real_DN: Tensor
    A_imag_DN: Tensor
    B_DN2: Tensor


class LinearSSM(nn.Module):
    """`glu(linear(gelu(ssm(x) + D x)))`, with a state-space model per channel that the deriving class runs.

    Args:
        d_model: width in and out.
        poles: real parts (N,), imaginary parts (N,) and input weights (N, 2) at the start, over conjugate pairs.
        dt_min: smallest initial step size.
        dt_max: largest initial step size.
        n_ssm: sets of A and B, each shared by d_model / n_ssm channels; None gives every channel its own.
        causal: False adds a second model from right to left with a C of its own.
        inner_dropout: between the activation and the linear map.
        tie_dropout: drop whole channels, for all positions alike.
        rate: time between samples, relative to that in training.
        chunk_size: positions per chunk.

    Raises:
        ValueError: an n_ssm that does not divide d_model, or a range out of order.
    """

    def __init__(
        self,
        d_model: int,
        poles: tuple[Tensor, Tensor, Tensor],
        *,
        dt_min: float,
        dt_max: float,
        n_ssm: int | None,
        causal: bool,
        inner_dropout: float,
        tie_dropout: bool,
        rate: float,
        chunk_size: int,
    ) -> None:
        super().__init__()
        n_ssm = d_model if n_ssm is None else n_ssm
        if n_ssm < 1 or d_model % n_ssm:
            raise ValueError(f"n_ssm={n_ssm} must divide d_model={d_model}")
        if not rate > 0.0:
            raise ValueError(f"rate must be above 0, found {rate}")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
        self.d_model, self.n_ssm, self.rate, self.chunk_size = d_model, n_ssm, rate, chunk_size
        self.causal = self.can_step = causal
        real_N, imag_N, B_N2 = (t.float() for t in poles)
        self.log_dt = slow(log_uniform(d_model, dt_min, dt_max))
        self.log_A_real = slow((-real_N).log().repeat(n_ssm, 1))
        self.A_imag = slow(imag_N.repeat(n_ssm, 1))
        self.B = slow(B_N2.repeat(n_ssm, 1, 1))
        # One C per direction; real and imaginary parts of variance 1/2 each.
        self.C = nn.Parameter(torch.randn(1 if causal else 2, d_model, *B_N2.shape) * 0.5**0.5)
        self.D = mark(nn.Parameter(torch.randn(d_model)), weight_decay=0.0)
        self.output = GatedOutput(d_model, inner_dropout, tie_dropout)
        self.materialized: list[str] = []
        self._held = HeldOperators()

    @abstractmethod
    def run(
        self,
        x_BLD: Tensor,
        direction: int,
        state_BDN2: Tensor | None,
        mask_BL: Tensor | None,
        segment_ids_BL: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The model from a state on: direction 0 from left to right with D, direction 1 from right to left without D."""

    @abstractmethod
    def run_step(self, x_BD: Tensor, state_BDN2: Tensor) -> tuple[Tensor, Tensor]:
        """The model over one position."""

    @abstractmethod
    def chunk_operators(self, direction: int, size: int) -> ChunkOperators:
        """The model over one chunk, as the matrices that it comes down to."""

    @abstractmethod
    def kernel(self, length: int) -> Tensor:
        """The convolution kernels, (directions, D, length): the impulse responses without D."""

    def tie(self, parameter: Tensor) -> Tensor:
        """(n_ssm, ...) -> (D, ...) in fp32: channel d has set d modulo n_ssm."""
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        parameter, times = parameter.to(dtype), self.d_model // self.n_ssm
        return parameter if times == 1 else parameter.repeat(times, *[1] * (parameter.ndim - 1))

    def continuous(self) -> Continuous:
        """The continuous model for the present `rate`."""
        log_dt_D = self.log_dt.to(torch.promote_types(self.log_dt.dtype, torch.float32))
        A_real_DN = -torch.exp(self.tie(self.log_A_real))
        return Continuous(torch.exp(log_dt_D) * self.rate, A_real_DN, self.tie(self.A_imag), self.tie(self.B))

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        if mask_BL is not None:
            x_BLD = x_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
        if self.materialized and not self.training and segment_ids_BL is None:
            y_BLD = self._sum(lambda direction: self._run_materialized(x_BLD, direction, mask_BL))
        else:
            y_BLD = self.run_rows(x_BLD, mask_BL, segment_ids_BL)
        return self.output(y_BLD)

    def run_rows(self, x_BLD: Tensor, mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> Tensor:
        """The model over whole rows from a zero state, in the way that suits them."""
        return self._sum(lambda direction: self.run(x_BLD, direction, None, mask_BL, segment_ids_BL)[0])

    def _sum(self, run: Callable[[int], Tensor]) -> Tensor:
        """What a direction gives, over those that there are."""
        return run(0) if self.causal else run(0) + run(1)

    def init_state(self, batch_size: int) -> Tensor:
        """Zeros (B, D, N, 2): the real and imaginary parts of the state."""
        self._check_causal()
        if runs_eagerly(self.C):
            self._held.forget_changed()
        dtype = torch.promote_types(self.C.dtype, torch.float32)
        return torch.zeros(batch_size, *self.C.shape[1:], dtype=dtype, device=self.C.device)

    def forward_chunk(self, x_BLD: Tensor, state: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check_causal()
        if mask_BL is None and self._may_hold(x_BLD):
            y_BLD, state = self._run_held(x_BLD, state)
        else:
            y_BLD, state = self.run(x_BLD, 0, state, mask_BL, None)
        return self.output(y_BLD), state

    def _may_hold(self, x_BLD: Tensor) -> bool:
        """Whether operators can be kept from chunk to chunk: streams of short ones, outside of training."""
        if self.training or torch.is_grad_enabled() or not (runs_eagerly(x_BLD) and runs_eagerly(self.C)):
            return False
        # Autocast would lower the products; tensors made in inference mode do not say whether they were changed.
        if torch.is_autocast_enabled(x_BLD.device.type) or self.C.is_inference():
            return False
        return x_BLD.shape[1] <= self.chunk_size and x_BLD.dtype != torch.float64

    def _run_held(self, x_BLD: Tensor, state_BDN2: Tensor) -> tuple[Tensor, Tensor]:
        """The model over one chunk, whose operators are made once per length and set of parameters."""
        parameters = self.parameters(recurse=False)
        operators = self._held.get(self.rate, parameters, x_BLD.shape[1], lambda size: self.chunk_operators(0, size))
        y_BLD, states_DBcM = run_chunks(x_BLD, operators, state_BDN2.to(operators.taps_DT.dtype).flatten(2))
        y_BLD = y_BLD + self.D.to(y_BLD.dtype) * x_BLD.to(y_BLD.dtype)
        return y_BLD.to(x_BLD.dtype), states_DBcM[:, :, -1].transpose(0, 1).unflatten(2, (-1, 2))

    def step(self, x_BD: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self._check_causal()
        if self._may_hold(x_BD.unsqueeze(1)):
            y_B1D, state = self._run_held(x_BD.unsqueeze(1), state)
            return self.output(y_B1D[:, 0]), state
        y_BD, state = self.run_step(x_BD, state)
        return self.output(y_BD), state

    @torch.no_grad()
    def materialize(self) -> None:
        """Keeps the model over one chunk as real buffers, which `forward` then uses outside of training.

        For inference and for small exported graphs: nothing is discretized per call, and any length works. Call it again
        after a change of parameters or of `rate`. Packed rows and states are run from the parameters as before.
        """
        self.materialized = []
        for direction in range(self.C.shape[0]):
            operators = self.chunk_operators(direction, MATERIALIZED_CHUNK)
            for name, value in operators._asdict().items():
                self.register_buffer(f"chunk_{name}_{direction}", value.detach().clone(), persistent=False)
                self.materialized.append(f"chunk_{name}_{direction}")

    def _run_materialized(self, x_BLD: Tensor, direction: int, mask_BL: Tensor | None) -> Tensor:
        whole = ChunkOperators(*(getattr(self, f"chunk_{name}_{direction}") for name in ChunkOperators._fields))

        def build(size: int) -> ChunkOperators:
            # A shorter chunk only occurs alone, where the transition to the next one is not used.
            return ChunkOperators(whole.taps_DT[:, :size], whole.out_DTM[:, :size], whole.in_DMT[:, :, -size:], whole.step)

        initial_BDM = whole.in_DMT.new_zeros(x_BLD.shape[0], *whole.in_DMT.shape[:2])
        y_BLD, _ = run_lti(
            x_BLD,
            build,
            lambda state_BDM, steps_B: state_BDM,
            initial_BDM,
            mask_BL=mask_BL,
            reverse=direction == 1,
            chunk_size=MATERIALIZED_CHUNK,
        )
        if direction == 0:
            y_BLD = y_BLD + self.D.to(y_BLD.dtype) * x_BLD.to(y_BLD.dtype)
        return y_BLD.to(x_BLD.dtype)

    def _check_causal(self) -> None:
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__} with causal=False sees both sides, so it has no state to carry: run `forward` on whole "
                "sequences, or build it with causal=True"
            )


def slow(value: Tensor) -> nn.Parameter:
    """A parameter of the recurrence: never decayed, and trained at most at `SSM_LR`."""
    return mark(nn.Parameter(value), weight_decay=0.0, max_lr=SSM_LR)
