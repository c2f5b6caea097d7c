"""Exact equivariance to the reverse complement, for any network: two strands, one set of weights."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longseq.backbone import Backbone, Mixer, Stack, zero_padding
from longseq.layers.row_order import RowOrder
from longseq.layers.segments import number_segments


class ReverseComplement(Backbone):
    """Makes a network commute with the reverse complement: f(R x) = R f(x), where R reverses positions and channels.

    The first half of the channels is one strand, the second half the other one read from its end with its channels
    reversed; an embedding that maps complementary bases to channel-reversed vectors (`cat(emb(s), R emb(rc(s)))`) makes R
    of the network's input the reverse complement of the sequence. Every block runs on both strands with the same
    weights. Before each block the halves change places without being turned round, so a strand is read in alternating
    directions over depth; the norm after the last block does not exchange them. R moves the real positions of each
    segment only, so the property holds under padding on either side and for packed rows.

    Args:
        inner: the network of one strand: a `Stack`, whose blocks then exchange the strands, or any other `Backbone` or
            `Mixer`, which sees the strands once each, without exchange.
        strand_width: the width of `inner`; taken from its `d_model` if left out.
        exchange: whether the strands change places before the blocks of a `Stack`; without, each passes through the whole
            stack by itself, which is the wiring of the paper's equations.

    Attributes:
        d_model: the width in and out, both strands together: twice that of `inner`.

    Raises:
        ValueError: if the inner width is not known.

    Cost: that of `inner` on twice the batch.

    Paper: Caduceus, https://arxiv.org/abs/2403.03234, section 3.2, in the wiring of the published weights (their fused
    add-and-norm), which the equations do not show; the paper's own wiring is a different function of the same weights.
    """

    causal = False
    can_step = False
    reverse_complement = True

    def __init__(self, inner: Mixer, strand_width: int | None = None, *, exchange: bool = True) -> None:
        super().__init__()
        self.exchange = exchange
        width = getattr(inner, "d_model", None) if strand_width is None else strand_width
        if not isinstance(width, int):
            raise ValueError(f"{type(inner).__name__} does not say its d_model: give strand_width, its width in and out")
        self.inner = inner
        self.d_model = 2 * width
        self.max_length = inner.max_length

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        self.check_input(x_BLD, mask_BL, segment_ids_BL)
        segment_ids_BL = number_segments(segment_ids_BL, mask_BL)
        order = RowOrder(mask_BL, segment_ids_BL)
        first_BLD, second_BLD = zero_padding(x_BLD, mask_BL).chunk(2, dim=-1)
        # Both strands as rows, each in its own reading direction.
        strands = torch.cat([first_BLD, order.reverse(second_BLD).flip(-1)])
        both = None if mask_BL is None else torch.cat([mask_BL, mask_BL])
        both_ids = None if segment_ids_BL is None else torch.cat([segment_ids_BL, segment_ids_BL])
        if isinstance(self.inner, Stack) and self.exchange:
            strands = self._run_stack(self.inner, strands, both, both_ids, order)
        else:
            strands = self.inner(strands, both, both_ids)
        first_BLD, second_BLD = _split(strands, x_BLD.shape[0])
        return zero_padding(torch.cat([first_BLD, order.reverse(second_BLD.flip(-1))], dim=-1), mask_BL)

    def _run_stack(
        self, stack: Stack, strands: Tensor, mask: Tensor | None, segment_ids: Tensor | None, order: RowOrder
    ) -> Tensor:
        for block in stack.blocks:
            first, second = _split(strands.flip(-1), strands.shape[0] // 2)
            strands = torch.cat([order.reverse(second), order.reverse(first)])
            strands = self._run_block(block, strands, mask, segment_ids)
        return stack.final_norm(strands)

    def _run_block(self, block: nn.Module, x: Tensor, mask: Tensor | None, segment_ids: Tensor | None) -> Tensor:
        if isinstance(self.inner, Stack) and self.inner.gradient_checkpointing and torch.is_grad_enabled():
            y = checkpoint(block, x, mask, segment_ids, use_reentrant=False)
            assert isinstance(y, Tensor)
            return y
        return block(x, mask, segment_ids)


def _split(strands: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    # Not `chunk`, which would fix the batch size in an exported graph.
    return strands[:batch], strands[batch:]
