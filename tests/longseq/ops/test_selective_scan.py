"""The chunked selective scan against the plain loop: outputs, final state and every gradient."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longseq.ops.selective_scan import chunked, selective_scan, selective_scan_step
from longseq.ops.selective_scan.traceable import _softplus, scan_traceable

LENGTHS = (1, 2, 63, 64, 100, 257)
NAMES = ("x_BLD", "dt_BLD", "A_DN", "B_BLN", "C_BLN", "D_D", "z_BLD", "dt_bias_D", "initial_state_BDN")
MODES = ("plain", "mask", "segments", "reverse", "everything")


def make_inputs(
    batch: int, length: int, width: int = 5, n_state: int = 3, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    values = {name: torch.randn(batch, length, width, dtype=dtype) for name in ("x_BLD", "dt_BLD", "z_BLD")}
    values |= {name: torch.randn(batch, length, n_state, dtype=dtype) for name in ("B_BLN", "C_BLN")}
    values["A_DN"] = -0.05 - 4 * torch.rand(width, n_state, dtype=torch.float64)
    values["D_D"] = torch.randn(width, dtype=torch.float64)
    values["dt_bias_D"] = torch.randn(width, dtype=torch.float64) - 1
    values["initial_state_BDN"] = torch.randn(batch, width, n_state, dtype=torch.float64)
    if dtype != torch.float64:
        values |= {name: values[name].float() for name in ("A_DN", "D_D", "dt_bias_D", "initial_state_BDN")}
    return {name: values[name] for name in NAMES}


def make_mode(mode: str, batch: int, length: int) -> dict[str, Any]:
    mask = torch.rand(batch, length) > 0.3
    segments = (torch.rand(batch, length) > 0.9).long().cumsum(1)
    return {
        "plain": {},
        "mask": {"mask_BL": mask},
        "segments": {"segment_ids_BL": segments},
        "reverse": {"reverse": True},
        "everything": {"mask_BL": mask, "segment_ids_BL": segments, "reverse": True},
    }[mode]


def run(values: dict[str, Any], **options: Any) -> list[Tensor]:
    """Output, final state, and the gradient of a random function of both with respect to every input."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    y, state = selective_scan(**leaves, dt_softplus=True, **options)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype) for v in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    return [y, state, *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_equals_reference_in_float64(length: int, mode: str) -> None:
    values, options = make_inputs(2, length), make_mode(mode, 2, length)
    reference = run(values, implementation="reference", **options)
    for ours, expected in zip(run(values, implementation="chunked", **options), reference, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("width", [1, 70, 130])
def test_blocks_of_rows_and_channels_make_no_difference(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = make_inputs(3, 37, width=width)
    whole = run(values, implementation="chunked")
    monkeypatch.setitem(chunked._BLOCK_ELEMENTS, "cpu", 1)
    for ours, expected in zip(run(values, implementation="chunked"), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_float32_and_bfloat16_stay_near_float64() -> None:
    exact = make_inputs(2, 257)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        rounded = {
            n: v.to(dtype) if n in ("x_BLD", "dt_BLD", "B_BLN", "C_BLN", "z_BLD") else v.float() for n, v in exact.items()
        }
        ours = run(rounded, implementation="chunked")
        expected = run({n: v.double() for n, v in rounded.items()}, implementation="reference")
        assert ours[0].dtype == dtype
        assert ours[1].dtype == torch.float32
        for got, want in zip(ours, expected, strict=True):
            scale = want.abs().max().clamp(min=1.0)
            assert (got.double() - want).abs().max() <= tolerance * scale


@pytest.mark.gpu
def test_chunked_on_a_gpu_equals_the_cpu() -> None:
    values, options = make_inputs(2, 300, width=70), make_mode("everything", 2, 300)
    on_gpu: dict[str, Any] = {n: v.cuda() if isinstance(v, Tensor) else v for n, v in options.items()}
    leaves: dict[str, Any] = {n: v.cuda().requires_grad_() for n, v in values.items()}
    y, state = selective_scan(**leaves, dt_softplus=True, implementation="chunked", **on_gpu)
    ours = [y, state, *torch.autograd.grad(y.sum() + state.sum(), list(leaves.values()))]
    leaves = {n: v.requires_grad_() for n, v in values.items()}
    y, state = selective_scan(**leaves, dt_softplus=True, implementation="reference", **options)
    for got, want in zip(ours, [y, state, *torch.autograd.grad(y.sum() + state.sum(), list(leaves.values()))], strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dt", [1e-4, 20.0])
def test_extreme_step_sizes_are_finite(dt: float) -> None:
    length, width, n_state = 300, 4, 16
    A = -torch.arange(1, n_state + 1.0).repeat(width, 1)
    leaves: dict[str, Any] = {
        "x_BLD": torch.randn(2, length, width),
        "dt_BLD": torch.full((2, length, width), dt),
        "A_DN": A,
        "B_BLN": torch.randn(2, length, n_state),
        "C_BLN": torch.randn(2, length, n_state),
    }
    results = []
    for implementation in ("chunked", "reference"):
        inputs: dict[str, Any] = {name: value.clone().requires_grad_() for name, value in leaves.items()}
        y, state = selective_scan(**inputs, implementation=implementation)
        results.append([y, state, *torch.autograd.grad(y.sum() + state.sum(), list(inputs.values()))])
    for ours, expected in zip(*results, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def cut(values: dict[str, Any], row: int, span: slice) -> dict[str, Any]:
    """One row, and some of its positions."""
    sequences = ("x_BLD", "dt_BLD", "B_BLN", "C_BLN", "z_BLD")
    rows = {n: v[row : row + 1] if n in (*sequences, "initial_state_BDN") else v for n, v in values.items()}
    return {n: v[:, span] if n in sequences else v for n, v in rows.items()}


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_masked_positions_are_not_read(implementation: str) -> None:
    values = make_inputs(2, 40)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :7], mask[1, 30:] = False, False
    short = [run(cut(values, row, span)) for row, span in ((0, slice(7, 40)), (1, slice(0, 30)))]
    poisoned = {n: v.masked_fill(~mask[..., None], float("nan")) if v.shape[:2] == mask.shape else v for n, v in values.items()}
    y, state, *grads = run(poisoned, implementation=implementation, mask_BL=mask)
    torch.testing.assert_close(y[0, 7:], short[0][0][0])
    torch.testing.assert_close(y[1, :30], short[1][0][0])
    torch.testing.assert_close(state, torch.cat([short[0][1], short[1][1]]))
    assert torch.equal(y[~mask], torch.zeros_like(y[~mask]))
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("reverse", [False, True])
def test_state_carries_over_random_splits(reverse: bool) -> None:
    length = 2 * chunked.CHUNK + 31
    values = {n: v.requires_grad_() for n, v in make_inputs(2, length).items()}
    whole_y, whole_state = selective_scan(**values, dt_softplus=True, reverse=reverse)
    cuts = [0, *sorted(torch.randperm(length - 1)[:5].add(1).tolist()), length]
    spans = list(itertools.pairwise(cuts))
    state, parts = values["initial_state_BDN"], []
    for start, stop in reversed(spans) if reverse else spans:
        piece = {n: v[:, start:stop] if v.shape[:2] == (2, length) else v for n, v in values.items()}
        piece["initial_state_BDN"] = state
        y, state = selective_scan(**piece, dt_softplus=True, reverse=reverse)
        parts.append(y)
    y = torch.cat(parts[::-1] if reverse else parts, dim=1)
    torch.testing.assert_close(y, whole_y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, whole_state, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad(y.square().sum() + state.sum(), list(values.values()))
    whole_grads = torch.autograd.grad(whole_y.square().sum() + whole_state.sum(), list(values.values()))
    for ours, expected in zip(grads, whole_grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_reverse_equals_flipped_inputs() -> None:
    values = make_inputs(2, 50)
    flipped = {n: v.flip(1) if v.shape[:2] == (2, 50) else v for n, v in values.items()}
    y, state = selective_scan(**values, dt_softplus=True, reverse=True)
    expected_y, expected_state = selective_scan(**flipped, dt_softplus=True)
    torch.testing.assert_close(y, expected_y.flip(1))
    torch.testing.assert_close(state, expected_state)


def test_segments_equal_separate_sequences() -> None:
    values = make_inputs(1, 90)
    del values["initial_state_BDN"]
    ids = torch.tensor([[5] * 20 + [2] * 1 + [9] * 69])
    y, state = selective_scan(**values, dt_softplus=True, segment_ids_BL=ids)
    pieces = []
    for start, stop in ((0, 20), (20, 21), (21, 90)):
        piece = {n: v[:, start:stop] if v.shape[:2] == (1, 90) else v for n, v in values.items()}
        pieces.append(selective_scan(**piece, dt_softplus=True))
    torch.testing.assert_close(y, torch.cat([piece[0] for piece in pieces], dim=1))
    torch.testing.assert_close(state, pieces[-1][1])


def test_step_equals_scan() -> None:
    values = make_inputs(3, 12)
    y, state = selective_scan(**values, dt_softplus=True)
    h = values["initial_state_BDN"]
    for t in range(12):
        at_t = {n.replace("BL", "B"): v[:, t] for n, v in values.items() if v.shape[:2] == (3, 12)}
        y_t, h = selective_scan_step(
            **at_t, A_DN=values["A_DN"], D_D=values["D_D"], dt_bias_D=values["dt_bias_D"], state_BDN=h, dt_softplus=True
        )
        torch.testing.assert_close(y_t, y[:, t])
    torch.testing.assert_close(h, state)


def test_autocast_does_not_narrow_the_scan() -> None:
    values = make_inputs(1, 64, dtype=torch.float32)
    expected = run(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = run(values)
    for got, want in zip(ours, expected, strict=True):
        assert torch.equal(got, want)


# From inside torch 2.14's own check.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_custom_operator_is_well_formed() -> None:
    values = make_inputs(2, 20, dtype=torch.float32)
    x, dt, A, B, C, D, z, bias, h0 = (v.requires_grad_() for v in values.values())
    mask = torch.rand(2, 20) > 0.2
    args = (x, dt, A.detach().t().contiguous(), B, C, D, z, bias, mask, None, h0.detach().transpose(1, 2).contiguous(), True)
    torch.library.opcheck(torch.ops.longseq.selective_scan_chunked.default, args)


class Scan(nn.Module):
    def forward(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, mask: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        return selective_scan(x, dt, A, B, C, None, x, dt_softplus=True, mask_BL=mask, initial_state_BDN=state)


def scan_arguments(batch: int, length: int) -> tuple[Tensor, ...]:
    values = make_inputs(batch, length, dtype=torch.float32)
    tensors = [values[n] for n in ("x_BLD", "dt_BLD", "A_DN", "B_BLN", "C_BLN")]
    return (*tensors, torch.rand(batch, length) > 0.2, values["initial_state_BDN"])


@pytest.fixture(scope="module")
def dynamic_shapes() -> tuple[Any, ...]:
    both = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    return (both, both, None, both, both, both, {0: both[0]})


def test_export_with_any_batch_and_length(dynamic_shapes: tuple[Any, ...]) -> None:
    program = torch.export.export(Scan(), scan_arguments(2, 50), dynamic_shapes=dynamic_shapes)
    assert not any("longseq" in str(node.target) for node in program.graph.nodes)
    for batch, length in ((2, 50), (1, 16), (3, 333)):
        arguments = scan_arguments(batch, length)
        for ours, expected in zip(program.module()(*arguments), Scan()(*arguments), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_with_any_batch_and_length(tmp_path: Path, dynamic_shapes: tuple[Any, ...]) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(Scan(), scan_arguments(2, 50), dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "scan.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "scan.onnx"))
    for batch, length in ((2, 50), (1, 16), (3, 333)):
        arguments = scan_arguments(batch, length)
        feed = {node.name: value.numpy() for node, value in zip(session.get_inputs(), arguments, strict=True)}
        for ours, expected in zip(session.run(None, feed), Scan()(*arguments), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 17, 75, 300])
def test_traceable_form_with_segments_and_gradients(length: int) -> None:
    values = {n: v.requires_grad_() for n, v in make_inputs(2, length).items()}
    x, dt, A, B, C, D, z, bias, h0 = values.values()
    segments = (torch.rand(2, length) > 0.9).long().cumsum(1)
    keep = torch.cat([torch.ones(2, 1), (segments[:, 1:] == segments[:, :-1]).double()], dim=1)
    y, state = scan_traceable(x, dt, A.t(), B, C, D, z, bias, None, keep, h0.transpose(1, 2), True)
    expected_y, expected_state = selective_scan(**values, dt_softplus=True, segment_ids_BL=segments, implementation="reference")
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(state.transpose(1, 2), expected_state)
    grads = torch.autograd.grad(y.sum() + state.sum(), list(values.values()))
    expected = torch.autograd.grad(expected_y.sum() + expected_state.sum(), list(values.values()))
    for ours, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_of_a_graph(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-30, 30, 10_001, dtype=dtype), torch.tensor([-200.0, -100.0, 0.0, 100.0, 1e4], dtype=dtype)])
    expected = torch.logaddexp(x.double(), torch.zeros((), dtype=torch.float64))
    error = (_softplus(x) - expected).abs() / expected.clamp(min=torch.finfo(dtype).tiny)
    assert error.max() <= 8 * torch.finfo(dtype).eps


def test_compiles_to_one_graph() -> None:
    arguments = scan_arguments(2, 40)
    compiled = torch.compile(Scan(), backend="aot_eager", fullgraph=True)
    x = arguments[0].requires_grad_()
    ours = torch.autograd.grad(compiled(*arguments)[0].sum(), x)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(Scan()(*arguments)[0].sum(), x)[0])


def test_memory_of_the_states_is_not_kept() -> None:
    values = {n: v.requires_grad_() for n, v in make_inputs(1, 1024, width=8, n_state=16, dtype=torch.float32).items()}
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(**values, dt_softplus=True)
    assert saved < 1024 * 8 * 16


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"B_BLN": torch.zeros(2, 9, 4)}, ValueError, "B must have shape"),
        ({"mask_BL": torch.ones(2, 9)}, TypeError, "mask must be bool"),
        ({"segment_ids_BL": torch.ones(2, 9)}, TypeError, "segment_ids must be integers"),
        ({"x_BLD": torch.ones(2, 9, 5, dtype=torch.long)}, TypeError, "x must be floating point"),
        ({"x_BLD": torch.ones(2, 9)}, ValueError, "found x"),
        ({"implementation": "fast"}, ValueError, "'fast'"),
        ({"implementation": "triton"}, ValueError, "not available"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        selective_scan(**{**make_inputs(2, 9), **change})
    empty = {n: v[:, :0] if v.shape[:2] == (2, 9) else v for n, v in make_inputs(2, 9).items()}
    with pytest.raises(ValueError, match="length 0"):
        selective_scan(**empty)
