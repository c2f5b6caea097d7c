"""The long convolution: its forms against each other, in values and in every gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.ops.fft_conv import fft_conv
from longseq.ops.fft_conv.chunked import _SMALLEST_GROUP, fast_length
from longseq.ops.fft_conv.traceable import fft_conv_traceable
from longseq.ops.fft_conv.traceable_fourier import convolve_causally
from longseq.ops.tracing import exporting_onnx

B, D = 2, 3
LENGTHS = (1, 2, 63, 64, 100, 257)


def make(length: int, taps: int, past: int, dtype: torch.dtype = torch.float64, width: int = D) -> dict[str, Any]:
    torch.manual_seed(length * 1000 + taps + past)
    shapes = {"u_BLD": (B, length, width), "k_DK": (width, taps), "bias_D": (width,)}
    shapes |= {"pre_gate_BLD": (B, length, width), "post_gate_BLD": (B, length, width)}
    if past:
        shapes["history_BMD"] = (B, past, width)
    return {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}


def gradients(y: Tensor, inputs: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(y, list(inputs.values()), torch.randn(y.shape, dtype=y.dtype)))


def by_hand(u: Tensor, k: Tensor, bias: Tensor, pre: Tensor, post: Tensor, history: Tensor | None) -> Tensor:
    """The equation as a triangular matrix per channel."""
    v = u * pre
    x = v if history is None else torch.cat([history, v], 1)
    lag = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    seen = (lag >= 0) & (lag < k.shape[1])
    matrix = torch.where(seen, k[:, lag.clamp(0, k.shape[1] - 1)], 0.0)
    return post * (torch.einsum("dts,bsd->btd", matrix, x)[:, x.shape[1] - u.shape[1] :] + bias * v)


@pytest.mark.parametrize("past", [0, 1, 40, 300])
@pytest.mark.parametrize("taps", [1, 3, 64, 300])
def test_forms_agree_in_values_and_gradients(taps: int, past: int) -> None:
    for length in LENGTHS:
        inputs = make(length, taps, past)
        u, k, bias, pre, post, *rest = inputs.values()
        history = rest[0] if rest else None
        expected = by_hand(u, k, bias, pre, post, history)
        found = {name: fft_conv(**inputs, implementation=name) for name in ("reference", "chunked", "auto")}
        found["traceable"] = fft_conv_traceable(u, k, bias, pre, post, history)
        wanted = gradients(expected, inputs)
        for name, y in found.items():
            assert y.dtype == torch.float64
            torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
            for gradient, other in zip(gradients(y, inputs), wanted, strict=True):
                torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("given", [(), ("bias_D",), ("pre_gate_BLD",), ("post_gate_BLD", "history_BMD")])
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_every_part_may_be_left_out(given: tuple[str, ...], implementation: str) -> None:
    whole = make(20, 9, 7)
    inputs = {name: x for name, x in whole.items() if name in ("u_BLD", "k_DK", *given)}
    ones, zeros = torch.ones_like(whole["u_BLD"]), torch.zeros(D, dtype=torch.float64)
    expected = by_hand(
        inputs["u_BLD"],
        inputs["k_DK"],
        inputs.get("bias_D", zeros),
        inputs.get("pre_gate_BLD", ones),
        inputs.get("post_gate_BLD", ones),
        inputs.get("history_BMD"),
    )
    y = fft_conv(**inputs, implementation=implementation)
    torch.testing.assert_close(y, expected)
    for gradient, other in zip(gradients(y, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("taps", [1, 7, 600, 5000])
@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 129, 512, 513, 1500])
def test_products_of_matrices_equal_the_transform(length: int, taps: int) -> None:
    inputs = make(length, taps, 0)
    u, k = inputs["u_BLD"], inputs["k_DK"]
    y, expected = convolve_causally(u, k), fft_conv(u, k, implementation="chunked")
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(y, [u, k], torch.ones_like(y))
    torch.testing.assert_close(found, torch.autograd.grad(expected, [u, k], torch.ones_like(y)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [300, 4001, 70_000])
def test_products_of_matrices_in_float32(length: int) -> None:
    inputs = make(length, length, 0, torch.float32, 2)
    u, k = inputs["u_BLD"].detach(), inputs["k_DK"].detach()
    expected = fft_conv(u.double(), k.double(), implementation="chunked")
    assert (convolve_causally(u, k) - expected).abs().max() <= 1e-6 * expected.abs().max()


class Convolution(torch.nn.Module):
    def forward(self, u: Tensor, k: Tensor, bias: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        return fft_conv(u, k, bias, pre_gate_BLD=pre, post_gate_BLD=post)


@pytest.mark.parametrize("for_onnx", [True, False])
def test_exports_with_any_batch_and_length(for_onnx: bool) -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=1 << 20)
    both = {0: batch, 1: length}
    shapes = (both, {1: length}, None, both, both)
    sample = tuple(x.detach() for x in make(70, 70, 0, torch.float32).values())
    with exporting_onnx(for_onnx):
        program = torch.export.export(Convolution(), sample, dynamic_shapes=shapes)
    assert for_onnx != any("fft" in str(node.target) for node in program.graph.nodes)
    for n in (2, 511, 1300):
        inputs = tuple(x.detach() for x in make(n, n, 0, torch.float32).values())
        torch.testing.assert_close(program.module()(*inputs), Convolution()(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_holds_no_transform(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    both = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=1 << 16)}
    shapes = (both, {1: both[1]}, None, both, both)
    sample = tuple(x.detach() for x in make(70, 70, 0, torch.float32).values())
    # Without `exporting_onnx`: torch's exporter says itself what it does.
    program = torch.onnx.export(Convolution(), sample, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    assert not any(node.op_type == "DFT" for node in program.model.graph)
    program.save(str(tmp_path / "convolution.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "convolution.onnx"))
    for n in (2, 300, 1999):
        inputs = tuple(x.detach() for x in make(n, n, 0, torch.float32).values())
        feed = {node.name: x.numpy() for node, x in zip(session.get_inputs(), inputs, strict=True)}
        expected = Convolution()(*(x.double() for x in inputs))
        error = (torch.from_numpy(session.run(None, feed)[0]) - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()


def test_groups_of_channels_and_strided_inputs() -> None:
    width = 2 * _SMALLEST_GROUP + 5
    inputs = make(5000, 5000, 0, torch.float32, width)
    wide = torch.cat([inputs["u_BLD"], inputs["pre_gate_BLD"]], -1)
    u, pre = wide.split(width, -1)
    y = fft_conv(u, inputs["k_DK"], inputs["bias_D"], pre_gate_BLD=pre, post_gate_BLD=inputs["post_gate_BLD"])
    inputs["history_BMD"] = torch.zeros(B, 0, width)
    expected = fft_conv_traceable(*inputs.values())
    del inputs["history_BMD"]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    for gradient, other in zip(gradients(y, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=2e-6 * other.abs().max().item())


def test_only_needed_gradients_are_computed() -> None:
    inputs = make(30, 30, 5)
    for wanted in inputs:
        leaves = {name: x.detach().requires_grad_(name == wanted) for name, x in inputs.items()}
        found = gradients(fft_conv(**leaves, implementation="chunked"), {wanted: leaves[wanted]})
        expected = gradients(fft_conv(**leaves, implementation="reference"), {wanted: leaves[wanted]})
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    inputs = make(257, 257, 0)
    low = {name: x.detach().to(dtype).requires_grad_() for name, x in inputs.items()}
    same = {name: x.detach().double().requires_grad_() for name, x in low.items()}
    y, expected = fft_conv(**low, implementation="chunked"), fft_conv(**same, implementation="reference")
    scale, eps = expected.abs().max().item(), torch.finfo(dtype).eps
    assert y.dtype == dtype
    assert (y.double() - expected).abs().max() <= eps * scale
    for gradient, other in zip(gradients(y.double(), low), gradients(expected, same), strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - other).abs().max() <= 2 * eps * other.abs().max()


def test_autocast_changes_nothing() -> None:
    inputs = make(64, 64, 8, torch.float32)
    expected = fft_conv(**inputs, implementation="chunked")
    with torch.autocast("cpu", torch.bfloat16):
        y = fft_conv(**inputs, implementation="chunked")
    assert torch.equal(y, expected)


def test_float32_against_float64_at_4096() -> None:
    inputs = make(4096, 4096, 0, torch.float32)
    expected = fft_conv(**{name: x.double() for name, x in inputs.items()}, implementation="chunked")
    y = fft_conv(**inputs)
    assert (y - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_history_continues_a_sequence() -> None:
    inputs = make(100, 100, 0)
    whole = fft_conv(**inputs)
    v = inputs["u_BLD"] * inputs["pre_gate_BLD"]
    for start in (1, 37, 99):
        late = {name: inputs[name][:, start:] for name in ("u_BLD", "pre_gate_BLD", "post_gate_BLD")}
        y = fft_conv(**late, k_DK=inputs["k_DK"], bias_D=inputs["bias_D"], history_BMD=v[:, :start])
        torch.testing.assert_close(y, whole[:, start:])


def test_backward_keeps_nothing_but_the_inputs() -> None:
    inputs = make(500, 500, 0, torch.float32)
    own = {x.data_ptr() for x in inputs.values()}
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        fft_conv(**inputs)
    assert saved
    assert {x.data_ptr() for x in saved} <= own
    assert sum(x.numel() * x.element_size() for x in saved) == sum(x.numel() * x.element_size() for x in inputs.values())


def test_fast_lengths_are_even_smooth_and_near() -> None:
    for n in [*range(1, 3000), 2**20 + 1, 2_000_003]:
        found = fast_length(n)
        assert found >= n
        assert found % 2 == 0
        assert found <= max(2, 1.25 * n + 2)
        for prime in (2, 3, 5):
            while found % prime == 0:
                found //= prime
        assert found == 1


# From inside torch 2.14's own check.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_one_operator_passes_the_checks_of_torch() -> None:
    inputs = list(make(12, 10, 4, torch.float32).values())
    torch.library.opcheck(torch.ops.longseq.fft_conv.default, tuple(inputs))
    more = (torch.randn(B, 12, D), *(x.detach() for x in inputs), True, False, True, False)
    torch.library.opcheck(torch.ops.longseq.fft_conv_backward.default, more)


def test_compiled_holds_one_operator() -> None:
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    u, k = torch.randn(B, 40, D), torch.randn(D, 40)
    y = torch.compile(fft_conv, backend=backend, fullgraph=True)(u, k)
    torch.testing.assert_close(y, fft_conv(u, k))
    assert any("longseq.fft_conv" in target for target in targets)
    assert not any("rfft" in target for target in targets)


def test_bad_input_is_answered() -> None:
    u, k = torch.randn(2, 5, 3), torch.randn(3, 4)
    with pytest.raises(ValueError, match="batch, length, width"):
        fft_conv(u[0], k)
    with pytest.raises(ValueError, match="k_DK"):
        fft_conv(u, k.T)
    with pytest.raises(ValueError, match="bias_D"):
        fft_conv(u, k, torch.zeros(4))
    with pytest.raises(ValueError, match="pre_gate_BLD"):
        fft_conv(u, k, pre_gate_BLD=u[:, :4])
    with pytest.raises(ValueError, match="history_BMD"):
        fft_conv(u, k, history_BMD=torch.randn(1, 5, 3))
    with pytest.raises(TypeError, match="u_BLD"):
        fft_conv(u.long(), k)
    with pytest.raises(ValueError, match="fastest"):
        fft_conv(u, k, implementation="fastest")


def test_an_unavailable_implementation_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("the GPU kernel may be available here")
    with pytest.raises(ValueError, match="triton"):
        fft_conv(torch.randn(2, 5, 3), torch.randn(3, 5), implementation="triton")
