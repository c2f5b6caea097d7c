"""CNN: gated dilated convolutions, which remain hard to beat on DNA and are the cheapest backbone here.

Equation: y = W (gelu(a * x) sigmoid(b * x))
          with kernels a and b of few taps, whose dilation doubles from layer to layer.
Good at motifs: what stands near decides, as on DNA. Not Hyena, whose convolutions reach everywhere, and not the short
convolution in front of a state-space model.

Paper: Revisiting Convolution Architecture in the Realm of DNA Foundation Models (ConvNova), https://arxiv.org/abs/2502.18538.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.backbone import Mixer, State, zero_padding
from longseq.layers.compaction import Compaction, rows_from
from longseq.registry import register_backbone


@register_backbone(
    "cnn",
    summary="gated dilated convolutions; sees a fixed neighbourhood",
    paper="https://arxiv.org/abs/2502.18538",
    cost="O(L * d_conv)",
    state="(d_conv - 1) * dilation * d_model, causal form only",
    mlp_ratio=2.0,
)
class DilatedConv(Mixer):
    """`y = W (gelu(conv_a(x)) * sigmoid(conv_b(x)))` with a dilation that doubles from layer to layer.

    A stack sees `1 + (d_conv - 1) * sum of dilations` positions and nothing further: with the defaults and seven layers
    1,017, half of them on each side (all behind when causal). Padding and other documents count as zeros, like the
    sequence's ends.

    Args:
        d_model: width in and out.
        d_conv: taps of the kernel, odd.
        dilations: by layer, repeated over depth.
        separable: a depthwise convolution before a pointwise one, d_conv times cheaper, instead of a full convolution.
        causal: all taps at or before the position; False centres the kernel.
        bias: biases on the convolutions and the projection.
        layer_index: place in the stack, which picks from `dilations`.

    Raises:
        ValueError: for an even kernel, or dilations below 1.

    Cost: time O(L d_conv d_model^2), or O(L (d_conv + d_model) d_model) when separable; memory O(L d_model).

    Paper: https://arxiv.org/abs/2502.18538, section 3 (gated branches, dilation instead of pooling). Here both branches
    are one convolution, norms are the stack's (per position, so that padding cannot enter them), and there is no
    separate reverse-complement branch: `reverse_complement=True` does that for any backbone.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_conv: int = 9,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
        separable: bool = False,
        causal: bool = False,
        bias: bool = True,
        layer_index: int = 0,
    ) -> None:
        super().__init__()
        if d_conv < 1 or d_conv % 2 == 0:
            raise ValueError(f"d_conv={d_conv}: expected an odd number of taps, so that a kernel has a centre")
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations={list(dilations)}: expected at least one number, each 1 or more")
        self.d_conv = d_conv
        self.dilation = int(dilations[layer_index % len(dilations)])
        self.separable = separable
        self.causal = self.can_step = causal
        groups, width = (d_model, d_model) if separable else (1, 2 * d_model)
        self.conv = nn.Conv1d(d_model, width, d_conv, dilation=self.dilation, groups=groups, bias=bias)
        self.pointwise = nn.Linear(d_model, 2 * d_model, bias=bias) if separable else nn.Identity()
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    @property
    def reach(self) -> int:
        """Distance between the first tap and the last."""
        return (self.d_conv - 1) * self.dilation

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        x_BLD = zero_padding(x_BLD, mask_BL)
        if segment_ids_BL is not None:
            return self._gate(self._convolve_segments(x_BLD, segment_ids_BL))
        front, back = self._margins()
        return self._gate(self._convolve(F.pad(x_BLD, (0, 0, front, back))))

    def _margins(self) -> tuple[int, int]:
        return (self.reach, 0) if self.causal else (self.reach // 2, self.reach // 2)

    def _convolve(self, x_BLD: Tensor) -> Tensor:
        return self.conv(x_BLD.transpose(1, 2)).transpose(1, 2)

    def _convolve_segments(self, x_BLD: Tensor, segment_ids_BL: Tensor) -> Tensor:
        """Tap by tap, so that each product can leave out the positions of other documents."""
        front, back = self._margins()
        length = x_BLD.shape[1]
        padded_BLD = F.pad(x_BLD, (0, 0, front, back))
        # Beyond the ends stand zeros, so whichever document they are counted to makes no difference.
        padded_ids_BL = F.pad(segment_ids_BL, (front, back))
        y_BLC = x_BLD.new_zeros(*x_BLD.shape[:2], self.conv.out_channels)
        for tap in range(self.d_conv):
            start = tap * self.dilation
            same_BL = padded_ids_BL.narrow(1, start, length) == segment_ids_BL
            shifted_BLD = padded_BLD.narrow(1, start, length).masked_fill(~same_BL.unsqueeze(-1), 0.0)
            weight = self.conv.weight[:, :, tap]
            y_BLC = y_BLC + (shifted_BLD * weight.squeeze(1) if self.separable else F.linear(shifted_BLD, weight))
        return y_BLC if self.conv.bias is None else y_BLC + self.conv.bias

    def _gate(self, y_BLC: Tensor) -> Tensor:
        value_BLD, gate_BLD = self.pointwise(y_BLC).chunk(2, dim=-1)
        return self.out_proj(F.gelu(value_BLD) * gate_BLD.sigmoid())

    def init_state(self, batch_size: int) -> State:
        """The last inputs that the kernel still reaches, zeros before the first."""
        if not self.causal:
            raise self.cannot_step()
        weight = self.conv.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return torch.zeros(batch_size, self.reach, self.out_proj.in_features, dtype=dtype, device=weight.device)

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        if not self.causal:
            raise self.cannot_step()
        if mask_BL is None:
            whole_BLD = torch.cat((state.to(x_BLD.dtype), x_BLD), dim=1)
            kept_BLD = whole_BLD[:, x_BLD.shape[1] :]
            return self._gate(self._convolve(whole_BLD)), kept_BLD.to(state.dtype)
        # A row's last inputs are its last real ones, wherever the chunk's padding stands.
        compaction = Compaction(mask_BL)
        whole_BLD = torch.cat((state.to(x_BLD.dtype), compaction.to_front(x_BLD)), dim=1)
        kept_BLD = rows_from(whole_BLD, compaction.count_B, self.reach)
        return compaction.to_place(self._gate(self._convolve(whole_BLD))), kept_BLD.to(state.dtype)

    def extra_repr(self) -> str:
        return f"dilation={self.dilation}, causal={self.causal}, separable={self.separable}"
