"""The launches of the diagonal recurrence's kernels, forward and backward."""

import torch
from torch import Tensor

from longseq.ops.diagonal_ssm import triton_choices as choices
from longseq.ops.diagonal_ssm.triton_kernels import carry_rows, gradients, outputs, row_passes
from longseq.ops.diagonal_ssm.triton_parameters import (
    finish_gradients,
    finish_states,
    inject_states,
    make_operators,
    parameter_gradients,
)
from longseq.ops.diagonal_ssm.triton_plan import Plan
from longseq.ops.diagonal_ssm.triton_poles import POLE_ROWS
from longseq.ops.triton_launch import prepare


class Model:
    """One call's parameters, and the operators of its chunks made from them.

    A kernel that does not use a pointer still needs one to be handed over: any tensor at hand.
    """

    def __init__(
        self,
        plan: Plan,
        dt_D: Tensor,
        A_real_DN: Tensor,
        A_imag_DN: Tensor,
        C_DN2: Tensor,
        B_DN2: Tensor | None,
        D_D: Tensor | None,
        bilinear: bool,
        *,
        far: bool,
    ) -> None:
        self.plan, self.bilinear = plan, bilinear
        self.dt, self.real, self.imag, self.output = (t.contiguous() for t in (dt_D, A_real_DN, A_imag_DN, C_DN2))
        self.has_input, self.has_skip = B_DN2 is not None, D_D is not None
        self.input = self.output if B_DN2 is None else B_DN2.contiguous()
        self.skip = self.dt if D_D is None else D_D.contiguous()
        width, T, N = plan.width, plan.T, plan.N
        self.taps_DT = plan.empty(width, T)
        both_D2TN = plan.empty(2, width, 2, T, N, dtype=plan.dtype)
        self.in_D2TN, self.out_D2TN = both_D2TN[0], both_D2TN[1]
        self.poles = plan.empty(width, int(POLE_ROWS.value), N)
        self.turns = plan.empty(width, N, dtype=torch.float64)
        self.far = plan.empty(width, plan.count, 2, N) if far else self.poles
        self.end = self.dt if plan.end is None else plan.end
        self.has_ends, self.has_fresh = plan.end is not None, plan.fresh is not None
        constants = (bilinear, self.has_input, self.has_skip, far, T, N)
        prepare(make_operators, (width,), (plan.modes, plan.count), constants)(
            self.dt, self.real, self.imag, self.input, self.output, self.skip,
            self.taps_DT, self.in_D2TN, self.out_D2TN, self.poles, self.turns, self.far,
        )  # fmt: skip

    def rows(self, x: Tensor, inject: Tensor | None, *, adjoint: bool, keep_states: bool) -> tuple[Tensor, Tensor]:
        """What rows leave behind from zero states (or adjoints), and the states entering chunks."""
        plan = self.plan
        tile = plan.tile("passes")
        size, n_groups = plan.groups(tile)
        leaving = plan.empty(plan.width, plan.n_rows, 2, plan.N)
        states = plan.empty(plan.width, plan.n_rows, plan.count, 2, plan.N, dtype=plan.dtype) if keep_states else leaving
        has = (self.has_fresh, self.has_ends, inject is not None, keep_states)
        constants = (plan.T, plan.N, size, adjoint, *has, plan.precision)
        prepare(row_passes, (plan.width * n_groups,), plan.numbers(n_groups), constants, *tile[1:])(
            x, self.out_D2TN if adjoint else self.in_D2TN, self.poles, self.turns,
            x if plan.fresh is None else plan.fresh, self.end, x if inject is None else inject, leaving, states,
        )  # fmt: skip
        return leaving, states

    def carry(self, leaving: Tensor, initial: Tensor | None, *, adjoint: bool) -> tuple[Tensor, Tensor]:
        """The states entering rows, and the state after the last row (as adjoints: before the first one)."""
        plan = self.plan
        entering = torch.empty_like(leaving)
        last = plan.empty(plan.batch, plan.width, *((plan.modes, 2) if adjoint else (2, plan.N)))
        numbers = (plan.modes, plan.length, plan.n_rows, plan.rows_per_batch, plan.width, plan.count)
        constants = (plan.T, plan.N, adjoint, initial is not None, self.has_fresh, self.has_ends, choices.UNROLL)
        prepare(carry_rows, (plan.width, plan.batch), numbers, constants, 1)(
            leaving, self.poles, self.turns, leaving if plan.broken is None else plan.broken,
            leaving if initial is None else initial, self.end, entering, last,
        )  # fmt: skip
        return entering, last

    def forward(self, x_DBS: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        """y, and the state entering the chunk in which each sequence ends."""
        plan = self.plan
        entering, last = self.carry(self.rows(x_DBS, None, adjoint=False, keep_states=False)[0], initial, adjoint=False)
        tile = plan.tile("outputs")
        size, n_groups = plan.groups(tile)
        y_DBS = torch.empty_like(x_DBS)
        constants = (plan.T, plan.N, size, self.has_fresh, self.has_ends, plan.precision)
        prepare(outputs, (plan.width * n_groups,), plan.numbers(n_groups), constants, *tile[1:])(
            x_DBS, y_DBS, self.taps_DT, self.in_D2TN, self.out_D2TN, self.poles, self.turns,
            x_DBS if plan.fresh is None else plan.fresh, self.end, entering, last,
        )  # fmt: skip
        return y_DBS, last

    def finish(self, last: Tensor, x_DBS: Tensor) -> Tensor:
        """The final state (B, D, modes, 2)."""
        plan = self.plan
        state_BDN2 = plan.empty(plan.batch, plan.width, plan.modes, 2)
        numbers, constants = (plan.modes, plan.length, plan.n_slots), (self.has_ends, plan.T, plan.N)
        launch = prepare(finish_states, (plan.width, plan.batch), numbers, constants)
        launch(last, x_DBS, self.poles, self.turns, self.end, state_BDN2)
        return state_BDN2

    def backward(
        self, x_DBS: Tensor, dy_DBS: Tensor, initial: Tensor | None, dstate: Tensor | None, last: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of x, dt, Re A, Im A, C, B, the skip weight and the initial state."""
        plan = self.plan
        inject = None if dstate is None else self._inject(dstate)
        leaving, states = self.rows(x_DBS, None, adjoint=False, keep_states=True)
        entering, _ = self.carry(leaving, initial, adjoint=False)
        leaving, _ = self.rows(dy_DBS, inject, adjoint=True, keep_states=False)
        adjoint, dinitial = self.carry(leaving, inject, adjoint=True)
        tile = plan.tile("gradients")
        size, n_groups = plan.groups(tile)
        parts, T, N = plan.width * n_groups, plan.T, plan.N
        part_taps, part_step = plan.empty(parts, T, T), plan.empty(parts, 2, N)
        part_in, part_out = plan.empty(parts, 2, T, N), plan.empty(parts, 2, T, N)
        dx_DBS = torch.empty_like(x_DBS)
        constants = (T, N, size, self.has_fresh, self.has_ends, inject is not None, plan.precision)
        prepare(gradients, (2 * parts,), plan.numbers(n_groups), constants, *tile[1:])(
            x_DBS, dy_DBS, dx_DBS, self.taps_DT, self.in_D2TN, self.out_D2TN, self.poles, self.turns, self.far,
            x_DBS if plan.fresh is None else plan.fresh, x_DBS if plan.open is None else plan.open, self.end,
            x_DBS if inject is None else inject, states, entering, adjoint, part_taps, part_in, part_out, part_step,
        )  # fmt: skip
        part_end = part_step if dstate is None else self._finish_gradients(dstate, last, x_DBS, dx_DBS)
        given = (self.dt, self.real, self.imag, self.output)
        ddt, dreal, dimag, doutput = (torch.empty_like(t) for t in given)
        dinput = torch.empty_like(self.input) if self.has_input else self.output.new_empty(0)
        dskip = torch.empty_like(self.skip) if self.has_skip else self.output.new_empty(0)
        constants = (self.bilinear, self.has_input, self.has_skip, dstate is not None, T, N)
        prepare(parameter_gradients, (plan.width,), (plan.modes, n_groups, plan.batch), constants, 8)(
            self.dt, self.real, self.imag, self.input, self.output, self.poles, self.turns,
            part_taps, part_in, part_out, part_step, part_end, ddt, dreal, dimag, dinput, doutput, dskip,
        )  # fmt: skip
        return dx_DBS, ddt, dreal, dimag, doutput, dinput, dskip, dinitial

    def _inject(self, dstate: Tensor) -> Tensor:
        plan = self.plan
        inject = plan.empty(plan.batch, plan.width, 2, plan.N)
        numbers, constants = (plan.modes, plan.length), (self.has_ends, plan.T, plan.N)
        launch = prepare(inject_states, (plan.width, plan.batch), numbers, constants, 1)
        launch(dstate, self.poles, self.turns, self.end, inject)
        return inject

    def _finish_gradients(self, dstate: Tensor, last: Tensor, x_DBS: Tensor, dx_DBS: Tensor) -> Tensor:
        plan = self.plan
        part = plan.empty(plan.width, plan.batch, 4, plan.N)
        numbers, constants = (plan.modes, plan.length, plan.n_slots), (self.has_ends, plan.T, plan.N)
        launch = prepare(finish_gradients, (plan.width, plan.batch), numbers, constants)
        launch(dstate, last, x_DBS, dx_DBS, self.poles, self.turns, self.end, part)
        return part
