"""A model that answers while its input arrives: chunks of any sizes in, the whole sequence's answers out."""

from typing import cast

import torch
from torch import Tensor, nn

from longseq.backbone import State, state_bytes
from longseq.embeddings import LinearEmbedding, StrandEmbedding, TokenEmbedding
from longseq.embeddings_audio import LogMelEmbedding, WaveformEmbedding, as_samples
from longseq.heads import BinHead, PoolHead, TokenHead
from longseq.model import SequenceModel


class Stream:
    """One run of a model over a sequence that comes in chunks; not to be confused with several sequences, each of which needs
    a stream (or a row of one) of its own.

    What all `push` calls and `finish` return, one behind the other, equals the output for the whole sequence. The memory is
    that of the backbone's state and of at most a few frames of input, whatever the length; backbones whose state grows
    (`state_grows`) keep their past.

    Args:
        model: with a causal backbone; it is put into evaluation mode.
        batch_size: sequences that run side by side.

    Raises:
        ValueError: if the backbone sees the future, or embedding or head need the whole sequence.
    """

    def __init__(self, model: SequenceModel, batch_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}")
        if not model.backbone.can_step:
            raise model.backbone.cannot_step()
        self.model = model.eval()
        self.batch_size = batch_size
        self.frames = input_frames(model, batch_size)
        self.pool = RunningPool(model.head) if isinstance(model.head, PoolHead) else None
        per_position = isinstance(model.head, TokenHead) or (isinstance(model.head, BinHead) and model.head.bin_size == 1)
        if self.pool is None and not per_position:
            raise ValueError(
                f"the head {type(model.head).__name__} answers for whole sequences alone and cannot stream; heads that stream "
                "are token and bins of one position (an answer per position), and pool (the answer so far)"
            )
        self.state: State = model.init_state(batch_size)
        self.positions = 0
        self.finished = False

    @property
    def state_bytes(self) -> int:
        """Memory that the backbone's state takes now."""
        return state_bytes(self.state)

    @torch.inference_mode()
    def push(self, chunk: Tensor) -> Tensor:
        """Takes the next piece of the input.

        Args:
            chunk: token ids `(B, n)`, samples `(B, n)`, or vectors `(B, n, C)`; n may be 0 and differ from call to call.

        Returns:
            Heads that answer per position: the answers at the positions that are complete now, `(B, m, O)`; m may be 0. Pooled
            heads: the answer to what has come so far, `(B, O)`; NaN as long as no position is complete.

        Raises:
            ValueError: for another batch size, or after `finish`.
            TypeError: for what is no tensor.
        """
        if self.finished:
            raise ValueError("the stream is finished: begin another with model.stream()")
        if not isinstance(chunk, Tensor):
            raise TypeError(f"a chunk must be a torch.Tensor, found {type(chunk).__name__}: torch.as_tensor makes one of it")
        if chunk.ndim < 2 or chunk.shape[0] != self.batch_size:
            raise ValueError(f"a chunk must be (batch={self.batch_size}, places, ...), found {tuple(chunk.shape)}")
        return self._answer(self.frames.push(chunk))

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """What is still to be answered once the input has ended: the last, incomplete frame of sound. Like `push` otherwise."""
        if self.finished:
            raise ValueError("the stream is finished already")
        self.finished = True
        return self._answer(self.frames.finish())

    def _answer(self, x_BLD: Tensor) -> Tensor:
        length = x_BLD.shape[1]
        if length == 1:
            y_BD, self.state = self.model.backbone.step(x_BLD[:, 0], self.state)
            y_BLD = y_BD.unsqueeze(1)
        elif length:
            y_BLD, self.state = self.model.backbone.forward_chunk(x_BLD, self.state)
        else:
            y_BLD = x_BLD
        self.positions += length
        return self.model.head(y_BLD) if self.pool is None else self.pool.push(y_BLD)


class RunningPool:
    """A pooled head's answer to all positions so far, without keeping them.

    Args:
        head: its pooling and its map to outputs.
    """

    def __init__(self, head: PoolHead) -> None:
        self.head = head
        self.count = 0
        # float64: a sum of millions of positions keeps its last digits.
        self.pooled_BD: Tensor | None = None

    def push(self, y_BLD: Tensor) -> Tensor:
        """Adds positions `(B, L, D)` and gives the current answer `(B, O)`."""
        if y_BLD.shape[1]:
            self._add(y_BLD)
        self.count += y_BLD.shape[1]
        if self.pooled_BD is None:
            return y_BLD.new_full((y_BLD.shape[0], self.head.projection.out_features), torch.nan)
        pooled_BD = self.pooled_BD / self.count if self.head.pool == "mean" else self.pooled_BD
        return self.head.projection(pooled_BD.to(y_BLD.dtype))

    def _add(self, y_BLD: Tensor) -> None:
        how, held_BD = self.head.pool, self.pooled_BD
        if how == "mean":
            new_BD = y_BLD.sum(1, dtype=torch.float64)
            self.pooled_BD = new_BD if held_BD is None else held_BD + new_BD
        elif how == "max":
            new_BD = y_BLD.amax(1)
            self.pooled_BD = new_BD if held_BD is None else torch.maximum(held_BD, new_BD)
        elif how == "last" or held_BD is None:
            self.pooled_BD = y_BLD[:, 0 if how == "first" else -1]


class Frames:
    """An embedding that looks at one place at a time: every place is a position at once.

    Args:
        embedding: of tokens or vectors.
        d_model: D, its width.
        batch_size: B.
    """

    def __init__(self, embedding: nn.Module, d_model: int, batch_size: int) -> None:
        self.embedding, self.d_model, self.batch_size = embedding, d_model, batch_size

    def push(self, chunk: Tensor) -> Tensor:
        """The positions `(B, L, D)` that a chunk completes."""
        return self.embedding(chunk)[0]

    def finish(self) -> Tensor:
        """The positions that are left at the end."""
        return next(self.embedding.parameters()).new_zeros(self.batch_size, 0, self.d_model)


class SampleFrames(Frames):
    """An embedding of sound, whose positions see samples before and behind their own.

    The samples that the next position looks back on are kept and embedded again with every chunk; what they give a second
    time is dropped. So the embedding itself is run as it is.

    Args:
        embedding: with `stride`, samples of a position, `lookback`, samples that a position sees before its first one, and
            `lookahead`, behind its last one.
        d_model: D, its width.
        batch_size: B.
    """

    def __init__(self, embedding: WaveformEmbedding | LogMelEmbedding, d_model: int, batch_size: int) -> None:
        super().__init__(embedding, d_model, batch_size)
        self.sound = embedding
        self.samples_BT = embedding.projection.weight.new_zeros(batch_size, 0)
        # Of the first sample that is kept; positions that were given out; samples that have come.
        self.first, self.given, self.seen = 0, 0, 0

    def push(self, chunk: Tensor) -> Tensor:
        """The positions whose samples have all come."""
        samples_BT = as_samples(chunk, None).to(self.samples_BT)
        self.samples_BT = torch.cat([self.samples_BT, samples_BT], 1)
        self.seen += samples_BT.shape[1]
        return self._give(max(self.given, (self.seen - self.sound.lookahead) // self.sound.stride))

    def finish(self) -> Tensor:
        """The positions that the row's end leaves incomplete; beyond it are zeros."""
        return self._give(self.sound.output_length(self.seen))

    def _give(self, until: int) -> Tensor:
        stride = self.sound.stride
        if until == self.given:
            return super().finish()
        x_BLD = cast(Tensor, self.embedding(self.samples_BT)[0])
        skipped = self.first // stride
        x_BLD = x_BLD[:, self.given - skipped : until - skipped]
        self.given = until
        # Whole positions, so that the frames of what is kept lie where they lay.
        first = max(0, (until * stride - self.sound.lookback) // stride * stride)
        self.samples_BT, self.first = self.samples_BT[:, first - self.first :].clone(), first
        return x_BLD


def input_frames(model: SequenceModel, batch_size: int) -> Frames:
    """How a model's embedding takes its input in chunks.

    Raises:
        ValueError: if it needs the whole input.
    """
    embedding, d_model = model.embedding, model.backbone.d_model
    if isinstance(embedding, (TokenEmbedding, StrandEmbedding, LinearEmbedding)):
        return Frames(embedding, d_model, batch_size)
    if isinstance(embedding, (WaveformEmbedding, LogMelEmbedding)):
        return SampleFrames(embedding, d_model, batch_size)
    raise ValueError(
        f"the embedding {type(embedding).__name__} needs its whole input (a window that it normalises, or an image) and cannot "
        "stream: run the model on whole inputs; tokens, vectors and sound can stream"
    )
