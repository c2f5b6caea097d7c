"""The chunked loss is the plain one: value, gradients, and the logits that stand in memory."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.heads import StrandTokenHead, TokenHead
from longseq.losses import chunked_cross_entropy, position_chunks


@pytest.mark.parametrize(
    "head", [TokenHead(8, n_outputs=11), StrandTokenHead(8, n_outputs=11, complement=list(range(11))[::-1])]
)
@pytest.mark.parametrize("logits_at_once", [1, 40, 10_000])
def test_value_and_gradients_are_those_of_the_plain_loss(head: torch.nn.Module, logits_at_once: int) -> None:
    torch.manual_seed(0)
    x_ND = torch.randn(23, 8, dtype=torch.float64)
    labels_N = torch.randint(11, (23,))
    labels_N[::4] = -100
    head = head.double()
    found = []
    sizes: list[int] = []

    def project(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return head(x)

    for chunked in (True, False):
        x = x_ND.clone().requires_grad_()
        head.zero_grad()
        if chunked:
            loss = chunked_cross_entropy(project, x, labels_N, 11, logits_at_once=logits_at_once)
        else:
            loss = F.cross_entropy(head(x).float(), labels_N, ignore_index=-100)
        loss.backward()
        found.append([loss.detach(), x.grad, *(p.grad.clone() for p in head.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) == 3
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)
    assert max(sizes) == max(1, min(17, logits_at_once // 11))


def test_nothing_labelled_is_nan_as_in_the_plain_loss() -> None:
    x_ND, labels_N = torch.randn(3, 4, requires_grad=True), torch.full((3,), -100)
    assert chunked_cross_entropy(TokenHead(4, n_outputs=5), x_ND, labels_N, 5).isnan()


def test_slices_cover_every_position_once() -> None:
    found = [i for part in position_chunks(10, 3, 9) for i in range(part.start, part.stop)]
    assert found == list(range(10))


def test_one_chunk_is_computed_once_and_several_twice() -> None:
    head, x_ND, labels_N = TokenHead(4, n_outputs=5), torch.randn(12, 4, requires_grad=True), torch.arange(12) % 5
    rows: list[int] = []

    def project(x: Tensor) -> Tensor:
        rows.append(len(x))
        return head(x)

    chunked_cross_entropy(project, x_ND, labels_N, 5).backward()
    assert rows == [12]
    rows.clear()
    chunked_cross_entropy(project, x_ND, labels_N, 5, logits_at_once=20).backward()
    assert sorted(rows) == [4] * 6


def test_backward_makes_no_gradient_as_long_as_all_positions_for_each_chunk() -> None:
    x_ND, labels_N = torch.randn(64, 4, requires_grad=True), torch.arange(64) % 5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        chunked_cross_entropy(TokenHead(4, n_outputs=5), x_ND, labels_N, 5, logits_at_once=20).backward()
    names = {event.key for event in profiler.key_averages()}
    assert "SplitBackward0" in names and not any("SliceBackward" in name for name in names)
