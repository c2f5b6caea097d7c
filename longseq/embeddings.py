"""Modules that turn what a tokenizer gives into `(B, L, D)`, each returning the mask that belongs to its output."""

from importlib import import_module
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


# Where each name's class stands; a domain's file is imported when one of its names is asked for.
EMBEDDINGS: dict[str, str | type[nn.Module]] = {
    "token": "longseq.embeddings:TokenEmbedding",
    "linear": "longseq.embeddings:LinearEmbedding",
    "strand": "longseq.embeddings:StrandEmbedding",
    "waveform": "longseq.embeddings_audio:WaveformEmbedding",
    "logmel": "longseq.embeddings_audio:LogMelEmbedding",
    "mfcc": "longseq.embeddings_audio:MFCCEmbedding",
    "series_patch": "longseq.embeddings_timeseries:SeriesPatchEmbedding",
    "series_mixing": "longseq.embeddings_timeseries:SeriesMixingEmbedding",
    "series_variate": "longseq.embeddings_timeseries:SeriesVariateEmbedding",
    "series_point": "longseq.embeddings_timeseries:SeriesPointEmbedding",
    "pixel": "longseq.embeddings_vision:PixelEmbedding",
    "patch": "longseq.embeddings_vision:PatchEmbedding",
    "tubelet": "longseq.embeddings_vision:TubeletEmbedding",
    "stem": "longseq.embeddings_stem:StemEmbedding",
    "roberta": "longseq.pretrained._modules:RobertaEmbedding",
}


def create_embedding(name: str, d_model: int, **options: Any) -> nn.Module:
    """An embedding by name, as a model's config.json holds it."""
    return find_class("embedding", name, EMBEDDINGS)(d_model, **options)


def find_class(what: str, name: str, places: dict[str, str | type[nn.Module]]) -> type[nn.Module]:
    """The class that a table of classes and `module:Class` holds under a name.

    Raises:
        ValueError: for an unknown name; the message holds the known ones.
    """
    if name not in places:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(places)}")
    place = places[name]
    if not isinstance(place, str):
        return place
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
