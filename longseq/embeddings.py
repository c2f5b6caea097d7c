"""Modules that turn what a tokenizer gives into `(B, L, D)`, each returning the mask that belongs to its output."""

from typing import Any

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    """A learned vector per token id.

    Args:
        d_model: width of the vectors.
        vocab_size: number of ids; ids run from 0 to vocab_size - 1.
        dropout: on the vectors.
        init_std: of the normal initialisation.
    """

    def __init__(self, d_model: int, *, vocab_size: int, dropout: float = 0.0, init_std: float = 0.02) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=init_std)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Looks ids up; `(B, L)` integers in, `(B, L, D)` and the same mask out."""
        if ids_BL.is_floating_point():
            raise TypeError(f"token ids must be integers, found {ids_BL.dtype}")
        return self.dropout(self.embedding(ids_BL)), mask_BL


class LinearEmbedding(nn.Module):
    """A linear map of C channels at each position, for real-valued input.

    Args:
        d_model: width out.
        n_channels: C.
    """

    def __init__(self, d_model: int, *, n_channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(n_channels, d_model)

    def forward(self, x_BLC: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`(B, L, C)` in, `(B, L, D)` and the same mask out."""
        if mask_BL is not None:
            x_BLC = x_BLC.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
        return self.projection(x_BLC), mask_BL


class StrandEmbedding(nn.Module):
    """Both strands side by side, for backbones made with `reverse_complement=True`.

    The first half of the width embeds the sequence; the second half embeds its reverse complement, with positions and
    channels flipped back, so that reverse-complementing the input flips the output's positions and channels.

    Args:
        d_model: of both strands together; even.
        complement: the complementary id of every id.
        vocab_size: number of ids.
        dropout: on the vectors.
    """

    complement: Tensor

    def __init__(self, d_model: int, *, vocab_size: int, complement: list[int], dropout: float = 0.0) -> None:
        super().__init__()
        if len(complement) != vocab_size:
            raise ValueError(f"complement must hold vocab_size={vocab_size} ids, found {len(complement)}")
        self.vocab_size = vocab_size
        self.strand = TokenEmbedding(d_model // 2, vocab_size=vocab_size, dropout=dropout)
        self.register_buffer("complement", torch.tensor(complement), persistent=False)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`(B, L)` ids in, `(B, L, D)` and the same mask out."""
        # Embedding the complement position by position is the flipped embedding of the reverse complement.
        forward_BLD, _ = self.strand(ids_BL)
        reverse_BLD, _ = self.strand(self.complement[ids_BL])
        return torch.cat([forward_BLD, reverse_BLD.flip(-1)], dim=-1), mask_BL


EMBEDDINGS: dict[str, type[nn.Module]] = {
    "token": TokenEmbedding,
    "linear": LinearEmbedding,
    "strand": StrandEmbedding,
}


def create_embedding(name: str, d_model: int, **options: Any) -> nn.Module:
    """An embedding by name, as a model's config.json holds it."""
    if name not in EMBEDDINGS:
        raise ValueError(f"unknown embedding {name!r}; known: {', '.join(EMBEDDINGS)}")
    return EMBEDDINGS[name](d_model, **options)
