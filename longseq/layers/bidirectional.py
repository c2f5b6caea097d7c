"""Both directions from a causal mixer: one pass forward, one over the reversed sequence, and their merge."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from longseq.backbone import Mixer, zero_padding
from longseq.layers.marks import mark
from longseq.layers.row_order import RowOrder

Merge = Literal["add", "concat", "hydra"]


class Bidirectional(Mixer):
    """Runs a causal mixer over the sequence and another over its reversal, and merges what they say of each position.

    `add`: f(x) + R g(R x), with R the reversal. `concat`: W [f(x), R g(R x)]. `hydra`: S f(x) + R S g(R x) + d x, where
    S shifts by one position, so that the matrix that mixes the positions is quasiseparable and has a diagonal of its own
    (with `add` the diagonal is counted twice). R reverses the real positions of every segment in place: padding does not
    move to the front, and packed documents stay apart.

    Args:
        forward_mixer: causal, `(B, L, d_model) -> (B, L, d_model)`.
        reverse_mixer: causal, for the reversed sequence; the same object for one set of weights in both directions.
        d_model: width in and out.
        merge: `add`, `concat` or `hydra`.

    Raises:
        ValueError: for an unknown merge, or a mixer that already sees both sides.

    Cost: two passes of the mixer, and two gathers of (B, L, d_model).

    Paper: Hydra, https://arxiv.org/abs/2407.09941, section 3 (there d depends on the input; here it is one weight a
    channel); the sum of two passes is that of Caduceus, https://arxiv.org/abs/2403.03234, section 3.1.
    """

    causal = False
    can_step = False

    def __init__(self, forward_mixer: Mixer, reverse_mixer: Mixer, d_model: int, *, merge: Merge = "add") -> None:
        super().__init__()
        if merge not in get_args(Merge):
            raise ValueError(f"merge must be one of {', '.join(get_args(Merge))}, found {merge!r}")
        for mixer in (forward_mixer, reverse_mixer):
            if not mixer.causal:
                raise ValueError(f"{type(mixer).__name__} is not causal: it sees both sides already, use it as it is")
        self.merge = merge
        self.forward_mixer = forward_mixer
        # Shared weights stand in a checkpoint once.
        self.reverse_mixer = None if reverse_mixer is forward_mixer else reverse_mixer
        self.proj = nn.Linear(2 * d_model, d_model) if merge == "concat" else None
        self.D = mark(nn.Parameter(torch.ones(d_model)), weight_decay=0.0) if merge == "hydra" else None
        limits = [mixer.max_length for mixer in (forward_mixer, reverse_mixer) if mixer.max_length is not None]
        self.max_length = min(limits) if limits else None

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        x_BLD = zero_padding(x_BLD, mask_BL)
        order = RowOrder(mask_BL, segment_ids_BL)
        reverse_mixer = self.forward_mixer if self.reverse_mixer is None else self.reverse_mixer
        ahead_BLD = self.forward_mixer(x_BLD, mask_BL, segment_ids_BL)
        back_BLD = reverse_mixer(order.reverse(x_BLD), mask_BL, segment_ids_BL)
        if self.D is not None:
            ahead_BLD, back_BLD = order.shift(ahead_BLD), order.shift(back_BLD)
        back_BLD = order.reverse(back_BLD)
        if self.proj is not None:
            return self.proj(torch.cat([ahead_BLD, back_BLD], dim=-1))
        y_BLD = ahead_BLD + back_BLD
        return y_BLD if self.D is None else y_BLD + self.D.to(x_BLD.dtype) * x_BLD

    def extra_repr(self) -> str:
        return f"merge={self.merge!r}, share={self.reverse_mixer is None}"
