"""The diagonal recurrence on a GPU: Triton kernels behind one custom operator that autograd and torch.compile see whole."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from longseq.ops.diagonal_ssm.discretize import Poles, discretize, multiply, pole_powers
from longseq.ops.diagonal_ssm.layout import align
from longseq.ops.diagonal_ssm.triton_kernels import (
    carry_rows,
    from_channels,
    gradients,
    make_operators,
    outputs,
    parameter_gradients,
    row_passes,
    to_channels,
)

_LARGEST_STATE = 64
# Positions of a chunk, and the smallest one that a tensor-core product takes.
CHUNK, _SMALLEST_CHUNK = 64, 16


class Tile(NamedTuple):
    """Rows (of chunks) that a program runs side by side, its warps, and chunks in flight."""

    rows: int
    warps: int
    stages: int


# By kernel; measured for 16-bit inputs on an H100 (README.md).
TILES = {"passes": Tile(64, 4, 3), "outputs": Tile(64, 4, 3), "gradients": Tile(64, 8, 2)}
_TILES_FP32 = {"passes": Tile(32, 4, 2), "outputs": Tile(32, 4, 2), "gradients": Tile(32, 8, 1)}
# Positions by channels of a transposed tile.
TRANSPOSE = {"places": 128, "channels": 64, "warps": 8}
# Programs that keep a large GPU busy.
PROGRAMS = 1024


def diagonal_ssm_triton(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None = None,
    D_D: Tensor | None = None,
    *,
    discretization: str = "zoh",
    initial_state_BDN2: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Triton form of `longseq.ops.diagonal_ssm.diagonal_ssm`; see there. The kernels choose their own chunk size."""
    del chunk_size
    reason = supports(x_BLD, dt_D, A_real_DN)
    if reason is not None:
        raise ValueError(f"implementation='triton': {reason}; use 'auto' or 'chunked'")
    B_DN2 = None if B_DN2 is None else B_DN2.float()
    poles = discretize(dt_D.float(), A_real_DN.float(), A_imag_DN.float(), B_DN2, discretization)
    initial_BDN2 = None if initial_state_BDN2 is None else initial_state_BDN2.float()
    y_BLD, state_BDN2, tail_BT = torch.ops.longseq.diagonal_ssm(
        x_BLD,
        poles.log_size_DN,
        poles.angle_DN,
        poles.input_DN2,
        C_DN2.float(),
        None if D_D is None else D_D.float(),
        initial_BDN2,
        mask_BL,
        segment_ids_BL,
        reverse,
    )
    # Whole chunks end where the sequence does.
    if mask_BL is None and segment_ids_BL is None and x_BLD.shape[1] % CHUNK == 0:
        return y_BLD, state_BDN2
    return y_BLD, _finish(poles, state_BDN2, x_BLD, tail_BT)


def _finish(poles: Poles, state_BDN2: Tensor, x_BLD: Tensor, tail_BT: Tensor) -> Tensor:
    """The last chunk's positions (their places in x, right-aligned, -1 before them) put into the state entering it."""
    size = tail_BT.shape[1]
    real_BT = tail_BT >= 0
    row_B1 = torch.arange(x_BLD.shape[0], device=x_BLD.device).unsqueeze(1)
    x_BTD = x_BLD[row_B1, tail_BT.clamp(min=0)].masked_fill(~real_BT.unsqueeze(-1), 0.0)
    in_DNT2 = multiply(poles.input_DN2.unsqueeze(2), pole_powers(poles, size).flip(2))
    made_BDN2 = torch.einsum("btd,dntc->bdnc", x_BTD.float(), in_DNT2)
    steps_B11 = real_BT.sum(1).float()[:, None, None]
    size_BDN, angle_BDN = torch.exp(poles.log_size_DN * steps_B11), poles.angle_DN * steps_B11
    power_BDN2 = torch.stack([size_BDN * torch.cos(angle_BDN), size_BDN * torch.sin(angle_BDN)], dim=-1)
    return multiply(power_BDN2, state_BDN2) + made_BDN2


def supports(x_BLD: Tensor, dt_D: Tensor, A_real_DN: Tensor, *_: Any, **__: Any) -> str | None:
    """Why these arguments of `diagonal_ssm_triton` cannot be run, or None."""
    if x_BLD.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"diagonal_ssm has no kernel for {x_BLD.dtype}"
    if A_real_DN.dtype == torch.float64:
        return "diagonal_ssm has no kernel for float64 parameters"
    if A_real_DN.shape[1] > _LARGEST_STATE:
        return f"diagonal_ssm has kernels for up to {_LARGEST_STATE} pairs, found {A_real_DN.shape[1]}"
    return None


def self_check() -> float:
    """The largest relative error of outputs, state and gradients against the chunked form, on a tiny input."""
    from longseq.ops.diagonal_ssm.chunked import diagonal_ssm_chunked

    generator, width, modes = torch.Generator().manual_seed(0), 3, 4

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    given = [random(2, 150, width), random(width).mul(0.3).exp() * 0.05, -random(width, modes).exp(), random(width, modes)]
    given += [random(width, modes, 2), random(width, modes, 2), random(width), random(2, width, modes, 2)]
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    leaves = [t.to(device).requires_grad_() for t in given]
    results = []
    for run in (diagonal_ssm_triton, diagonal_ssm_chunked):
        y, state = run(*leaves[:7], initial_state_BDN2=leaves[7])
        results.append([y.detach(), state.detach(), *torch.autograd.grad(y.square().sum() + state.square().sum(), leaves)])
    pairs = zip(*results, strict=True)
    return max(float((found - expected).norm() / expected.norm().clamp(min=1e-6)) for found, expected in pairs)


class _Plan:
    """Where positions stand while the kernels run: slots of a row, rows of chunks, restarts."""

    def __init__(
        self, x_BLD: Tensor, modes: int, mask_BL: Tensor | None, segment_ids_BL: Tensor | None, reverse: bool
    ) -> None:
        self.batch, self.length, self.width = x_BLD.shape
        self.device, self.dtype, self.modes, self.reverse = x_BLD.device, x_BLD.dtype, modes, reverse
        self.fp32 = x_BLD.dtype == torch.float32
        self.N = max(16, triton.next_power_of_2(modes))
        self.T = CHUNK
        if reverse:
            mask_BL, segment_ids_BL = (None if t is None else t.flip(1) for t in (mask_BL, segment_ids_BL))
        self.slot = self.source = self.fresh = self.open = self.broken = None
        fresh_Bc = None
        n_chunks = triton.cdiv(self.length, self.T)
        if segment_ids_BL is not None:
            layout = align(mask_BL, segment_ids_BL, CHUNK, _SMALLEST_CHUNK)
            self.T, n_chunks = layout.chunk_size, layout.n_slots // layout.chunk_size
            slot_BL, end_B, fresh_Bc = layout.slot_BL, layout.end_B, layout.fresh_Bc
        elif mask_BL is not None:
            place_BL = mask_BL.long().cumsum(1)
            slot_BL, end_B = (place_BL - 1).masked_fill(~mask_BL, n_chunks * self.T), place_BL[:, -1]
        else:
            slot_BL, end_B = None, torch.full((self.batch,), self.length, dtype=torch.long, device=self.device)
        rows = max(1, min(n_chunks, self.tile("outputs").rows * triton.cdiv(PROGRAMS, self.width) // self.batch))
        self.count = triton.cdiv(n_chunks, rows)
        self.rows_per_batch = triton.cdiv(n_chunks, self.count)
        self.n_rows = self.batch * self.rows_per_batch
        self.n_chunks = self.rows_per_batch * self.count
        self.n_slots = self.n_chunks * self.T
        self.end_chunk, self.end_rest = (end_B // self.T).int(), end_B % self.T
        if slot_BL is not None:
            self._place(slot_BL, n_chunks * self.T)
        if fresh_Bc is not None:
            fresh = torch.zeros(self.batch, self.n_chunks, dtype=torch.bool, device=self.device)
            fresh[:, :n_chunks] = fresh_Bc
            fresh_Rc = fresh.view(self.n_rows, self.count)
            self.fresh = fresh_Rc.to(torch.uint8)
            self.broken = fresh_Rc.any(1).to(torch.uint8)
            self.open = (fresh_Rc.int().cumsum(1) == 0).to(torch.uint8)

    def _place(self, slot_BL: Tensor, spare: int) -> None:
        """Slots of positions (-1 for the masked ones), and positions of slots (-1 for the empty ones)."""
        place_BL = torch.arange(self.length, dtype=torch.int32, device=self.device).expand(self.batch, -1)
        source_BS = torch.full((self.batch, max(self.n_slots, spare) + 1), -1, dtype=torch.int32, device=self.device)
        source_BS.scatter_(1, slot_BL, place_BL)
        self.source = source_BS[:, : self.n_slots].contiguous()
        if self.n_slots > spare:
            self.source[:, spare:] = -1
        self.slot = slot_BL.masked_fill(slot_BL >= spare, -1).int()

    def tail(self) -> Tensor:
        """(B, chunk): places in x of the positions after the last whole chunk, right-aligned; -1 where there are fewer."""
        back_T = torch.arange(CHUNK, device=self.device) - CHUNK
        slot_BT = (self.end_chunk.long() * self.T + self.end_rest).unsqueeze(1) + back_T
        valid_BT = back_T >= -self.end_rest.unsqueeze(1)
        place_BT = slot_BT
        if self.source is not None:
            place_BT = self.source.long().gather(1, slot_BT.clamp(0, self.n_slots - 1))
        if self.reverse:
            place_BT = self.length - 1 - place_BT
        return place_BT.masked_fill(~valid_BT, -1)

    def tile(self, kernel: str) -> Tile:
        tile = _TILES_FP32[kernel] if self.fp32 else TILES[kernel]
        return tile if self.N <= 32 else tile._replace(rows=max(16, tile.rows // 2))

    def groups(self, tile: Tile) -> tuple[int, int]:
        """Rows of a program, no more than there are, and programs a channel."""
        rows = min(tile.rows, max(16, triton.next_power_of_2(self.n_rows)))
        return rows, triton.cdiv(self.n_rows, rows)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    @property
    def precision(self) -> str:
        # Three TF32 products keep fp32's accuracy; the option says nothing about 16-bit inputs.
        return "tf32x3" if self.fp32 else "tf32"

    def to_channels(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD.contiguous()
        x_DBS = self.empty(self.width, self.batch, self.n_slots, dtype=self.dtype)
        slots, channels = TRANSPOSE["places"], TRANSPOSE["channels"]
        to_channels[(triton.cdiv(self.n_slots, slots), triton.cdiv(self.width, channels), self.batch)](
            x_BLD, x_DBS, x_BLD if self.source is None else self.source, self.length, self.width, self.n_slots,
            self.source is not None, self.reverse, slots, channels, num_warps=TRANSPOSE["warps"],
        )  # fmt: skip
        return x_DBS

    def from_channels(self, y_DBS: Tensor) -> Tensor:
        y_BLD = self.empty(self.batch, self.length, self.width, dtype=self.dtype)
        places, channels = TRANSPOSE["places"], TRANSPOSE["channels"]
        from_channels[(triton.cdiv(self.length, places), triton.cdiv(self.width, channels), self.batch)](
            y_DBS, y_BLD, y_DBS if self.slot is None else self.slot, self.length, self.width, self.n_slots,
            self.slot is not None, self.reverse, places, channels, num_warps=TRANSPOSE["warps"],
        )  # fmt: skip
        return y_BLD

    def pairs_in(self, state_BDN2: Tensor) -> Tensor:
        """(B, D, N, 2) -> (B, D, 2, N) with the padding that the kernels want."""
        out = torch.zeros(self.batch, self.width, 2, self.N, dtype=torch.float32, device=self.device)
        out[..., : self.modes] = state_BDN2.transpose(2, 3)
        return out

    def pairs_out(self, state_BD2N: Tensor) -> Tensor:
        return state_BD2N[..., : self.modes].transpose(2, 3).contiguous()


class _Model:
    """One call's parameters and the launches of its kernels."""

    def __init__(
        self, plan: _Plan, log_size: Tensor, angle: Tensor, input_DN2: Tensor, C_DN2: Tensor, D_D: Tensor | None
    ) -> None:
        self.plan = plan
        self.log_size, self.angle = log_size.contiguous(), angle.contiguous()
        self.input, self.output = input_DN2.contiguous(), C_DN2.contiguous()
        width, T, N = plan.width, plan.T, plan.N
        self.taps_DT = plan.empty(width, T)
        self.in_D2TN, self.out_D2TN = (plan.empty(width, 2, T, N, dtype=plan.dtype) for _ in range(2))
        make_operators[(width,)](
            self.log_size, self.angle, self.input, self.output, self.input if D_D is None else D_D,
            self.taps_DT, self.in_D2TN, self.out_D2TN, plan.modes, D_D is not None, T, N,
        )  # fmt: skip

    def rows(self, x: Tensor, inject: Tensor | None, keep_states: bool) -> tuple[Tensor, Tensor]:
        """What rows leave behind from zero states (adjoints, if `inject` is given), and the states entering chunks."""
        plan, adjoint = self.plan, inject is not None
        tile = plan.tile("passes")
        size, n_groups = plan.groups(tile)
        leaving = plan.empty(plan.width, plan.n_rows, 2, plan.N)
        states = plan.empty(plan.width, plan.n_rows, plan.count, 2, plan.N, dtype=plan.dtype) if keep_states else leaving
        row_passes[(plan.width * n_groups,)](
            x, self.out_D2TN if adjoint else self.in_D2TN, self.log_size, self.angle,
            x if plan.fresh is None else plan.fresh, plan.end_chunk, x if inject is None else inject, leaving, states,
            plan.modes, plan.n_rows, plan.count, n_groups, plan.rows_per_batch,
            plan.T, plan.N, size, adjoint, plan.fresh is not None, keep_states, plan.precision,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return leaving, states

    def carry(self, leaving: Tensor, initial: Tensor | None, adjoint: bool) -> tuple[Tensor, Tensor]:
        """The states entering rows, and the state after the last row (before the first one, as adjoints)."""
        plan = self.plan
        entering = torch.empty_like(leaving)
        last = plan.empty(plan.batch, plan.width, 2, plan.N)
        carry_rows[(plan.width, plan.batch)](
            leaving, self.log_size, self.angle, leaving if plan.broken is None else plan.broken,
            leaving if initial is None else initial, plan.end_chunk, entering, last,
            plan.modes, plan.n_rows, plan.rows_per_batch, plan.width, plan.count * plan.T, plan.n_chunks,
            plan.N, adjoint, initial is not None, plan.fresh is not None, min(8, plan.rows_per_batch), num_warps=1,
        )  # fmt: skip
        return entering, last

    def forward(self, x_DBS: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        plan = self.plan
        entering, last = self.carry(self.rows(x_DBS, None, False)[0], initial, False)
        tile = plan.tile("outputs")
        size, n_groups = plan.groups(tile)
        y_DBS = torch.empty_like(x_DBS)
        outputs[(plan.width * n_groups,)](
            x_DBS, y_DBS, self.taps_DT, self.in_D2TN, self.out_D2TN, self.log_size, self.angle,
            x_DBS if plan.fresh is None else plan.fresh, plan.end_chunk, entering, last,
            plan.modes, plan.n_rows, plan.count, n_groups, plan.rows_per_batch,
            plan.T, plan.N, size, plan.fresh is not None, plan.precision, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return y_DBS, last

    def backward(self, x_DBS: Tensor, dy_DBS: Tensor, initial: Tensor | None, inject: Tensor) -> tuple[Tensor, ...]:
        plan = self.plan
        leaving, states = self.rows(x_DBS, None, True)
        entering, _ = self.carry(leaving, initial, False)
        adjoint, dinitial = self.carry(self.rows(dy_DBS, inject, False)[0], inject, True)
        tile = plan.tile("gradients")
        size, n_groups = plan.groups(tile)
        parts, T, N = plan.width * n_groups, plan.T, plan.N
        part_taps, part_step = plan.empty(parts, T, T), plan.empty(parts, 2, N)
        part_in, part_out = (plan.empty(parts, 2, T, N) for _ in range(2))
        dx_DBS = torch.empty_like(x_DBS)
        gradients[(parts,)](
            x_DBS, dy_DBS, dx_DBS, self.taps_DT, self.in_D2TN, self.out_D2TN, self.log_size, self.angle,
            x_DBS if plan.fresh is None else plan.fresh, x_DBS if plan.open is None else plan.open, plan.end_chunk, inject,
            states, entering, adjoint, part_taps, part_in, part_out, part_step,
            plan.modes, plan.n_rows, plan.count, n_groups, plan.rows_per_batch,
            T, N, size, plan.fresh is not None, plan.precision, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        dlog_size, dangle = torch.empty_like(self.log_size), torch.empty_like(self.angle)
        dinput, doutput, dskip = torch.empty_like(self.input), torch.empty_like(self.output), plan.empty(plan.width)
        parameter_gradients[(plan.width,)](
            self.log_size, self.angle, self.input, self.output, part_taps, part_in, part_out, part_step,
            dlog_size, dangle, dinput, doutput, dskip, plan.modes, n_groups, T, N, num_warps=8,
        )  # fmt: skip
        return dx_DBS, dlog_size, dangle, dinput, doutput, dskip, dinitial


@torch.library.custom_op("longseq::diagonal_ssm", mutates_args=())
def _forward(
    x_BLD: Tensor,
    log_size_DN: Tensor,
    angle_DN: Tensor,
    input_DN2: Tensor,
    C_DN2: Tensor,
    D_D: Tensor | None,
    initial_BDN2: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the state entering the chunk in which the sequence ends, and that chunk's positions (`_Plan.tail`)."""
    plan = _Plan(x_BLD, log_size_DN.shape[1], mask_BL, segment_ids_BL, reverse)
    model = _Model(plan, log_size_DN, angle_DN, input_DN2, C_DN2, D_D)
    initial = None if initial_BDN2 is None else plan.pairs_in(initial_BDN2)
    y_DBS, last = model.forward(plan.to_channels(x_BLD), initial)
    return plan.from_channels(y_DBS), plan.pairs_out(last), plan.tail()


@_forward.register_fake
def _forward_fake(
    x_BLD: Tensor,
    log_size_DN: Tensor,
    angle_DN: Tensor,
    input_DN2: Tensor,
    C_DN2: Tensor,
    D_D: Tensor | None,
    initial_BDN2: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    state_BDN2 = input_DN2.new_empty((x_BLD.shape[0], *input_DN2.shape))
    tail_BT = x_BLD.new_empty((x_BLD.shape[0], CHUNK), dtype=torch.long)
    return torch.empty(x_BLD.shape, dtype=x_BLD.dtype, device=x_BLD.device), state_BDN2, tail_BT


@torch.library.custom_op("longseq::diagonal_ssm_backward", mutates_args=())
def _backward(
    dy_BLD: Tensor | None,
    dstate_BDN2: Tensor | None,
    x_BLD: Tensor,
    log_size_DN: Tensor,
    angle_DN: Tensor,
    input_DN2: Tensor,
    C_DN2: Tensor,
    D_D: Tensor | None,
    initial_BDN2: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, log |z|, arg z, b, C, the skip weight and the initial state."""
    plan = _Plan(x_BLD, log_size_DN.shape[1], mask_BL, segment_ids_BL, reverse)
    model = _Model(plan, log_size_DN, angle_DN, input_DN2, C_DN2, D_D)
    initial = None if initial_BDN2 is None else plan.pairs_in(initial_BDN2)
    if dstate_BDN2 is None:
        inject = torch.zeros(plan.batch, plan.width, 2, plan.N, dtype=torch.float32, device=x_BLD.device)
    else:
        inject = plan.pairs_in(dstate_BDN2)
    dy_BLD = torch.zeros_like(x_BLD) if dy_BLD is None else dy_BLD
    results = model.backward(plan.to_channels(x_BLD), plan.to_channels(dy_BLD), initial, inject)
    return plan.from_channels(results[0]), *results[1:6], plan.pairs_out(results[6])  # type: ignore[return-value]


@_backward.register_fake
def _backward_fake(
    dy_BLD: Tensor | None,
    dstate_BDN2: Tensor | None,
    x_BLD: Tensor,
    log_size_DN: Tensor,
    angle_DN: Tensor,
    input_DN2: Tensor,
    C_DN2: Tensor,
    D_D: Tensor | None,
    initial_BDN2: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x_BLD, log_size_DN, angle_DN, input_DN2, C_DN2))
    dskip_D = input_DN2.new_empty((x_BLD.shape[2],))
    return *like, dskip_D, input_DN2.new_empty((x_BLD.shape[0], *input_DN2.shape))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:9])
    ctx.reverse = inputs[9]


def _differentiate(ctx: Any, dy_BLD: Tensor | None, dstate_BDN2: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.longseq.diagonal_ssm_backward(dy_BLD, dstate_BDN2, *ctx.saved_tensors, ctx.reverse)
    wanted = zip(gradients, ctx.needs_input_grad[:7], strict=True)
    return *(gradient if asked else None for gradient, asked in wanted), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
