"""The diagonal recurrence on a GPU: Triton kernels behind one custom operator that autograd and torch.compile see whole."""

from typing import Any

import torch
from torch import Tensor

from longseq.ops.diagonal_ssm.triton_model import Model
from longseq.ops.diagonal_ssm.triton_plan import Plan, padded_modes
from longseq.ops.eager import without_dispatcher
from longseq.ops.self_check import largest_error
from longseq.ops.tracing import runs_eagerly
from longseq.ops.triton_launch import on_device

_LARGEST_STATE = 64


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
    inputs = (x_BLD, dt_D, A_real_DN, A_imag_DN, C_DN2, B_DN2, D_D, initial_state_BDN2, mask_BL, segment_ids_BL)
    options = (discretization == "bilinear", reverse)
    if not runs_eagerly(x_BLD):
        return torch.ops.longseq.diagonal_ssm(*inputs, *options)[:2]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _eager(*inputs, *options)[:2]
    return _run_forward(*inputs, *options)[:2]


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
    """The largest relative error of outputs and gradients against the chunked form.

    It runs the variants that a training step in bf16 runs, so that nothing is compiled for the check alone: with as many
    positions and channels as fill their tiles twice.
    """
    from longseq.ops.diagonal_ssm.chunked import diagonal_ssm_chunked

    generator, width, modes, length = torch.Generator().manual_seed(0), 1024, 32, 4096

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    values = [random(2, length, width).bfloat16(), random(width).mul(0.3).exp() * 0.05, -random(width, modes).exp()]
    values += [random(width, modes), random(width, modes, 2), random(width)]
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    values = [v.to(device) for v in values]
    return largest_error(
        lambda *given: diagonal_ssm_triton(*given[:5], D_D=given[5])[0],
        lambda *given: diagonal_ssm_chunked(*given[:5], D_D=given[5])[0],
        [values],
        lambda: _run_both(values, values[0]),
    )


def _run_both(given: list[Tensor], dy_BLD: Tensor) -> None:
    """The launches of forward and backward, in this thread."""
    arguments: tuple[Any, ...] = (*given[:5], None, given[5], None, None, None, False, False)
    _run_backward(dy_BLD, None, _run_forward(*arguments)[2], *arguments)


def _run_forward(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None,
    D_D: Tensor | None,
    initial_BDN2: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    bilinear: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and the state entering the chunk in which each row ends (B, D, 2, padded N)."""
    with on_device(x_BLD):
        plan = Plan(x_BLD, A_real_DN.shape[1], mask_BL, segment_ids_BL, reverse)
        model = Model(plan, dt_D, A_real_DN, A_imag_DN, C_DN2, B_DN2, D_D, bilinear, far=False)
        initial = None if initial_BDN2 is None else initial_BDN2.float().contiguous()
        x_DBS = plan.to_channels(x_BLD)
        y_DBS, last = model.forward(x_DBS, initial)
        return plan.from_channels(y_DBS), model.finish(last, x_DBS), last


_forward = torch.library.custom_op("longseq::diagonal_ssm", mutates_args=())(_run_forward)


@_forward.register_fake
def _forward_fake(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None,
    D_D: Tensor | None,
    initial_BDN2: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    bilinear: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, (width, modes) = x_BLD.shape[0], A_real_DN.shape
    state_BDN2 = x_BLD.new_empty((batch, width, modes, 2), dtype=torch.float32)
    last = x_BLD.new_empty((batch, width, 2, padded_modes(modes)), dtype=torch.float32)
    return torch.empty(x_BLD.shape, dtype=x_BLD.dtype, device=x_BLD.device), state_BDN2, last


def _run_backward(
    dy_BLD: Tensor | None,
    dstate_BDN2: Tensor | None,
    last: Tensor,
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None,
    D_D: Tensor | None,
    initial_BDN2: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    bilinear: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, Re A, Im A, C, B, the skip weight and the initial state; of B and skip weights left out, empty."""
    with on_device(x_BLD):
        plan = Plan(x_BLD, A_real_DN.shape[1], mask_BL, segment_ids_BL, reverse)
        model = Model(plan, dt_D, A_real_DN, A_imag_DN, C_DN2, B_DN2, D_D, bilinear, far=True)
        initial = None if initial_BDN2 is None else initial_BDN2.float().contiguous()
        dstate = None if dstate_BDN2 is None else dstate_BDN2.contiguous()
        dy_BLD = torch.zeros_like(x_BLD) if dy_BLD is None else dy_BLD
        dx_DBS, *rest, dinitial = model.backward(plan.to_channels(x_BLD), plan.to_channels(dy_BLD), initial, dstate, last)
        dinitial = dinitial if initial_BDN2 is None else dinitial.to(initial_BDN2.dtype)
        return plan.from_channels(dx_DBS), *rest, dinitial  # type: ignore[return-value]


_backward = torch.library.custom_op("longseq::diagonal_ssm_backward", mutates_args=())(_run_backward)


@_backward.register_fake
def _backward_fake(
    dy_BLD: Tensor | None,
    dstate_BDN2: Tensor | None,
    last: Tensor,
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None,
    D_D: Tensor | None,
    initial_BDN2: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    bilinear: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = (x_BLD, dt_D, A_real_DN, A_imag_DN, C_DN2, B_DN2, D_D)
    like = (C_DN2.new_empty(0) if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in given)
    kind = torch.float32 if initial_BDN2 is None else initial_BDN2.dtype
    return *like, x_BLD.new_empty((x_BLD.shape[0], *C_DN2.shape), dtype=kind)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], *inputs[:10])
    ctx.options = inputs[10:]


def _differentiate(ctx: Any, dy_BLD: Tensor | None, dstate_BDN2: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    backward = _run_backward if runs_eagerly(saved[1]) else torch.ops.longseq.diagonal_ssm_backward
    gradients = backward(dy_BLD, dstate_BDN2, *saved, *ctx.options)
    wanted = zip(gradients, ctx.needs_input_grad[:8], strict=True)
    return *(gradient if asked else None for gradient, asked in wanted), *(None,) * 4


_forward.register_autograd(_differentiate, setup_context=_save)


# The same without torch's dispatcher.
_eager = without_dispatcher(_run_forward, _save, _differentiate)
