"""Diagonal state-space operator: the chunked form against the plain loop, and its kernel against the definition."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.ops.diagonal_ssm import Discretization, diagonal_ssm, diagonal_ssm_kernel, diagonal_ssm_step
from tests.longseq.ops.comparison import assert_all_close, random_rows, run_with_gradients

LENGTHS = [1, 2, 63, 64, 100, 257]


def make_inputs(length: int, seed: int, dtype: torch.dtype = torch.float64, width: int = 3, pairs: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = {
        "x_BLD": normal(2, length, width),
        "dt_D": torch.exp(normal(width) - 3),
        "A_real_DN": -torch.rand(width, pairs, generator=generator, dtype=torch.float64) - 0.1,
        "A_imag_DN": normal(width, pairs) * 10,
        "C_DN2": normal(width, pairs, 2),
        "B_DN2": normal(width, pairs, 2),
        "D_D": normal(width),
        "initial_state_BDN2": normal(2, width, pairs, 2),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("reverse", [False, True])
def test_chunked_matches_reference_in_float64(length: int, discretization: str, reverse: bool) -> None:
    inputs = make_inputs(length, seed=length)
    options: dict[str, Any] = {"discretization": discretization, "reverse": reverse}
    expected = run_with_gradients(diagonal_ssm, inputs, implementation="reference", **options)
    assert_all_close(
        run_with_gradients(diagonal_ssm, inputs, implementation="chunked", chunk_size=32, **options), expected, 1e-10
    )


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("length", [1, 2, 64, 100])
@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize("use_segments", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_masks_and_segments_match_reference(
    length: int, use_mask: bool, use_segments: bool, reverse: bool, traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(length, seed=length + 1)
    mask, segments = random_rows(length, seed=length)
    options: dict[str, Any] = {"mask_BL": mask if use_mask else None, "segment_ids_BL": segments if use_segments else None}
    expected = run_with_gradients(diagonal_ssm, inputs, implementation="reference", reverse=reverse, **options)
    if traced:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = run_with_gradients(diagonal_ssm, inputs, implementation="chunked", chunk_size=16, reverse=reverse, **options)
    assert_all_close(found, expected, 1e-10)


def test_no_position_is_real() -> None:
    inputs = make_inputs(20, seed=2)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    for segments in (None, torch.arange(40).view(2, 20)):
        y, state = diagonal_ssm(**inputs, mask_BL=mask, segment_ids_BL=segments)
        assert torch.equal(y, torch.zeros_like(y))
        assert torch.equal(state, inputs["initial_state_BDN2"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("length", [1, 100, 257])
def test_low_precision_stays_near_float64(dtype: torch.dtype, tolerance: float, length: int) -> None:
    inputs = make_inputs(length, seed=length + 2)
    # Parameters stay fp32, as in a model under mixed precision; only the input is rounded.
    low = {name: tensor.detach().to(dtype if name == "x_BLD" else torch.float32) for name, tensor in inputs.items()}
    exact = run_with_gradients(diagonal_ssm, {k: v.double() for k, v in low.items()}, implementation="reference")
    found = run_with_gradients(diagonal_ssm, low, implementation="chunked")
    assert found["y"].dtype == dtype
    assert found["state"].dtype == torch.float32
    assert_all_close(found, exact, tolerance)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("dt", [1e-4, 1.0, 20.0])
def test_extreme_step_sizes_stay_finite_and_exact(dt: float, discretization: Discretization) -> None:
    inputs = make_inputs(300, seed=3)
    inputs["dt_D"] = torch.full_like(inputs["dt_D"], dt)
    inputs["A_real_DN"] = torch.full_like(inputs["A_real_DN"], -0.5)
    exact = run_with_gradients(diagonal_ssm, inputs, implementation="reference", discretization=discretization)
    found = run_with_gradients(
        diagonal_ssm,
        {k: v.detach().float() for k, v in inputs.items()},
        implementation="chunked",
        discretization=discretization,
    )
    # At dt = 20 an fp32 pole angle of hundreds of turns is itself only known to 1e-5.
    assert_all_close(found, exact, 1e-3 if dt == 20.0 else 5e-5)


def test_pole_at_zero_is_finite() -> None:
    # dt A = -2 puts the bilinear pole at exactly zero.
    inputs = make_inputs(50, seed=4)
    inputs["dt_D"] = torch.full_like(inputs["dt_D"], 2.0)
    inputs["A_real_DN"] = torch.full_like(inputs["A_real_DN"], -1.0)
    inputs["A_imag_DN"] = torch.zeros_like(inputs["A_imag_DN"])
    y, state = diagonal_ssm(**inputs, discretization="bilinear")
    expected = diagonal_ssm(**inputs, discretization="bilinear", implementation="reference")
    torch.testing.assert_close(y, expected[0])
    torch.testing.assert_close(state, expected[1])


def test_nan_under_the_mask_reaches_nothing() -> None:
    inputs = make_inputs(70, seed=5)
    mask, segments = random_rows(70, seed=5)
    both: list[dict[str, Any]] = [{"mask_BL": mask}, {"mask_BL": mask, "segment_ids_BL": segments}]
    for options in both:
        clean = run_with_gradients(diagonal_ssm, inputs, **options)
        poisoned = {name: tensor.detach().clone() for name, tensor in inputs.items()}
        poisoned["x_BLD"][~mask] = float("nan")
        assert_all_close(run_with_gradients(diagonal_ssm, poisoned, **options), clean, 0.0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_unpadded_row(side: str) -> None:
    inputs = make_inputs(90, seed=6)
    mask = torch.zeros(2, 90, dtype=torch.bool)
    mask[0] = True
    keep = slice(37, None) if side == "left" else slice(None, 53)
    mask[1, keep] = True
    y, state = diagonal_ssm(**inputs, mask_BL=mask, chunk_size=16)
    initial = inputs["initial_state_BDN2"][1:]
    row = {**inputs, "x_BLD": inputs["x_BLD"][1:, keep], "initial_state_BDN2": initial}
    y_row, state_row = diagonal_ssm(**row, chunk_size=16)
    torch.testing.assert_close(y[1:, keep], y_row)
    torch.testing.assert_close(state[1:], state_row)


@pytest.mark.parametrize("edges", [[0, 1, 30, 32, 77, 90], list(range(91))])
def test_packed_documents_equal_separate_ones(edges: list[int]) -> None:
    inputs = make_inputs(90, seed=7)
    del inputs["initial_state_BDN2"]
    segments = torch.cat([torch.full((end - start,), -start) for start, end in pairwise(edges)]).expand(2, -1)
    y, state = diagonal_ssm(**inputs, segment_ids_BL=segments, chunk_size=16)
    for start, end in pairwise(edges):
        alone = {**inputs, "x_BLD": inputs["x_BLD"][:, start:end]}
        y_alone, state_alone = diagonal_ssm(**alone, implementation="reference")
        torch.testing.assert_close(y[:, start:end], y_alone)
    torch.testing.assert_close(state, state_alone)


def test_state_carries_over_random_splits_with_gradients() -> None:
    inputs = make_inputs(150, seed=8)
    whole = run_with_gradients(diagonal_ssm, inputs)
    split: dict[str, Any] = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    cuts = [0, *sorted(torch.randperm(149, generator=torch.Generator().manual_seed(9))[:5].add(1).tolist()), 150]
    state, ys = split["initial_state_BDN2"], []
    for start, end in pairwise(cuts):
        y, state = diagonal_ssm(**{**split, "x_BLD": split["x_BLD"][:, start:end], "initial_state_BDN2": state}, chunk_size=16)
        ys.append(y)
    y = torch.cat(ys, dim=1)
    generator = torch.Generator().manual_seed(7)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in (y, state))
    gradients = torch.autograd.grad(loss, list(split.values()))  # type: ignore[arg-type]
    found = {"y": y, "state": state} | {f"d{k}": v for k, v in zip(split, gradients, strict=True)}
    assert_all_close(found, whole, 1e-10)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_steps_equal_the_whole(discretization: Discretization) -> None:
    inputs = make_inputs(20, seed=10)
    y, final = diagonal_ssm(**inputs, discretization=discretization)
    state = inputs.pop("initial_state_BDN2")
    x = inputs.pop("x_BLD")
    for t in range(20):
        y_t, state = diagonal_ssm_step(x[:, t], **inputs, discretization=discretization, state_BDN2=state)
        torch.testing.assert_close(y_t, y[:, t])
    torch.testing.assert_close(state, final)


def dense_kernel(inputs: dict[str, Any], channel: int, length: int, discretization: str) -> Tensor:
    """The definition: a real 2N x 2N system, discretised by a matrix exponential or by bilinear solves."""
    dt = inputs["dt_D"][channel]
    real, imag = torch.diag(inputs["A_real_DN"][channel]), torch.diag(inputs["A_imag_DN"][channel])
    A = torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])
    B = inputs["B_DN2"][channel].T.flatten().unsqueeze(1)
    C = 2 * torch.cat([inputs["C_DN2"][channel][:, 0], -inputs["C_DN2"][channel][:, 1]])
    size = A.shape[0]
    if discretization == "zoh":
        both = torch.linalg.matrix_exp(torch.cat([torch.cat([A, B], 1), torch.zeros(1, size + 1, dtype=A.dtype)]) * dt)
        A_bar, state = both[:size, :size], both[:size, size]
    else:
        below = torch.eye(size, dtype=A.dtype) - dt / 2 * A
        A_bar = torch.linalg.solve(below, torch.eye(size, dtype=A.dtype) + dt / 2 * A)
        state = torch.linalg.solve(below, dt * B).squeeze(1)
    taps = []
    for _ in range(length):
        taps.append(C @ state)
        state = A_bar @ state
    return torch.stack(taps)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_kernel_is_the_definition(discretization: Discretization) -> None:
    inputs = {name: tensor.detach() for name, tensor in make_inputs(1, seed=11).items()}
    parameters = [inputs[name] for name in ("dt_D", "A_real_DN", "A_imag_DN", "C_DN2")]
    taps = diagonal_ssm_kernel(*parameters, length=1024, B_DN2=inputs["B_DN2"], discretization=discretization)
    low = diagonal_ssm_kernel(
        *(p.float() for p in parameters), length=1024, B_DN2=inputs["B_DN2"].float(), discretization=discretization
    )
    for channel in range(3):
        expected = dense_kernel(inputs, channel, 1024, discretization)
        torch.testing.assert_close(taps[channel], expected, rtol=1e-8, atol=1e-11)
        assert (low[channel].double() - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("length", [1, 2, 3, 10, 1000])
def test_kernel_gives_the_outputs_at_any_length(length: int) -> None:
    inputs = make_inputs(length, seed=12)
    del inputs["initial_state_BDN2"], inputs["D_D"]
    y, _ = diagonal_ssm(**inputs)
    x = inputs.pop("x_BLD")
    B = inputs.pop("B_DN2")
    taps_DL = diagonal_ssm_kernel(*inputs.values(), length=length, B_DN2=B)
    spectrum = torch.fft.rfft(taps_DL, 2 * length) * torch.fft.rfft(x.transpose(1, 2), 2 * length)
    torch.testing.assert_close(torch.fft.irfft(spectrum, 2 * length)[..., :length].transpose(1, 2), y)


def test_exports_with_dynamic_batch_and_length() -> None:
    inputs = {k: v.detach().float() for k, v in make_inputs(1, seed=13).items()}
    parameters = [inputs[name] for name in ("dt_D", "A_real_DN", "A_imag_DN", "C_DN2", "B_DN2", "D_D")]

    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            return diagonal_ssm(x, *parameters, mask_BL=mask)

    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=1, max=1 << 20)
    sample = (torch.randn(2, 70, 3), torch.ones(2, 70, dtype=torch.bool))
    program = torch.export.export(Wrapped(), sample, dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}))
    mask = torch.rand(3, 1100, generator=torch.Generator().manual_seed(1)) > 0.2
    x = torch.randn(3, 1100, 3, generator=torch.Generator().manual_seed(2))
    for found, expected in zip(program.module()(x, mask), Wrapped()(x, mask), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_autocast_keeps_the_recurrence_in_fp32() -> None:
    inputs = {k: v.detach().float() for k, v in make_inputs(80, seed=14).items()}
    y, state = diagonal_ssm(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_auto, state_auto = diagonal_ssm(**inputs)
    torch.testing.assert_close(y_auto, y)
    torch.testing.assert_close(state_auto, state)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"implementation": "fft"}, ValueError, "implementation='fft'"),
        ({"discretization": "euler"}, ValueError, "discretization='euler'"),
        ({"chunk_size": 0}, ValueError, "chunk_size=0"),
        ({"dt_D": torch.ones(2)}, ValueError, "dt_D: expected shape"),
        ({"C_DN2": torch.ones(3, 5, 2)}, ValueError, "C_DN2: expected shape"),
        ({"mask_BL": torch.ones(2, 8)}, TypeError, "mask_BL"),
        ({"mask_BL": torch.ones(2, 7, dtype=torch.bool)}, ValueError, "mask_BL"),
        ({"segment_ids_BL": torch.ones(2, 8)}, TypeError, "segment_ids_BL"),
        ({"initial_state_BDN2": torch.ones(1, 3, 4, 2)}, ValueError, "initial_state_BDN2"),
        ({"x_BLD": torch.ones(2, 8, 3, dtype=torch.int64)}, TypeError, "x_BLD"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    inputs = make_inputs(8, seed=15, dtype=torch.float32)
    with pytest.raises(error, match=message):
        diagonal_ssm(**{**inputs, **change})


def test_unavailable_triton_is_an_error() -> None:
    with pytest.raises(ValueError, match="not available"):
        diagonal_ssm(**make_inputs(4, seed=16), implementation="triton")


def test_backward_keeps_the_input_and_one_state_per_chunk() -> None:
    def saved_bytes(length: int) -> int:
        inputs = {k: v.detach().float().requires_grad_() for k, v in make_inputs(length, seed=17, width=8).items()}
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y, _ = diagonal_ssm(**inputs, chunk_size=64)
        del y
        return sum(storages.values())

    # Per position: x, in fp32, and 2N = 8 numbers of state per channel and 64 positions.
    per_position = (saved_bytes(8192) - saved_bytes(4096)) / 4096
    rows, channels = 2, 8
    assert per_position <= 1.05 * 4 * rows * channels * (1 + 8 / 64)
