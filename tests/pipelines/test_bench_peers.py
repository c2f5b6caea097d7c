"""Peers compute what our operators compute, from the same inputs; and the block mask written by hand is the window's."""

import pytest
import torch

from longseq.pipelines.bench_cases import make_case
from longseq.pipelines.bench_peers import peers_of
from longseq.pipelines.bench_peers_attention import block_mask
from longseq.pipelines.bench_sizes import SIZES

SAME = ["diagonal_ssm", "dplr_ssm", "fft_conv", "causal_conv1d", "add_norm"]


@pytest.mark.parametrize("operator", SAME)
def test_peers_agree(operator: str) -> None:
    case = make_case(operator, SIZES["tiny"][operator][0], "cpu", torch.float32)
    expected = case.run("reference", *case.leaves)
    expected = expected if isinstance(expected, tuple) else (expected,)
    ((_, make),) = peers_of(case, "cpu")
    peer = make()
    found = peer.call(*peer.leaves)
    found = found if isinstance(found, tuple) else (found.transpose(1, 2),)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("length", [64, 640, 900])
@pytest.mark.parametrize(("window", "n_global"), [(256, 4), (100, 0), (8, 130)])
def test_block_mask_is_the_window(length: int, window: int, n_global: int) -> None:
    mask = block_mask(length, window, n_global, torch.device("cpu"))
    size, blocks = 128, -(-length // 128)
    query, key = (torch.arange(blocks * size).view(shape) for shape in ((-1, 1), (1, -1)))
    rule = ((query - key).abs() <= window) | (query < n_global) | (key < n_global)
    seen = torch.zeros_like(rule)
    for counts, places, full in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        for row in range(blocks):
            for column in places[0, 0, row, : counts[0, 0, row]].tolist():
                tile = (slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size))
                assert not seen[tile].any(), "a block is listed twice"
                seen[tile] = True if full else mask.mask_mod(0, 0, query[tile[0]], key[:, tile[1]])
    inside = (query < length) & (key < length)
    assert torch.equal(seen & inside, rule & inside)


def test_flex_attention_is_the_window() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    case = make_case("window_attention", {"B": 1, "L": 300, "H": 2, "P": 16, "W": 40, "G": 4}, "cpu", torch.float32)
    q, k, v = (leaf.detach().transpose(1, 2) for leaf in case.leaves)
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        found = flex_attention(q, k, v, block_mask=block_mask(300, 40, 4, q.device))
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.transpose(1, 2), case.run("reference", *case.leaves), rtol=1e-4, atol=1e-4)
