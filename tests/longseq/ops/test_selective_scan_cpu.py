"""The compiled selective scan against the plain loop in float64, and what it promises: NaN, causality, threads, memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.ops import compiled
from longseq.ops.selective_scan import selective_scan
from tests.longseq.ops.comparison import ROW_MODES, assert_all_close, row_options, run_with_gradients

ROWS = ("x_BLD", "dt_BLD", "B_BLN", "C_BLN", "z_BLD")


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Memory that is not written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_inputs(length: int, width: int = 5, n_states: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    made = {name: torch.randn(2, length, width) for name in ("x_BLD", "dt_BLD", "z_BLD")}
    made |= {name: torch.randn(2, length, n_states) for name in ("B_BLN", "C_BLN")}
    made |= {"A_DN": -0.05 - 4 * torch.rand(width, n_states), "D_D": torch.randn(width), "dt_bias_D": torch.randn(width) - 1}
    made["initial_state_BDN"] = torch.randn(2, width, n_states)
    return {name: v.to(dtype) if name in ROWS else v for name, v in made.items()}


def exact(inputs: dict[str, Any], implementation: str = "reference", **options: Any) -> dict[str, Tensor]:
    doubles = {name: v.double() for name, v in inputs.items()}
    return run_with_gradients(selective_scan, doubles, implementation=implementation, **options)


@pytest.mark.parametrize("mode", ROW_MODES)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 100, 257])
def test_outputs_state_and_gradients(length: int, mode: str) -> None:
    inputs, options = make_inputs(length), {"dt_softplus": True, **row_options(mode, length, seed=length)}
    found = run_with_gradients(selective_scan, inputs, implementation="cpu", **options)
    assert_all_close(found, exact(inputs, **options), 1e-5)


@pytest.mark.parametrize(("length", "width", "n_states"), [(4096, 8, 16), (70, 1, 1), (70, 70, 16), (33, 130, 5)])
def test_sizes(length: int, width: int, n_states: int) -> None:
    inputs = make_inputs(length, width, n_states)
    found = run_with_gradients(selective_scan, inputs, implementation="cpu", dt_softplus=True)
    assert_all_close(found, exact(inputs, "chunked", dt_softplus=True), 1e-5)


def test_16_bits() -> None:
    inputs = make_inputs(257, dtype=torch.bfloat16)
    found = run_with_gradients(selective_scan, inputs, implementation="cpu", dt_softplus=True)
    assert found["y"].dtype == found["dx_BLD"].dtype == torch.bfloat16
    assert found["state"].dtype == found["dA_DN"].dtype == torch.float32
    assert_all_close(found, exact(inputs, dt_softplus=True), 1e-2)


@pytest.mark.parametrize("left_out", [("z_BLD",), ("D_D", "dt_bias_D", "initial_state_BDN"), ("z_BLD", "D_D")])
def test_what_is_left_out_and_no_softplus(left_out: tuple[str, ...]) -> None:
    inputs = {name: v for name, v in make_inputs(50).items() if name not in left_out}
    inputs["dt_BLD"] = inputs["dt_BLD"].abs() + 5.0
    found = run_with_gradients(selective_scan, inputs, implementation="cpu")
    assert_all_close(found, exact(inputs), 1e-5)


def test_views_with_strides_are_read_in_place() -> None:
    inputs = make_inputs(40, 70)
    both = torch.cat([inputs["x_BLD"], inputs["z_BLD"]], dim=-1)
    views: dict[str, Any] = {
        **inputs,
        "x_BLD": both[..., :70],
        "z_BLD": both[..., 70:],
        "dt_BLD": inputs["dt_BLD"].mT.contiguous().mT,
    }
    views["B_BLN"] = inputs["B_BLN"][:, :1].expand(-1, 40, -1)
    expected = selective_scan(**{n: v.contiguous() for n, v in views.items()}, dt_softplus=True, implementation="cpu")
    for ours, want in zip(selective_scan(**views, dt_softplus=True, implementation="cpu"), expected, strict=True):
        assert torch.equal(ours, want)


@pytest.mark.parametrize("dt", [1e-4, 20.0])
def test_extreme_step_sizes(dt: float) -> None:
    inputs = make_inputs(300, 4, 16)
    inputs |= {"dt_BLD": torch.full_like(inputs["dt_BLD"], dt), "A_DN": -torch.arange(1, 17.0).repeat(4, 1)}
    del inputs["dt_bias_D"]
    assert_all_close(run_with_gradients(selective_scan, inputs, implementation="cpu"), exact(inputs), 1e-5)


def test_nothing_is_read_at_masked_positions() -> None:
    inputs, mask = make_inputs(90), torch.rand(2, 90) > 0.3
    options: dict[str, Any] = {"mask_BL": mask, "dt_softplus": True, "implementation": "cpu"}
    clean = run_with_gradients(selective_scan, inputs, **options)
    poisoned = {n: v.masked_fill(~mask[..., None], float("nan")) if n in ROWS else v for n, v in inputs.items()}
    for name, value in run_with_gradients(selective_scan, poisoned, **options).items():
        assert torch.equal(value, clean[name]), name


def test_nan_reaches_later_positions_of_its_document_alone() -> None:
    inputs = make_inputs(30)
    inputs["x_BLD"][0, 12] = float("nan")
    segments = torch.arange(30).repeat(2, 1) // 20
    y, state = selective_scan(**inputs, segment_ids_BL=segments, implementation="cpu", dt_softplus=True)
    assert y[0, 12:20].isnan().all()
    assert y[0, :12].isfinite().all()
    assert y[0, 20:].isfinite().all()
    assert y[1].isfinite().all()
    assert state.isfinite().all()


def test_later_positions_and_other_rows_change_no_bit() -> None:
    inputs = make_inputs(100, 70)
    y, _ = selective_scan(**inputs, dt_softplus=True, implementation="cpu")
    changed: Any = {n: torch.cat([v[:, :60], v[:, 60:] + 1], 1) if n in ROWS else v for n, v in inputs.items()}
    assert torch.equal(selective_scan(**changed, dt_softplus=True, implementation="cpu")[0][:, :60], y[:, :60])
    alone: Any = {n: v[1:] if n in ROWS or n == "initial_state_BDN" else v for n, v in inputs.items()}
    assert torch.equal(selective_scan(**alone, dt_softplus=True, implementation="cpu")[0], y[1:])


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, threads = make_inputs(100, 300), torch.get_num_threads()
    monkeypatch.setattr(compiled, "_THREAD_COST", 1)
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append(run_with_gradients(selective_scan, inputs, implementation="cpu", dt_softplus=True))
    finally:
        torch.set_num_threads(threads)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_inference_keeps_no_states() -> None:
    inputs = make_inputs(200, 8)
    with torch.no_grad():
        run = torch.ops.longseq.selective_scan_cpu
        x, dt, z, B, C, A, D, bias, h0 = inputs.values()
        assert run(x, dt, A, B, C, D, z, bias, h0, None, True, False, False)[2].numel() == 0
        assert run(x, dt, A, B, C, D, z, bias, h0, None, True, False, True)[2].shape == (2, 4, 3, 8)


# From inside torch 2.14's own check.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_the_operator_is_well_formed() -> None:
    torch.use_deterministic_algorithms(False)
    x, dt, z, B, C, A, D, bias, h0 = (v.requires_grad_() for v in make_inputs(20).values())
    kind = (torch.rand(2, 20) > 0.2).to(torch.uint8)
    args = (x, dt, A, B, C, D, z, bias, h0, kind, True, False, True)
    torch.library.opcheck(torch.ops.longseq.selective_scan_cpu.default, args)
    torch.library.opcheck(
        torch.ops.longseq.selective_scan_cpu.default, (x, dt, A, B, C, None, None, None, None, None, True, True, True)
    )


def test_compiles_to_one_node() -> None:
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    inputs = make_inputs(20)
    compiled_scan = torch.compile(lambda **v: selective_scan(**v, dt_softplus=True), backend=backend, fullgraph=True)
    y, _ = compiled_scan(**inputs)
    assert torch.equal(y, selective_scan(**inputs, dt_softplus=True, implementation="cpu")[0])
    assert sum("selective_scan_cpu" in target for target in targets) == 1
