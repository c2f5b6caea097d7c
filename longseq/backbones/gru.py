"""GRU: the gated recurrent network, the baseline that every newer recurrent backbone has to beat.

Equation: h_t = (1 - z_t) n_t + z_t h_{t-1}, with gates z_t and r_t = sigmoid(linear(x_t, h_{t-1}))
          n_t = tanh(W x_t + b + r_t (U h_{t-1} + c)); the output is h_t.
Good at short sequences and small models. Not a state-space model: the recurrence is nonlinear, so it cannot run in parallel
over the length.

Paper: Learning Phrase Representations using RNN Encoder-Decoder, https://arxiv.org/abs/1406.1078.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.backbone import Mixer, State, zero_padding
from longseq.layers.compaction import Compaction
from longseq.layers.segments import find_segments, pack, segment_mask, unpack
from longseq.ops.tracing import is_exporting
from longseq.registry import register_backbone


@register_backbone(
    "gru",
    summary="gated recurrent unit, one step after the other",
    paper="https://arxiv.org/abs/1406.1078",
    cost="O(L), not parallel in L",
    state="d_model",
)
class GRU(Mixer):
    """`h_t = (1 - z_t) n_t + z_t h_{t-1}` with gates z, r and candidate n from the input and h_{t-1}; the output is h.

    It is `torch.nn.GRU` with one layer (cuDNN on a GPU), given rows without gaps: real positions are moved to the front,
    packed documents get rows of their own, and everything is put back afterwards. Unlike the state-space backbones its
    recurrence is nonlinear, so a sequence takes L steps after each other on any hardware.

    Args:
        d_model: width of input, state and output.
        bias: biases on the gates.

    Cost: time O(L d_model^2), L dependent steps; memory O(L d_model); a state of d_model numbers.

    Paper: https://arxiv.org/abs/1406.1078, equations 5 to 8, with the reset gate after the recurrent product, as in cuDNN.
    """

    def __init__(self, d_model: int, *, bias: bool = True) -> None:
        super().__init__()
        self.gru = nn.GRU(d_model, d_model, bias=bias, batch_first=True)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        x_BLD = zero_padding(x_BLD, mask_BL)
        if segment_ids_BL is None:
            return self._whole_rows(x_BLD, mask_BL)
        segments = find_segments(segment_ids_BL)
        y_SLD = self._whole_rows(unpack(x_BLD, segments), segment_mask(mask_BL, segments))
        return pack(y_SLD, segments)

    def _whole_rows(self, x_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        h_BD = torch.zeros_like(x_BLD[:, 0])
        if mask_BL is None:
            return self._recur(x_BLD, h_BD)[0]
        compaction = Compaction(mask_BL)
        return compaction.to_place(self._recur(compaction.to_front(x_BLD), h_BD)[0])

    def init_state(self, batch_size: int) -> State:
        """h before the first position: zeros (B, D)."""
        weight = self.gru.all_weights[0][0]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return torch.zeros(batch_size, self.gru.hidden_size, dtype=dtype, device=weight.device)

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        x_BLD = zero_padding(x_BLD, mask_BL)
        h_BD = state.to(x_BLD.dtype)
        if mask_BL is None:
            y_BLD, h_BD = self._recur(x_BLD, h_BD)
            return y_BLD, h_BD.to(state.dtype)
        compaction = Compaction(mask_BL)
        y_BLD, _ = self._recur(compaction.to_front(x_BLD), h_BD)
        # The output is the state; a row without a real position in this chunk keeps the one it had.
        any_real_B1 = (compaction.count_B > 0).unsqueeze(-1)
        state = torch.where(any_real_B1, compaction.last(y_BLD).to(state.dtype), state)
        return compaction.to_place(y_BLD), state

    def _recur(self, x_BLD: Tensor, h_BD: Tensor) -> tuple[Tensor, Tensor]:
        if is_exporting():
            return self._traceable(x_BLD, h_BD)
        y_BLD, h_1BD = self.gru(x_BLD, h_BD.unsqueeze(0))
        return y_BLD, h_1BD.squeeze(0)

    def _traceable(self, x_BLD: Tensor, h_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The same as a scan node, which has one body for any length; `nn.GRU` would be unrolled at the example's.

        The exported graph is for inference: a scan that recorded gradients would bring its backward pass along.
        """
        from torch._higher_order_ops.scan import scan

        weight_ih, weight_hh, *biases = (weight.detach() for weight in self.gru.all_weights[0])
        x_BLD, h_BD = x_BLD.detach(), h_BD.detach()
        bias_ih, bias_hh = biases if biases else (None, None)
        gates_BLG = F.linear(x_BLD, weight_ih, bias_ih)

        def cell(h_BD: Tensor, gates_BG: Tensor) -> tuple[Tensor, Tensor]:
            reset_in, update_in, new_in = gates_BG.chunk(3, dim=-1)
            reset_h, update_h, new_h = F.linear(h_BD, weight_hh, bias_hh).chunk(3, dim=-1)
            candidate = torch.tanh(new_in + torch.sigmoid(reset_in + reset_h) * new_h)
            h_BD = candidate + torch.sigmoid(update_in + update_h) * (h_BD - candidate)
            # A scan may not return one tensor twice.
            return h_BD, h_BD.clone()

        h_BD, y_LBD = scan(cell, h_BD, gates_BLG.transpose(0, 1))
        return y_LBD.transpose(0, 1), h_BD
