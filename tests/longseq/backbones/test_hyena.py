"""Hyena against its published equations, and against itself in pieces, padded, packed and exported."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.backbone import state_tensors
from longseq.backbones.hyena import HyenaMixer
from longseq.optim import parameter_options
from longseq.registry import create_backbone

B, D, MAX = 2, 6, 140
KEYS = ("short", "past", "kernel")


def build(order: int = 2, dtype: torch.dtype = torch.float64, **options: Any) -> HyenaMixer:
    """A layer whose every parameter matters: the published start has biases of 0 and tiny filters."""
    torch.manual_seed(order)
    mixer = HyenaMixer(D, max_length=MAX, order=order, filter_order=8, **options).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def published_filters(mixer: HyenaMixer, length: int, shift: float) -> Tensor:
    """(order - 1, D, length) from the equations: features, sine network, window."""
    lag = torch.arange(MAX, dtype=torch.float64)
    t, w = lag / (MAX - 1), 2 * math.pi * lag / MAX
    f = torch.tensor([1e-4, 1.0], dtype=torch.float64)
    z = torch.cat([t[:, None], torch.cos(w[:, None] * f), -torch.sin(w[:, None] * f)], 1)
    weights = mixer.state_dict()
    for i in range(3):
        z = z @ weights[f"filter.layers.{i}.weight"].T + weights[f"filter.layers.{i}.bias"]
        z = torch.sin(weights["filter.freq"][0] * z)
    h = z @ weights["filter.output.weight"].T
    n = D * (mixer.order - 1)
    first, last = math.log(0.01) / 1.5, math.log(0.01) / 0.3
    rate = torch.tensor([abs(first + (last - first) * i / (n - 1)) for i in range(n)], dtype=torch.float64)
    h = h * (torch.exp(-t[:, None] * rate) + shift)
    return h[:length].T.reshape(D, mixer.order - 1, length).transpose(0, 1)


def published(mixer: HyenaMixer, x: Tensor, shift: float = 0.0) -> Tensor:
    """The layer as sums over positions."""
    weights, length = mixer.state_dict(), x.shape[1]
    p = x @ weights["in_proj.weight"].T + weights["in_proj.bias"]
    taps, q = weights["short_filter.weight"], torch.zeros_like(p)
    for t in range(length):
        q[:, t] = weights["short_filter.bias"]
        for j in range(3):
            if t - j >= 0:
                q[:, t] += taps[:, 0, 2 - j] * p[:, t - j]
    *gates, v = q.split(D, -1)
    bias = weights["filter.bias"].reshape(D, mixer.order - 1).T
    for i, gate in enumerate(reversed(gates[1:])):
        k, v, y = published_filters(mixer, length, shift)[i], v * gate, torch.zeros_like(v)
        for t in range(length):
            y[:, t] = sum(k[:, j] * v[:, t - j] for j in range(t + 1)) + bias[i] * v[:, t]
        v = y
    return (v * gates[0]) @ weights["out_proj.weight"].T + weights["out_proj.bias"]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def in_chunks(mixer: HyenaMixer, x: Tensor, sizes: list[int]) -> Tensor:
    state, found = mixer.init_state(x.shape[0]), []
    for chunk in x.split(sizes, 1):
        y, state = mixer.forward_chunk(chunk, state)
        found.append(y)
    return torch.cat(found, 1)


def in_steps(mixer: HyenaMixer, x: Tensor) -> Tensor:
    state, found = mixer.init_state(x.shape[0]), []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        found.append(y)
    return torch.stack(found, 1)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_the_published_equations(order: int, shift: float) -> None:
    mixer = build(order, shift=shift)
    for length in (1, 2, 31):
        x = torch.randn(B, length, D, dtype=torch.float64)
        # The window's rates are made in float32, as the published ones are stored.
        close(mixer(x), published(mixer, x, shift), 1e-6)


def test_filters_are_measured_against_max_length() -> None:
    short, long = build(), build()
    long.load_state_dict(short.state_dict())
    long.filter.max_length = 4 * MAX
    assert not torch.allclose(short.filter(0, 50), long.filter(0, 50), atol=1e-2)
    close(short.filter(0, 60)[20:50], short.filter(20, 50))


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_implementations_agree_with_all_gradients(implementation: str) -> None:
    x = torch.randn(B, 50, D, dtype=torch.float64)
    auto, other = build(), build(implementation=implementation)
    for mixer in (auto, other):
        mixer(x).square().sum().backward()
    for (name, parameter), twin in zip(auto.named_parameters(), other.parameters(), strict=True):
        assert parameter.grad is not None and twin.grad is not None and parameter.grad.abs().sum() > 0, name
        close(parameter.grad, twin.grad)


@pytest.mark.parametrize("order", [2, 3])
def test_chunks_and_steps_equal_the_whole(order: int) -> None:
    mixer = build(order)
    x = torch.randn(B, 70, D, dtype=torch.float64)
    whole = mixer(x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        cuts = torch.randint(0, 70, (5,), generator=generator).unique().tolist()
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 70], strict=True) if b > a]
        close(in_chunks(mixer, x, sizes), whole)
    close(in_steps(mixer, x), whole)
    with torch.no_grad():
        close(in_steps(mixer, x), whole)
        close(in_chunks(mixer, x, [1] * 35 + [35]), whole)


def test_gradients_flow_through_the_state() -> None:
    x = torch.randn(B, 30, D, dtype=torch.float64)
    for run in (lambda m: in_chunks(m, x, [4, 1, 25]), lambda m: in_steps(m, x)):
        whole, pieces = build(3), build(3)
        whole(x).square().sum().backward()
        run(pieces).square().sum().backward()
        for (name, parameter), twin in zip(whole.named_parameters(), pieces.named_parameters(), strict=True):
            assert parameter.grad is not None and twin[1].grad is not None, name
            close(twin[1].grad, parameter.grad, 1e-8)


def test_a_detached_state_still_trains_the_filter() -> None:
    mixer = build()
    x = torch.randn(B, 30, D, dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer.forward_chunk(x[:, :20], mixer.init_state(B))
    y, _ = mixer.forward_chunk(x[:, 20:], {name: value.detach() for name, value in state.items()})
    close(y, mixer(x)[:, 20:])
    y.square().sum().backward()
    assert mixer.filter.freq.grad is not None and mixer.filter.freq.grad.abs().sum() > 0
    # After an optimiser's step a training run computes the new kernel, not the one that the state holds.
    with torch.no_grad():
        mixer.filter.freq.mul_(1.5)
    state = {name: value.detach() for name, value in state.items()}
    without = {**state, "kernel": state["kernel"][:, :0]}
    assert not torch.allclose(mixer.forward_chunk(x[:, 20:], state)[0], y)
    close(mixer.forward_chunk(x[:, 20:], state)[0], mixer.forward_chunk(x[:, 20:], without)[0])


def test_steps_compute_each_lag_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, computed = build(), []
    forward = mixer.filter.forward

    def count(start: int, stop: int) -> Tensor:
        computed.append(stop - start)
        return forward(start, stop)

    monkeypatch.setattr(mixer.filter, "forward", count)
    with torch.no_grad():
        in_steps(mixer, torch.randn(B, MAX, D, dtype=torch.float64))
    assert len(computed) <= 10
    assert sum(computed) == MAX


def test_the_state_is_fp32_with_the_batch_first() -> None:
    mixer = build(dtype=torch.bfloat16)
    state = mixer.init_state(3)
    for _ in range(3):
        assert set(state) == set(KEYS)
        assert all(x.dtype == torch.float32 and x.shape[0] == 3 for x in state_tensors(state))
        y, state = mixer.step(torch.randn(3, D, dtype=torch.bfloat16), state)
        assert y.dtype == torch.bfloat16
    # One copy of the kernel for all rows.
    assert state["kernel"].stride(0) == 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("order", [2, 3])
def test_padding_changes_nothing(side: str, order: int) -> None:
    mixer = build(order)
    rows = [torch.randn(length, D, dtype=torch.float64) for length in (3, 17, 23)]
    padded = torch.full((3, 25, D), float("nan"), dtype=torch.float64)
    mask = torch.zeros(3, 25, dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(25 - len(row), 25) if side == "left" else slice(0, len(row))
        padded[i, span], mask[i, span] = row, True
    y = mixer(padded, mask)
    for i, row in enumerate(rows):
        close(y[i, mask[i]], mixer(row[None])[0])
    mixer(padded, mask)[mask].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters() if p.grad is not None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_chunks_continue_each_row_where_it_was(side: str) -> None:
    mixer = build(3)
    real = torch.tensor([[2, 9, 1], [10, 0, 10], [0, 5, 6], [10, 10, 0]])
    rows = [torch.randn(int(n), D, dtype=torch.float64) for n in real.sum(1)]
    state, found, taken = mixer.init_state(4), [[] for _ in rows], [0] * 4
    for column in range(3):
        chunk = torch.full((4, 10, D), float("nan"), dtype=torch.float64)
        mask = torch.zeros(4, 10, dtype=torch.bool)
        for i, row in enumerate(rows):
            n = int(real[i, column])
            span = slice(10 - n, 10) if side == "left" else slice(0, n)
            chunk[i, span], mask[i, span] = row[taken[i] : taken[i] + n], True
            taken[i] += n
        y, state = mixer.forward_chunk(chunk, state, mask)
        assert torch.isfinite(state["past"]).all()
        for i in range(4):
            found[i].append(y[i, mask[i]])
    for i, row in enumerate(rows):
        close(torch.cat(found[i]), mixer(row[None])[0])
    x = torch.randn(4, D, dtype=torch.float64)
    y, _ = mixer.step(x, state)
    for i, row in enumerate(rows):
        close(y[i], mixer(torch.cat([row, x[i : i + 1]])[None])[0, -1])


def test_packed_documents_do_not_see_each_other() -> None:
    mixer = build()
    documents = [torch.randn(n, D, dtype=torch.float64) for n in (5, 1, 14)]
    row = torch.cat([*documents, torch.full((3, D), float("nan"), dtype=torch.float64)])[None]
    ids = torch.cat([torch.full((n,), i) for i, n in enumerate((5, 1, 14, 3))])[None]
    mask = torch.arange(23)[None] < 20
    y = mixer(row, mask, ids)
    close(y[0, :20], torch.cat([mixer(d[None])[0] for d in documents]))


def test_the_future_is_not_seen() -> None:
    mixer = build()
    x = torch.randn(1, 60, D, dtype=torch.float64, requires_grad=True)
    mixer(x)[0, 30].sum().backward()
    assert x.grad is not None
    assert x.grad[0, 31:].abs().max() < 1e-12
    assert (x.grad[0, :31].abs().sum(-1) > 1e-6).all()


def test_beyond_max_length_names_the_option() -> None:
    mixer = build()
    with pytest.raises(ValueError, match="max_length"):
        mixer(torch.randn(1, MAX + 1, D, dtype=torch.float64))
    _, state = mixer.forward_chunk(torch.randn(1, MAX, D, dtype=torch.float64), mixer.init_state(1))
    with pytest.raises(ValueError, match="max_length"):
        mixer.step(torch.randn(1, D, dtype=torch.float64), state)


@pytest.mark.parametrize(
    "options", [{"order": 1}, {"max_length": 0}, {"emb_dim": 4}, {"target": 2.0}, {"short_filter_order": 0}]
)
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        HyenaMixer(D, **options)


def test_filters_are_fp32_under_autocast_and_for_bf16_weights() -> None:
    mixer = build(dtype=torch.float32)
    expected = mixer.filter(0, MAX)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixer.filter(0, MAX), expected)
        y = mixer(torch.randn(B, 20, D))
        assert y.dtype == torch.bfloat16
    low = build(dtype=torch.bfloat16).filter(0, MAX)
    assert low.dtype == torch.float32
    # Neighbouring lags stay apart: time itself is never stored in 8 bits.
    assert (low.diff(dim=0).abs().sum(1) > 0).all()


def test_filters_are_not_decayed_and_the_start_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = create_backbone("hyena", d_model=64, n_layers=8, max_length=100)
    options = parameter_options(model, lr=1e-3, weight_decay=0.1)
    assert all(o["weight_decay"] == 0.0 and o["lr"] == 1e-3 for n, o in options.items() if ".filter." in n)
    assert options["blocks.0.mixer.in_proj.weight"]["weight_decay"] == 0.1
    mixer = next(module for module in model.modules() if isinstance(module, HyenaMixer))
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert mixer.out_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert (mixer.filter.freq == 10.0).all()
    shapes = {name: tuple(x.shape) for name, x in mixer.state_dict().items()}
    assert shapes["short_filter.weight"] == (192, 1, 3)
    assert shapes["filter.deltas"] == (1, 1, 64)
    assert shapes["filter.freq"] == (1, 64)
    assert sum(name.endswith("freq") for name in shapes) == 1


def test_exports_with_dynamic_batch_and_length() -> None:
    model = create_backbone("hyena", d_model=8, n_layers=1, max_length=100)
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=2, max=100)
    example = (torch.randn(2, 20, 8), torch.ones(2, 20, dtype=torch.bool))
    shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    program = torch.export.export(model, example, dynamic_shapes=shapes)
    assert not any("longseq" in str(node.target) for node in program.graph.nodes)
    for rows, positions in ((1, 2), (3, 37), (8, 100)):
        x, mask = torch.randn(rows, positions, 8), torch.arange(positions)[None] < torch.randint(1, positions + 1, (rows, 1))
        close(program.module()(x, mask), model(x, mask), 1e-5)


def test_onnx_with_dynamic_batch_and_length(tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = create_backbone("hyena", d_model=8, n_layers=1, max_length=100).eval()
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=2, max=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A DFT of dynamic length is wrong in onnxruntime from opset 20 on.
        program = torch.onnx.export(
            model,
            (torch.randn(2, 20, 8),),
            dynamo=True,
            opset_version=18,
            dynamic_shapes={"x_BLD": {0: batch, 1: length}},
            verbose=False,
        )
    assert program is not None
    program.save(tmp_path / "hyena.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "hyena.onnx")
    for rows, positions in ((1, 3), (3, 37), (8, 100)):
        x = torch.randn(rows, positions, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        close(torch.from_numpy(found), model(x).detach(), 1e-4)
