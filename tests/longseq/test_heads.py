"""Pooling over real positions only, and strand symmetry."""

import pytest
import torch

from longseq.embeddings import StrandEmbedding
from longseq.heads import POOLS, BinHead, StrandBinHead, StrandPoolHead, StrandTokenHead, pool_bins, pool_positions

COMPLEMENT = [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("how", POOLS)
def test_padding_does_not_enter_the_pool(how: str) -> None:
    x = torch.randn(2, 9, 4)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, :5], mask[1, 3:] = True, True
    pooled = pool_positions(x, mask, how)
    for row, span in ((0, slice(0, 5)), (1, slice(3, 9))):
        assert torch.allclose(pooled[row], pool_positions(x[row : row + 1, span], None, how)[0], atol=1e-6)


def test_strand_heads_are_symmetric_under_reverse_complement() -> None:
    complement = torch.tensor(COMPLEMENT)
    ids = torch.randint(7, 11, (2, 12))
    other = complement[ids].flip(1)
    embedding = StrandEmbedding(8, vocab_size=16, complement=COMPLEMENT)
    hidden, hidden_other = embedding(ids)[0], embedding(other)[0]
    assert torch.allclose(hidden_other, hidden.flip(1, 2))
    pool = StrandPoolHead(8, n_outputs=3)
    assert torch.allclose(pool(hidden), pool(hidden_other), atol=1e-6)
    token = StrandTokenHead(8, n_outputs=16, complement=COMPLEMENT)
    assert torch.allclose(token(hidden_other), token(hidden).flip(1)[..., complement], atol=1e-6)


@pytest.mark.parametrize(("length", "bin_size"), [(12, 4), (13, 4), (3, 5), (7, 1), (1, 2)])
def test_bins_are_means_of_real_positions(length: int, bin_size: int) -> None:
    x, mask = torch.randn(2, length, 3), torch.ones(2, length, dtype=torch.bool)
    mask[0, (length + 1) // 2 :] = False
    pooled = pool_bins(x, mask, bin_size)
    assert pooled.shape == (2, -(-length // bin_size), 3)
    for row in range(2):
        for b in range(pooled.shape[1]):
            span = slice(b * bin_size, (b + 1) * bin_size)
            real = x[row, span][mask[row, span]] if bin_size > 1 else x[row, span]
            assert torch.allclose(pooled[row, b], real.mean(0) if len(real) else torch.zeros(3), atol=1e-6)
    assert torch.allclose(pool_bins(x, None, bin_size)[1], pooled[1], atol=1e-6)


def test_bin_heads() -> None:
    complement = torch.tensor(COMPLEMENT)
    ids = torch.randint(7, 11, (2, 12))
    embedding = StrandEmbedding(8, vocab_size=16, complement=COMPLEMENT)
    head = StrandBinHead(8, n_outputs=3, bin_size=4)
    hidden, other = embedding(ids)[0], embedding(complement[ids].flip(1))[0]
    assert torch.allclose(head(other), head(hidden).flip(1), atol=1e-6)
    assert BinHead(8, n_outputs=3)(hidden).shape == (2, 12, 3)
    with pytest.raises(ValueError, match="bin_size"):
        BinHead(8, n_outputs=3, bin_size=0)
