"""SSD: the chunked form against the plain loop, in outputs, states and every gradient."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.ops.ssd import Implementation, ssd, ssd_step
from tests.longseq.ops.comparison import assert_all_close, random_rows, run_with_gradients

LENGTHS = [1, 2, 63, 64, 100, 257]
SIZES = {"n_batch": 2, "n_heads": 4, "width": 3, "n_groups": 2, "n_state": 5}


def make_inputs(length: int, seed: int, dtype: torch.dtype = torch.float64, **sizes: int) -> dict[str, Any]:
    size = {**SIZES, **sizes}
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    b, h, p, g, n = (size[name] for name in ("n_batch", "n_heads", "width", "n_groups", "n_state"))
    made = {
        "x_BLHP": normal(b, length, h, p),
        "dt_BLH": normal(b, length, h),
        "A_H": -torch.rand(h, generator=generator, dtype=torch.float64) * 4 - 0.1,
        "B_BLGN": normal(b, length, g, n),
        "C_BLGN": normal(b, length, g, n),
        "D_H": normal(h),
        "dt_bias_H": normal(h) - 2,
        "initial_state_BHPN": normal(b, h, p, n),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("reverse", [False, True])
def test_chunked_matches_reference_in_float64(length: int, reverse: bool) -> None:
    inputs = make_inputs(length, seed=length)
    options = {"dt_softplus": True, "reverse": reverse}
    expected = run_with_gradients(ssd, inputs, implementation="reference", **options)
    found = run_with_gradients(ssd, inputs, implementation="chunked", chunk_size=32, **options)
    assert_all_close(found, expected, 1e-11)


@pytest.mark.parametrize("length", [2, 64, 100])
@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize("use_segments", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_masks_and_segments_match_reference(length: int, use_mask: bool, use_segments: bool, reverse: bool) -> None:
    inputs = make_inputs(length, seed=length + 1)
    mask, segments = random_rows(length, seed=length)
    options: dict[str, Any] = {"dt_softplus": True, "reverse": reverse}
    options |= {"mask_BL": mask if use_mask else None, "segment_ids_BL": segments if use_segments else None}
    expected = run_with_gradients(ssd, inputs, implementation="reference", **options)
    assert_all_close(run_with_gradients(ssd, inputs, implementation="chunked", chunk_size=16, **options), expected, 1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("length", [1, 100, 257])
def test_low_precision_stays_near_float64(dtype: torch.dtype, tolerance: float, length: int) -> None:
    # Rounded once, so that only the arithmetic differs and not the inputs.
    inputs = {name: tensor.detach().to(dtype) for name, tensor in make_inputs(length, seed=length + 2).items()}
    exact = run_with_gradients(ssd, {k: v.double() for k, v in inputs.items()}, implementation="reference", dt_softplus=True)
    found = run_with_gradients(ssd, inputs, implementation="chunked", dt_softplus=True)
    assert found["y"].dtype == dtype
    assert found["state"].dtype == torch.float32
    assert_all_close(found, exact, tolerance)


@pytest.mark.parametrize("dt", [1e-4, 1.0, 20.0, "mixed"])
def test_extreme_step_sizes_stay_finite_and_exact(dt: float | str) -> None:
    inputs = make_inputs(200, seed=3)
    sizes = torch.logspace(-4, 1.3, 200, dtype=torch.float64)[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    value = sizes[None, :, None] if dt == "mixed" else torch.tensor(dt, dtype=torch.float64)
    inputs["dt_BLH"] = torch.zeros_like(inputs["dt_BLH"]) + value
    inputs["dt_bias_H"] = torch.zeros_like(inputs["dt_bias_H"])
    inputs["A_H"] = torch.tensor([-16.0, -1.0, -0.01, -4.0], dtype=torch.float64)
    expected = run_with_gradients(ssd, inputs, implementation="reference")
    found = run_with_gradients(ssd, {k: v.detach().float() for k, v in inputs.items()}, implementation="chunked")
    assert_all_close(found, expected, 5e-5)


def test_nan_under_the_mask_reaches_nothing() -> None:
    inputs = make_inputs(70, seed=4)
    mask, _ = random_rows(70, seed=4)
    clean = run_with_gradients(ssd, inputs, mask_BL=mask, dt_softplus=True, implementation="chunked")
    poisoned = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    for name in ("x_BLHP", "dt_BLH", "B_BLGN", "C_BLGN"):
        poisoned[name][~mask] = float("nan")
    found = run_with_gradients(ssd, poisoned, mask_BL=mask, dt_softplus=True, implementation="chunked")
    assert_all_close(found, clean, 0.0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_padded_rows_equal_the_unpadded_row(side: str, implementation: Implementation) -> None:
    inputs = make_inputs(90, seed=5)
    mask = torch.ones(2, 90, dtype=torch.bool)
    keep = slice(37, None) if side == "left" else slice(None, 53)
    mask[1] = False
    mask[1, keep] = True
    y, state = ssd(**inputs, mask_BL=mask, dt_softplus=True, implementation=implementation, chunk_size=16)
    row = {k: v[1:] if k.split("_")[-1].startswith("B") else v for k, v in inputs.items()}
    row = {k: v[:, keep] if "_BL" in k else v for k, v in row.items()}
    y_row, state_row = ssd(**row, dt_softplus=True, implementation=implementation, chunk_size=16)
    torch.testing.assert_close(y[1:, keep], y_row)
    torch.testing.assert_close(state[1:], state_row)


def test_packed_documents_equal_separate_ones() -> None:
    inputs = make_inputs(90, seed=6, n_batch=1)
    del inputs["initial_state_BHPN"]
    edges = [0, 1, 30, 32, 77, 90]
    segments = torch.cat([torch.full((end - start,), -start) for start, end in pairwise(edges)])[None]
    y, state = ssd(**inputs, segment_ids_BL=segments, dt_softplus=True, chunk_size=16)
    for start, end in pairwise(edges):
        alone = {k: v[:, start:end] if "_BL" in k else v for k, v in inputs.items()}
        y_alone, state_alone = ssd(**alone, dt_softplus=True, implementation="reference")
        torch.testing.assert_close(y[:, start:end], y_alone)
    torch.testing.assert_close(state, state_alone)


def test_state_carries_over_random_splits_with_gradients() -> None:
    inputs = make_inputs(150, seed=8)
    whole = run_with_gradients(ssd, inputs, dt_softplus=True)
    split: dict[str, Any] = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    cuts = [0, *sorted(torch.randperm(149, generator=torch.Generator().manual_seed(9))[:5].add(1).tolist()), 150]
    state, ys = split["initial_state_BHPN"], []
    for start, end in pairwise(cuts):
        part: dict[str, Any] = {k: v[:, start:end] if "_BL" in k else v for k, v in split.items()}
        part["initial_state_BHPN"] = state
        y, state = ssd(**part, dt_softplus=True, chunk_size=16)
        ys.append(y)
    y = torch.cat(ys, dim=1)
    generator = torch.Generator().manual_seed(7)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in (y, state))
    gradients = torch.autograd.grad(loss, list(split.values()))  # type: ignore[arg-type]
    found = {"y": y, "state": state} | {f"d{k}": v for k, v in zip(split, gradients, strict=True)}
    assert_all_close(found, whole, 1e-11)


def test_steps_equal_the_whole() -> None:
    inputs = make_inputs(20, seed=10)
    y, final = ssd(**inputs, dt_softplus=True)
    state = inputs["initial_state_BHPN"]
    for t in range(20):
        now = [inputs[name][:, t] if "_BL" in name else inputs[name] for name in list(inputs)[:-1]]
        y_t, state = ssd_step(*now, dt_softplus=True, state_BHPN=state)
        torch.testing.assert_close(y_t, y[:, t])
    torch.testing.assert_close(state, final)


def test_blocks_and_the_traced_form_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(300, seed=11, n_batch=1)
    mask = torch.rand(1, 300, generator=torch.Generator().manual_seed(2)) > 0.1
    expected = run_with_gradients(ssd, inputs, mask_BL=mask, dt_softplus=True, implementation="reference")
    monkeypatch.setattr("longseq.ops.ssd.chunked.CPU_BLOCK_ELEMENTS", 200)
    assert_all_close(run_with_gradients(ssd, inputs, mask_BL=mask, dt_softplus=True, chunk_size=4), expected, 1e-11)
    # 150 chunks of 2: the traced form passes states in groups of 64 chunks.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_all_close(run_with_gradients(ssd, inputs, mask_BL=mask, dt_softplus=True, chunk_size=2), expected, 1e-11)


def test_exports_with_dynamic_batch_and_length() -> None:
    inputs = {k: v.detach().float() for k, v in make_inputs(70, seed=12).items() if k != "initial_state_BHPN"}

    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
            return ssd(x, dt, inputs["A_H"], B, C, inputs["D_H"], inputs["dt_bias_H"], dt_softplus=True, chunk_size=16)

    names = ("x_BLHP", "dt_BLH", "B_BLGN", "C_BLGN")
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=1 << 20)
    shapes = tuple({0: batch, 1: length} for _ in names)
    program = torch.export.export(Wrapped(), tuple(inputs[k] for k in names), dynamic_shapes=shapes)
    other = {k: v.detach().float() for k, v in make_inputs(1100, seed=13, n_batch=3).items()}
    found = program.module()(*(other[k] for k in names))
    expected = Wrapped()(*(other[k] for k in names))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_autocast_keeps_the_recurrence_in_fp32() -> None:
    inputs = {k: v.detach().float() for k, v in make_inputs(80, seed=14).items()}
    y, state = ssd(**inputs, dt_softplus=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_auto, state_auto = ssd(**inputs, dt_softplus=True)
    torch.testing.assert_close(y_auto, y)
    torch.testing.assert_close(state_auto, state)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"implementation": "fast"}, ValueError, "implementation='fast'"),
        ({"chunk_size": 0}, ValueError, "chunk_size=0"),
        ({"A_H": torch.ones(3)}, ValueError, "A_H: expected shape"),
        ({"dt_BLH": torch.ones(2, 9, 4)}, ValueError, "dt_BLH"),
        ({"B_BLGN": torch.ones(2, 8, 3, 5), "C_BLGN": torch.ones(2, 8, 3, 5)}, ValueError, "3 groups"),
        ({"C_BLGN": torch.ones(2, 8, 2, 4)}, ValueError, "must agree"),
        ({"mask_BL": torch.ones(2, 8)}, TypeError, "mask_BL"),
        ({"mask_BL": torch.ones(2, 7, dtype=torch.bool)}, ValueError, "mask_BL"),
        ({"segment_ids_BL": torch.ones(2, 8)}, TypeError, "segment_ids_BL"),
        ({"initial_state_BHPN": torch.ones(1, 4, 3, 5)}, ValueError, "initial_state_BHPN"),
        ({"x_BLHP": torch.ones(2, 8, 4, 3, dtype=torch.int64)}, TypeError, "x_BLHP"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    inputs = make_inputs(8, seed=15, dtype=torch.float32)
    with pytest.raises(error, match=message):
        ssd(**{**inputs, **change})


def test_unavailable_triton_is_an_error() -> None:
    with pytest.raises(ValueError, match="not available"):
        ssd(**make_inputs(4, seed=16), implementation="triton")
