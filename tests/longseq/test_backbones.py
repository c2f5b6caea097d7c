"""The promises of the contract (longseq/backbone.py), held against every registered backbone."""

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longseq.backbone import Backbone, state_tensors
from longseq.checkpoint import load_model, save_model
from longseq.layers.marks import MARK
from longseq.model import build_model
from longseq.optim import parameter_groups, parameter_options
from longseq.registry import backbone_info, create_backbone, list_backbones

D, LENGTHS = 16, (1, 2, 3, 63, 257)
# An FFT or a sum over other blocks rounds differently when the future changes; everything else is bit for bit.
FFT = ("hyena", "s4")
NAMES = list_backbones()


def options(name: str) -> dict[str, Any]:
    """Tiny settings: the longest test sequence for whoever needs a length, two heads for whoever has heads."""
    known = backbone_info(name).options()
    wanted = {"max_length": 300, "n_heads": 2, "d_state": 8, "window": 8, "head_dim": 8, "expand": 2}
    return {key: value for key, value in wanted.items() if key in known}


def build(name: str, **extra: Any) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(name, d_model=D, n_layers=2, **options(name), **extra).eval()


def causal_forms() -> list[tuple[str, dict[str, Any]]]:
    """Every backbone in its causal form, if it has one."""
    found = []
    for name in NAMES:
        if build(name).causal:
            found.append((name, {}))
        elif "causal" in backbone_info(name).options():
            found.append((name, {"causal": True}))
    return found


def forms() -> list[tuple[str, dict[str, Any]]]:
    """Every backbone in every form: as it is, causal, bidirectional."""
    found: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in NAMES]
    found += [form for form in causal_forms() if form[1]]
    found += [(name, {"bidirectional": True}) for name in NAMES if build(name).causal and backbone_info(name).is_mixer]
    return found


def label(value: Any) -> str:
    return "-".join(value) if isinstance(value, dict) else str(value)


CAUSAL = pytest.mark.parametrize(("name", "extra"), causal_forms(), ids=label)
ALL = pytest.mark.parametrize(("name", "extra"), forms(), ids=label)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    scale = expected.abs().max().clamp(min=1.0)
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() <= tolerance * scale, (found - expected).abs().max()


# -- 1. masks


@ALL
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_real_position(name: str, extra: dict[str, Any], side: str) -> None:
    model = build(name, **extra)
    rows = [torch.randn(length, model.d_model) for length in (5, 23, 37)]
    padded = torch.full((3, 41, model.d_model), float("nan"))
    mask = torch.zeros(3, 41, dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(41 - len(row), 41)
        padded[i, span], mask[i, span] = row, True
    together = model(padded, mask)
    for i, row in enumerate(rows):
        close(together[i][mask[i]], model(row[None])[0])
    assert (together[~mask] == 0).all()


@ALL
def test_padding_leaves_gradients_finite(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    x = torch.randn(2, 12, model.d_model)
    x[0, 8:] = float("nan")
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 8:] = False
    model(x, mask).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# -- 2. causality


@CAUSAL
def test_the_future_is_not_seen(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    x = torch.randn(1, 70, model.d_model)
    before = model(x)
    for t in (1, 33, 69):
        changed = x.clone()
        changed[:, t:] = torch.randn_like(changed[:, t:])
        after = model(changed)
        if name in FFT:
            close(after[:, :t], before[:, :t], 1e-6)
        else:
            assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t:], before[:, t:])


# -- 3. one state


@CAUSAL
def test_whole_equals_chunks_equals_steps(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    x = torch.randn(2, 61, model.d_model)
    whole = model(x)
    for sizes in ([61], [1, 2, 3, 5, 50], [30, 31], [64 - 3]):
        state, outputs = model.init_state(2), []
        for chunk in x.split(sizes, dim=1):
            y, state = model.forward_chunk(chunk, state)
            outputs.append(y)
        close(torch.cat(outputs, 1), whole, 1e-4)
    state, outputs = model.init_state(2), []
    for t in range(61):
        y, state = model.step(x[:, t], state)
        outputs.append(y)
    close(torch.stack(outputs, 1), whole, 1e-4)


@CAUSAL
def test_state_is_fp32_and_carries_gradients(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    x = torch.randn(1, 20, model.d_model, requires_grad=True)
    model(x).square().sum().backward()
    assert x.grad is not None
    whole, x.grad = x.grad.clone(), None
    weights = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    y1, state = model.forward_chunk(x[:, :11], model.init_state(1))
    assert all(t.dtype == torch.float32 for t in state_tensors(state) if t.is_floating_point())
    y2, _ = model.forward_chunk(x[:, 11:], state)
    torch.cat([y1, y2], 1).square().sum().backward()
    assert x.grad is not None
    close(x.grad, whole, 1e-4)
    for n, p in model.named_parameters():
        if n in weights:
            assert p.grad is not None
            close(p.grad, weights[n], 1e-3)


@CAUSAL
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_different_lengths_continue_side_by_side(name: str, extra: dict[str, Any], side: str) -> None:
    model = build(name, **extra)
    x, seen = torch.randn(3, 60, model.d_model), [0, 0, 0]
    outputs: list[list[Tensor]] = [[], [], []]
    state = model.init_state(3)
    for counts in ((7, 0, 3), (1, 9, 9), (0, 0, 5), (12, 2, 12)):
        chunk = torch.full((3, 12, model.d_model), float("nan"))
        mask = torch.zeros(3, 12, dtype=torch.bool)
        for i, count in enumerate(counts):
            span = slice(0, count) if side == "right" else slice(12 - count, 12)
            chunk[i, span], mask[i, span] = x[i, seen[i] : seen[i] + count], True
            seen[i] += count
        y, state = model.forward_chunk(chunk, state, mask)
        for i in range(3):
            outputs[i].append(y[i][mask[i]])
    steps, _ = model.step(torch.stack([x[i, seen[i]] for i in range(3)]), state)
    for i in range(3):
        found = torch.cat([*outputs[i], steps[i : i + 1]])
        close(found, model(x[i : i + 1, : seen[i] + 1])[0], 1e-4)


@CAUSAL
def test_state_of_another_backbone_is_refused(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    other = create_backbone(name, d_model=2 * D, n_layers=2, **options(name), **extra)
    x = torch.randn(2, 5, D)
    for state in (other.init_state(2), build("gru" if name != "gru" else "mamba").init_state(2), None):
        with pytest.raises(ValueError, match=r"state.*expected.*found.*init_state"):
            model.step(x[:, 0], state)
        with pytest.raises(ValueError, match=r"state.*expected.*found.*init_state"):
            model.forward_chunk(x, state)


@CAUSAL
def test_state_does_not_grow_unless_it_says_so(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    sizes = []
    for length in (40, 200):
        _, state = model.forward_chunk(torch.randn(1, length, model.d_model), model.init_state(1))
        sizes.append(sum(t.numel() for t in state_tensors(state)))
    assert model.state_grows or sizes[0] == sizes[1]


@ALL
def test_a_backbone_that_cannot_step_says_so(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    if model.can_step:
        assert model.causal
        return
    with pytest.raises(ValueError, match=r"causal|step|direction"):
        model.init_state(1)
    with pytest.raises(ValueError, match=r"causal|step|direction"):
        model.step(torch.randn(1, model.d_model), None)


# -- 4. packed rows


@ALL
def test_packed_documents_do_not_see_each_other(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    documents = [torch.randn(1, length, model.d_model) for length in (7, 1, 20, 12)]
    row = torch.cat(documents, 1)
    ids = torch.cat([torch.full((1, d.shape[1]), i) for i, d in enumerate(documents)], 1)
    together = model(row, None, ids)
    close(together, torch.cat([model(d) for d in documents], 1), 5e-5)


@ALL
def test_an_id_that_comes_back_is_another_document(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    x, mask = torch.randn(1, 21, model.d_model), torch.ones(1, 21, dtype=torch.bool)
    # Padding between documents has an id too, here that of another document.
    mask[0, 9:12] = False
    found = model(x, mask, torch.tensor([[5] * 5 + [6] * 4 + [5] * 3 + [7] * 3 + [5] * 6]))
    for start, stop in ((0, 5), (5, 9), (12, 15), (15, 21)):
        close(found[:, start:stop], model(x[:, start:stop]), 5e-5)


# -- 5. lengths


@ALL
@pytest.mark.parametrize("length", LENGTHS)
def test_any_length(name: str, extra: dict[str, Any], length: int) -> None:
    y = build(name, **extra)(torch.randn(2, length, D))
    assert y.shape == (2, length, D)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", NAMES)
def test_beyond_max_length_names_the_option(name: str) -> None:
    model = build(name)
    if model.max_length is None:
        assert torch.isfinite(model(torch.randn(1, 700, D))).all()
    else:
        with pytest.raises(ValueError, match="max_length"):
            model(torch.randn(1, model.max_length + 1, D))


# -- 6. dtypes


@ALL
def test_bf16_follows_the_input(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    x = torch.randn(2, 50, model.d_model)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    close(mixed.float(), expected, 0.1)
    low = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    close(low.float(), expected, 0.2)


@CAUSAL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_streams_in_16_bits(name: str, extra: dict[str, Any], dtype: torch.dtype) -> None:
    model = build(name, **extra)
    x = torch.randn(2, 30, model.d_model)
    with torch.no_grad():
        expected, low = model(x), copy.deepcopy(model).to(dtype)
    for network, inputs, autocast in ((model, x, True), (low, x.to(dtype), False)):
        state, outputs = network.init_state(2), []
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
            for chunk in inputs.split([12, 1, 16, 1], 1):
                y, state = network.forward_chunk(chunk, state) if chunk.shape[1] > 1 else network.step(chunk[:, 0], state)
                outputs.append(y if y.ndim == 3 else y.unsqueeze(1))
        close(torch.cat(outputs, 1).float(), expected, 0.1)
        assert all(t.dtype == torch.float32 for t in state_tensors(state) if t.is_floating_point())


@ALL
def test_backward_may_be_called_within_autocast(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 20, model.d_model)).float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


# -- 7. parameters


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_and_norms_and_biases_are_not_decayed(name: str) -> None:
    model = build(name)
    given = parameter_options(model, lr=1e-2, weight_decay=0.1)
    groups = parameter_groups(model.named_parameters(), given)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim < 2 or getattr(parameter, MARK, {}).get("weight_decay") == 0.0:
            assert given[parameter_name]["weight_decay"] == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_trained_as_the_original(name: str) -> None:
    model = build(name)
    wanted = parameter_options(model, lr=1e-2, weight_decay=0.1)
    for copied in (copy.deepcopy(model), copy.deepcopy(nn.ModuleList([model]))[0], pickle.loads(pickle.dumps(model))):
        assert parameter_options(copied, lr=1e-2, weight_decay=0.1) == wanted
        x = torch.randn(1, 9, model.d_model)
        assert torch.equal(copied(x), model(x))


@ALL
def test_gradients_reach_every_parameter(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra).train()
    model(torch.randn(2, 30, model.d_model)).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_same_seed_same_numbers() -> None:
    for name in NAMES:
        first, second = build(name).state_dict(), build(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first), name


# -- 8. saving, compiling, exporting


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_gives_the_same(name: str, tmp_path: Any) -> None:
    config = {
        "embedding": {"name": "linear", "n_channels": 3},
        "backbone": {"name": name, "d_model": D, "n_layers": 2, **options(name)},
        "head": {"name": "pool", "n_outputs": 2},
    }
    model = build_model(config).eval()
    save_model(model, tmp_path / "model")
    x = torch.randn(2, 33, 3)
    assert torch.equal(load_model(tmp_path / "model")(x), model(x))


@ALL
@pytest.mark.usefixtures("few_rounds")
def test_exports_with_dynamic_batch_and_length(name: str, extra: dict[str, Any]) -> None:
    model = build(name, **extra)
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=300)
    program = torch.export.export(model, (torch.randn(2, 40, D),), dynamic_shapes={"x_BLD": {0: batch, 1: length}})
    for shape in ((1, 17), (3, 64), (2, 129)):
        x = torch.randn(*shape, D)
        close(program.module()(x), model(x), 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_compiled_gives_the_same(name: str) -> None:
    # Graphs of the other backbones count towards Dynamo's limit of recompilations.
    torch._dynamo.reset()
    model = build(name)
    x = torch.randn(2, 40, D)
    close(torch.compile(model, backend="aot_eager")(x), model(x), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_steps_compile_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model, x = build(name), torch.randn(2, 4, D)
    step = torch.compile(model.step, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        state, expected = model.init_state(2), model(x)
        for t in range(4):
            y, state = step(x[:, t], state)
            close(y, expected[:, t], 1e-4)


# -- bad input


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_answered(name: str) -> None:
    model = build(name)
    x = torch.randn(2, 10, D)
    with pytest.raises(TypeError, match="floating"):
        model(torch.ones(2, 10, D, dtype=torch.long))
    with pytest.raises(ValueError, match="d_model"):
        model(torch.randn(2, 10, D + 1))
    with pytest.raises(ValueError, match="mask"):
        model(x, torch.ones(2, 9, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask"):
        model(x, torch.ones(2, 10))
    with pytest.raises(ValueError, match="length 0"):
        model(x[:, :0])
    if model.can_step:
        with pytest.raises(ValueError, match="batch size"):
            model.step(x[:1, 0], model.init_state(2))
        with pytest.raises(ValueError, match="d_model"):
            model.step(torch.randn(2, D + 1), model.init_state(2))
        with pytest.raises(ValueError, match="d_model"):
            model.step(x, model.init_state(2))
        with pytest.raises(TypeError, match="floating"):
            model.step(torch.ones(2, D, dtype=torch.long), model.init_state(2))


@pytest.mark.parametrize("name", NAMES)
def test_nan_propagates(name: str) -> None:
    x = torch.randn(1, 10, D)
    x[0, 3] = float("nan")
    assert build(name)(x).isnan().any()


def test_unknown_names_and_options_get_the_nearest() -> None:
    with pytest.raises(ValueError, match="hyena"):
        create_backbone("hyeena")
    with pytest.raises(TypeError, match="max_length"):
        create_backbone("hyena", max_lenght=10)
    with pytest.raises(TypeError, match="did you mean bidirectional"):
        create_backbone("gru", bidirectonal=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'gru' has no option 'bais': did you mean bias"):
        create_backbone("mamba", pattern=["mamba", "gru"], pattern_options={"gru": {"bais": False}})


@pytest.mark.parametrize("name", NAMES)
def test_every_file_opens_with_its_paper(name: str) -> None:
    info = backbone_info(name)
    assert info.summary and info.cost and info.paper.startswith("https://")
    if info.build.__module__.startswith("longseq.backbones."):
        opening = sys.modules[info.build.__module__].__doc__ or ""
        assert info.paper in opening
        for part in ("\nEquation: ", "\nGood at ", "Not "):
            assert part in opening, part
