"""Embeddings and heads that published checkpoints have and nothing else here needs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.embeddings import EMBEDDINGS, TokenEmbedding
from longseq.heads import HEADS, TokenHead
from longseq.layers.norms import LayerNorm
from longseq.ops.tracing import is_exporting


class RobertaEmbedding(TokenEmbedding):
    """`norm(token + position + type)`, positions counted over the real tokens, from `pad_id + 1` on.

    Args:
        d_model: width.
        vocab_size: number of ids.
        n_positions: rows of the position table, of which the first `pad_id + 1` belong to no token.
        n_types: rows of the type table; only the first is used.
        pad_id: the id of padding, which has no position where no mask says so.
        norm_eps: added to the variance.
        dropout: on the result.

    Paper: RoBERTa, https://arxiv.org/abs/1907.11692; as in Longformer, https://arxiv.org/abs/2004.05150, section 5.
    """

    def __init__(
        self,
        d_model: int,
        *,
        vocab_size: int,
        n_positions: int,
        n_types: int = 1,
        pad_id: int = 1,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, vocab_size=vocab_size, dropout=dropout)
        self.pad_id = pad_id
        self.max_length = n_positions - pad_id - 1
        self.positions = nn.Embedding(n_positions, d_model)
        self.types = nn.Embedding(n_types, d_model)
        self.norm = LayerNorm(d_model, norm_eps)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`(B, L)` integers in, `(B, L, D)` and the same mask out."""
        if ids_BL.is_floating_point():
            raise TypeError(f"token ids must be integers, found {ids_BL.dtype}")
        exporting = is_exporting()
        if not exporting and ids_BL.shape[1] > self.max_length:
            raise ValueError(
                f"sequence of {ids_BL.shape[1]} tokens is longer than the checkpoint's {self.max_length} positions: crop it"
            )
        real_BL = ids_BL != self.pad_id if mask_BL is None else mask_BL
        place_BL = real_BL.long().cumsum(1) * real_BL + self.pad_id
        x_BLD = self.embedding(ids_BL) + self.positions(place_BL) + self.types.weight[0]
        return self.dropout(self.norm(x_BLD)), mask_BL


class MaskedTokenHead(TokenHead):
    """Token logits of the BERT family: `W norm(gelu(dense(x))) + b`, with W the token embedding where tied.

    Args:
        d_model: the backbone's width.
        n_outputs: the vocabulary.
        tie: use the token embedding's matrix (`SequenceModel` does the tying).
        norm_eps: added to the variance.

    Paper: BERT, https://arxiv.org/abs/1810.04805, appendix A.2; the dense layer and norm are those of the authors' code.
    """

    def __init__(self, d_model: int, *, n_outputs: int, tie: bool = True, norm_eps: float = 1e-5) -> None:
        super().__init__(d_model, n_outputs=n_outputs, bias=True, tie=tie)
        self.dense = nn.Linear(d_model, d_model)
        self.norm = LayerNorm(d_model, norm_eps)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """`(B, L, D)` in, `(B, L, O)` out."""
        return super().forward(self.norm(F.gelu(self.dense(x_BLD))), mask_BL)


class FirstTokenHead(nn.Module):
    """Class logits of the RoBERTa family, from the first position: `W tanh(dense(x_0)) + b`.

    Args:
        d_model: the backbone's width.
        n_outputs: O.
        dropout: before both maps.
    """

    def __init__(self, d_model: int, *, n_outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.projection = nn.Linear(d_model, n_outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """`(B, L, D)` in, `(B, O)` out."""
        del mask_BL
        return self.projection(self.dropout(torch.tanh(self.dense(self.dropout(x_BLD[:, 0])))))


def register_modules() -> None:
    """Makes them known to `build_model`."""
    EMBEDDINGS.setdefault("roberta", f"{__name__}:RobertaEmbedding")
    HEADS.setdefault("masked_token", f"{__name__}:MaskedTokenHead")
    HEADS.setdefault("first_token", f"{__name__}:FirstTokenHead")
