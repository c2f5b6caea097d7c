"""A whole model: embedding, backbone, head; built from the plain dict that its config.json holds."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from longseq.backbone import Backbone, State
from longseq.embeddings import StrandEmbedding, TokenEmbedding, create_embedding
from longseq.heads import StrandTokenHead, TokenHead, create_head
from longseq.layers.marks import KeepsMarks
from longseq.registry import create_backbone

if TYPE_CHECKING:
    from longseq.streaming import Stream


class SequenceModel(KeepsMarks):
    """Embedding, backbone and head.

    Args:
        embedding: turns inputs and mask into `(B, L, D)` and its mask.
        backbone: `(B, L, D) -> (B, L, D)`.
        head: turns `(B, L, D)` and the mask into the task's outputs.
        config: what `build_model` needs to build it again; kept and saved, not read.
    """

    def __init__(self, embedding: nn.Module, backbone: Backbone, head: nn.Module, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.backbone = backbone
        self.head = head
        self.config = config or {}
        if isinstance(head, (TokenHead, StrandTokenHead)) and head.tie:
            table = embedding.strand if isinstance(embedding, StrandEmbedding) else embedding
            if not isinstance(table, TokenEmbedding) or table.embedding.weight.shape != head.projection.weight.shape:
                raise ValueError("head.tie needs a token embedding of the head's size to share its matrix with")
            head.projection.weight = table.embedding.weight

    def features(self, inputs: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        """The backbone's `(B, L, D)` before the head."""
        x_BLD, mask_BL = self.embedding(inputs, mask_BL)
        return self.backbone(x_BLD, mask_BL, segment_ids_BL)

    def forward(self, inputs: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        """The task's outputs for whole sequences."""
        x_BLD, token_mask_BL = self.embedding(inputs, mask_BL)
        outputs = self.head(self.backbone(x_BLD, token_mask_BL, segment_ids_BL), token_mask_BL)
        # Heads that answer in the input's units undo what the embedding did with it.
        restore = getattr(self.head, "restore", None)
        return outputs if restore is None else restore(outputs, self.embedding, inputs, mask_BL)

    def init_state(self, batch_size: int) -> State:
        """The backbone's state before the first position."""
        return self.backbone.init_state(batch_size)

    def forward_chunk(self, inputs: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        """Outputs at the next L positions, and the state after them; for heads that answer at every position."""
        x_BLD, mask_BL = self.embedding(inputs, mask_BL)
        y_BLD, state = self.backbone.forward_chunk(x_BLD, state, mask_BL)
        return self.head(y_BLD, mask_BL), state

    def stream(self, batch_size: int = 1) -> "Stream":
        """A run over a sequence that comes in chunks of any sizes: `stream.push(chunk)` answers, see `longseq.streaming`.

        Raises:
            ValueError: if the model needs the whole sequence.
        """
        from longseq.streaming import Stream

        return Stream(self, batch_size)


def build_model(config: dict[str, Any], backbone: Backbone | None = None) -> SequenceModel:
    """Builds a model from its config.

    Args:
        config: with the keys `embedding`, `backbone` and `head`, each a dict with `name` and options. Other keys
            (`domain`, `task`, `labels`, `tokenizer`, ...) are kept for whoever uses the model.
        backbone: already built from `config["backbone"]`; None builds it.

    Raises:
        ValueError: for a missing key, an unknown name or an option out of range.
        TypeError: for an unknown option.
    """
    for key in ("embedding", "backbone", "head"):
        if "name" not in config.get(key, {}):
            raise ValueError(f"the model's config has no {key}.name; found the keys {sorted(config)}")
    if backbone is None:
        backbone = create_backbone(**config["backbone"])
    embedding = create_embedding(d_model=backbone.d_model, **config["embedding"])
    head = create_head(d_model=backbone.d_model, **config["head"])
    return SequenceModel(embedding, backbone, head, config)
