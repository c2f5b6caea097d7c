"""Window attention: the blocked form against the dense one, and the dense one against the definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.ops.window_attention import window_attention

LENGTHS = (1, 2, 63, 64, 100, 257)
WINDOWS = (0, 3, 16, 40, 300)
TOLERANCE_FP64 = 1e-10


def random_qkv(batch: int, length: int, heads: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length, heads, width)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(6)]


def side_padding(batch: int, length: int) -> Tensor:
    """Row 0 is padded on the left, row 1 on the right, further rows not at all."""
    mask_BL = torch.ones(batch, length, dtype=torch.bool)
    mask_BL[0, : length // 3] = False
    if batch > 1:
        mask_BL[1, length - length // 4 :] = False
    return mask_BL


def run_with_gradients(tensors: list[Tensor], implementation: str, use_global: bool, **options: Any) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    q, k, v, qg, kg, vg = leaves
    if use_global:
        options |= {"q_global_BLHP": qg, "k_global_BLHP": kg, "v_global_BLHP": vg}
    y = window_attention(q, k, v, implementation=implementation, **options)
    weights = torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    (y * weights.cos()).sum().backward()
    return [y.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]


def assert_same(found: list[Tensor], expected: list[Tensor], atol: float = TOLERANCE_FP64) -> None:
    names = ("y", "dq", "dk", "dv", "dq_global", "dk_global", "dv_global")
    for name, a, b in zip(names, found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=atol, msg=lambda text, name=name: f"{name}: {text}")


def by_definition(q: Tensor, k: Tensor, v: Tensor, seen: list[list[list[int]]]) -> Tensor:
    """One softmax per query over the listed keys, with Python floats."""
    y = torch.zeros_like(q)
    for b, rows in enumerate(seen):
        for i, keys in enumerate(rows):
            for h in range(q.shape[2]):
                scores = [float(q[b, i, h] @ k[b, j, h]) / math.sqrt(q.shape[3]) for j in keys]
                largest = max(scores, default=0.0)
                total = sum(math.exp(s - largest) for s in scores)
                for j, s in zip(keys, scores, strict=True):
                    y[b, i, h] += math.exp(s - largest) / total * v[b, j, h]
    return y


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("causal", [False, True])
def test_matches_the_definition(implementation: str, causal: bool) -> None:
    q, k, v, *_ = (x.detach() for x in random_qkv(1, 9, 2, 4, seed=0))
    window, dilation = 2, 2
    seen = [[[j for j in range(9) if abs(i - j) <= 4 and (i - j) % 2 == 0 and (j <= i or not causal)] for i in range(9)]]
    y = window_attention(q, k, v, window=window, dilation=dilation, causal=causal, implementation=implementation)
    torch.testing.assert_close(y, by_definition(q, k, v, seen), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_global_tokens_match_the_definition(implementation: str) -> None:
    q, k, v, qg, kg, vg = (x.detach() for x in random_qkv(1, 8, 1, 4, seed=1))
    global_mask = torch.zeros(1, 8, dtype=torch.bool)
    global_mask[0, [0, 5]] = True
    # Token 5 is both a neighbour of 4..6 and global: it counts once.
    local = by_definition(q, k, v, [[[j for j in range(8) if abs(i - j) <= 1 or j in (0, 5)] for i in range(8)]])
    rows = by_definition(qg, kg, vg, [[list(range(8)) for _ in range(8)]])
    expected = torch.where(global_mask[:, :, None, None], rows, local)
    y = window_attention(
        q, k, v, window=1, global_mask_BL=global_mask, q_global_BLHP=qg, k_global_BLHP=kg, v_global_BLHP=vg,
        implementation=implementation,
    )  # fmt: skip
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0.0)


def test_window_wider_than_the_sequence_is_full_attention() -> None:
    q, k, v, *_ = random_qkv(2, 33, 2, 8, seed=2)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    full = sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    for implementation in ("reference", "chunked"):
        y = window_attention(q, k, v, window=32, implementation=implementation)
        torch.testing.assert_close(y, full, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [False, True])
def test_chunked_matches_reference(length: int, window: int, causal: bool) -> None:
    tensors = random_qkv(2, length, 2, 4, seed=length + window)
    options = {"window": window, "causal": causal, "mask_BL": side_padding(2, length)}
    assert_same(
        run_with_gradients(tensors, "chunked", False, **options), run_with_gradients(tensors, "reference", False, **options)
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_chunked_matches_reference_with_global_tokens(length: int, dilation: int, causal: bool, with_mask: bool) -> None:
    tensors = random_qkv(3, length, 2, 4, seed=length + dilation)
    generator = torch.Generator().manual_seed(length)
    global_mask = torch.rand(3, length, generator=generator) < 0.1
    global_mask[2] = False
    options = {"window": 7, "causal": causal, "dilation": dilation, "global_mask_BL": global_mask}
    if with_mask:
        options["mask_BL"] = side_padding(3, length)
    assert_same(
        run_with_gradients(tensors, "chunked", True, **options), run_with_gradients(tensors, "reference", True, **options)
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 3])
def test_segments(length: int, causal: bool, dilation: int) -> None:
    tensors = random_qkv(2, length, 1, 4, seed=length)
    segment_ids = torch.arange(length).expand(2, -1) * 3 // max(length, 1)
    global_mask = torch.zeros(2, length, dtype=torch.bool)
    global_mask[:, ::29] = True
    options = {
        "window": 11, "causal": causal, "dilation": dilation, "segment_ids_BL": segment_ids,
        "mask_BL": side_padding(2, length), "global_mask_BL": global_mask,
    }  # fmt: skip
    assert_same(
        run_with_gradients(tensors, "chunked", True, **options), run_with_gradients(tensors, "reference", True, **options)
    )


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_segments_are_as_if_alone(implementation: str) -> None:
    q, k, v, *_ = random_qkv(1, 50, 2, 4, seed=3)
    segment_ids = torch.tensor([[4] * 20 + [9] * 30])
    packed = window_attention(q, k, v, window=8, segment_ids_BL=segment_ids, implementation=implementation)
    parts = [window_attention(*(x[:, a:b] for x in (q, k, v)), window=8) for a, b in ((0, 20), (20, 50))]
    torch.testing.assert_close(packed, torch.cat(parts, dim=1), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 3])
def test_earlier_keys_in_front(implementation: str, causal: bool, dilation: int) -> None:
    """Queries at the last L of M positions give the last L rows of the whole."""
    q, k, v, *_ = random_qkv(2, 70, 2, 4, seed=4)
    mask = side_padding(2, 70)
    segment_ids = (torch.arange(70) > 41).long().expand(2, -1)
    options = {"window": 6, "causal": causal, "dilation": dilation, "mask_BL": mask, "segment_ids_BL": segment_ids}
    whole = window_attention(q, k, v, implementation="reference", **options)
    for last in (1, 2, 17, 37, 69, 70):
        tail = window_attention(q[:, -last:], k, v, implementation=implementation, **options)
        torch.testing.assert_close(tail, whole[:, -last:], atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_padding_is_never_read(implementation: str, poison: float) -> None:
    length, mask = 40, side_padding(2, 40)
    global_mask = torch.zeros(2, length, dtype=torch.bool)
    global_mask[:, [0, 20, 39]] = True
    options = {"window": 5, "mask_BL": mask, "global_mask_BL": global_mask}
    clean = random_qkv(2, length, 2, 4, seed=5)
    poisoned = [torch.where(mask[:, :, None, None], x.detach(), torch.tensor(poison, dtype=x.dtype)) for x in clean]
    expected = run_with_gradients(clean, implementation, True, **options)
    found = run_with_gradients(poisoned, implementation, True, **options)
    assert_same(found, expected, atol=1e-12)
    assert (found[0][~mask] == 0).all()


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_a_row_of_padding_gives_zeros_and_finite_gradients(implementation: str) -> None:
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0] = False
    global_mask = torch.zeros(2, 20, dtype=torch.bool)
    global_mask[:, 0] = True
    options = {"window": 3, "mask_BL": mask, "global_mask_BL": global_mask}
    found = run_with_gradients(random_qkv(2, 20, 1, 4, seed=6), implementation, True, **options)
    assert (found[0][0] == 0).all()
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("dtype,atol", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_keeps_a_float32_softmax(dtype: torch.dtype, atol: float) -> None:
    tensors = [x.detach() for x in random_qkv(2, 100, 2, 16, seed=7, dtype=torch.float32)]
    exact = window_attention(*(x.to(dtype).double() for x in tensors[:3]), window=9, implementation="reference")
    for implementation in ("reference", "chunked"):
        y = window_attention(*(x.to(dtype) for x in tensors[:3]), window=9, implementation=implementation)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), exact, atol=atol, rtol=atol)


def test_causal_outputs_do_not_see_the_future() -> None:
    tensors = [x.detach() for x in random_qkv(1, 90, 1, 4, seed=8)]
    changed = [x.clone() for x in tensors]
    for x in changed:
        x[:, 50:] += 1.0
    for implementation in ("reference", "chunked"):
        a, b = (window_attention(*x[:3], window=30, causal=True, implementation=implementation) for x in (tensors, changed))
        assert torch.equal(a[:, :50], b[:, :50])


def test_scale_is_used() -> None:
    q, k, v, *_ = random_qkv(1, 12, 1, 4, seed=9)
    plain = window_attention(q, k, v, window=4)
    for implementation in ("reference", "chunked"):
        y = window_attention(2.0 * q, k, v, window=4, scale=0.25, implementation=implementation)
        torch.testing.assert_close(y, plain, atol=1e-12, rtol=0.0)


def test_max_global_changes_nothing_and_is_checked() -> None:
    tensors = random_qkv(2, 30, 1, 4, seed=10)
    global_mask = torch.zeros(2, 30, dtype=torch.bool)
    global_mask[0, :3] = True
    q, k, v, *_ = tensors
    counted = window_attention(q, k, v, window=4, global_mask_BL=global_mask)
    bounded = window_attention(q, k, v, window=4, global_mask_BL=global_mask, max_global=5)
    torch.testing.assert_close(bounded, counted, atol=1e-12, rtol=0.0)
    with pytest.raises(ValueError, match="max_global=2: a row of global_mask_BL has 3"):
        window_attention(q, k, v, window=4, global_mask_BL=global_mask, max_global=2)


def test_memory_is_linear_in_length() -> None:
    """No tensor that autograd keeps, and none it makes on the way, grows with the square of the length."""
    sizes = {}
    for length in (512, 2048):
        largest = 0

        def note(x: Tensor) -> Tensor:
            nonlocal largest
            largest = max(largest, x.numel())
            return x

        q, k, v, *_ = random_qkv(1, length, 1, 4, seed=11, dtype=torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            window_attention(q, k, v, window=16, implementation="chunked")
        sizes[length] = largest
    assert sizes[2048] <= 4.2 * sizes[512]


class Attend(torch.nn.Module):
    """Window attention with one global token, as a module that the exporter takes."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        global_mask = mask & (mask.long().cumsum(1) == 1)
        return window_attention(x, x, x, window=20, mask_BL=mask, global_mask_BL=global_mask, max_global=1)


def test_export_serves_any_batch_and_length() -> None:
    dims = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=4096)}
    example = (torch.randn(2, 50, 2, 4), side_padding(2, 50))
    program = torch.export.export(Attend(), example, dynamic_shapes=(dims, dims)).module()
    for batch, length in ((1, 7), (3, 133)):
        x, mask = torch.randn(batch, length, 2, 4), side_padding(batch, length)
        torch.testing.assert_close(program(x, mask), Attend()(x, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes,error,message",
    [
        ({"window": -1}, ValueError, "window=-1"),
        ({"dilation": 0}, ValueError, "dilation=0"),
        ({"implementation": "cuda"}, ValueError, "implementation='cuda': expected one of auto, reference"),
        ({"mask_BL": torch.ones(2, 9)}, TypeError, "mask_BL: expected bool"),
        ({"mask_BL": torch.ones(2, 8, dtype=torch.bool)}, ValueError, r"mask_BL: expected shape \(2, 9\)"),
        ({"segment_ids_BL": torch.zeros(2, 9)}, TypeError, "segment_ids_BL: expected integers"),
        ({"q_global_BLHP": torch.zeros(2, 9, 1, 4)}, ValueError, "without global_mask_BL"),
        ({"global_mask_BL": torch.ones(2, 9)}, TypeError, "global_mask_BL: expected bool"),
        ({"max_global": -1}, ValueError, "max_global=-1"),
        ({"k_BLHP": torch.zeros(2, 9, 1, 5)}, ValueError, "must agree in batch, heads and width"),
        ({"k_BLHP": torch.zeros(2, 8, 1, 4), "v_BLHP": torch.zeros(2, 8, 1, 4)}, ValueError, "9 queries and 8 keys"),
        ({"q_BLHP": torch.zeros(2, 9, 4)}, ValueError, r"q_BLHP: expected \(batch, length, heads, width\)"),
        ({"v_BLHP": torch.zeros(2, 9, 1, 4).half()}, TypeError, "v_BLHP: expected the floating dtype"),
    ],
)
def test_errors_name_the_argument(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {name: torch.zeros(2, 9, 1, 4) for name in ("q_BLHP", "k_BLHP", "v_BLHP")}
    arguments |= {"window": 2} | changes
    with pytest.raises(error, match=message):
        window_attention(**arguments)


def test_global_projections_come_together() -> None:
    x, global_mask = torch.zeros(2, 9, 1, 4), torch.ones(2, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="come together"):
        window_attention(x, x, x, window=2, global_mask_BL=global_mask, q_global_BLHP=x)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [*LENGTHS, 4096])
@pytest.mark.parametrize("window,width", [(7, 64), (100, 40)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype,atol", [(torch.float32, 2e-4), (torch.bfloat16, 4e-2)])
def test_chunked_matches_reference_on_a_gpu(
    length: int, window: int, width: int, causal: bool, dtype: torch.dtype, atol: float
) -> None:
    tensors = [x.detach().to("cuda", dtype) for x in random_qkv(2, length, 2, width, seed=length)]
    mask, global_mask = side_padding(2, length).cuda(), torch.zeros(2, length, dtype=torch.bool, device="cuda")
    global_mask[:, ::97] = True
    options = {"window": window, "causal": causal, "mask_BL": mask, "global_mask_BL": global_mask}
    found = run_with_gradients(tensors, "chunked", True, **options)
    expected = run_with_gradients([x.double() for x in tensors], "reference", True, **options)
    for a, b in zip(found, expected, strict=True):
        # Gradients of global keys sum over the whole row, so the error is measured against the largest value.
        assert (a.double() - b).abs().max() <= atol * b.abs().max().clamp(min=1.0)
