"""Caduceus: bidirectional Mamba for DNA, exactly equivariant to the reverse complement.

Equation: y = W_out (scan_f(W_in x) + scan_r(W_in x)), Mamba from the left and from the right, on both strands;
          so f(R x) = R f(x) for the reverse complement R, which reverses positions and channels.
Good at DNA where strands mean the same, such as variants and regulatory regions. Not for generation, for it sees both sides,
and not Mamba with reverse-complement augmentation, which is only nearly equivariant.

Paper: Caduceus: Bi-Directional Equivariant Long-Range DNA Sequence Modeling, https://arxiv.org/abs/2403.03234.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from longseq.backbone import Backbone, Mixer, Stack, zero_padding
from longseq.layers.reverse_complement import ReverseComplement
from longseq.layers.selective_ssm import SelectiveSSM, default_dt_rank
from longseq.ops.selective_scan import Implementation
from longseq.registry import register_backbone


class BiMambaMixer(Mixer):
    """Two selective scans, left to right and right to left, between one input and one output projection.

    `y = out_proj(scan_f(in_proj(u)) + scan_r(in_proj(u)))`. The published layer is two Mamba layers whose projections are
    tied; since those are linear, they are applied once here, for half their cost. `forward_ssm` and `reverse_ssm` hold what
    `mamba_fwd` and `mamba_rev` do not share.

    Args:
        d_model: width in and out.
        n_layers: of the network it stands in; the output projection starts smaller in a deep one.
        d_state: states of each channel and direction.
        d_conv: taps of the short convolutions.
        expand: inner width over d_model.
        dt_rank: rank of the step sizes' projection; `auto` is d_model / 16, rounded up.
        bias: biases in the input and output projections; the output's is added once.
        implementation: of the scans and convolutions: `auto`, `reference`, `chunked` or `triton`.

    Cost: O(L d_model (d_model + d_state)) time, O(L d_model) memory.

    Paper: https://arxiv.org/abs/2403.03234, section 3.1 (BiMamba).
    """

    causal = False
    can_step = False

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int = 1,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bias: bool = False,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        self.d_model = d_model
        if expand < 1:
            raise ValueError(f"expand must be at least 1, found {expand}")
        d_inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.forward_ssm, self.reverse_ssm = (
            SelectiveSSM(
                d_inner,
                d_state=d_state,
                d_conv=d_conv,
                dt_rank=default_dt_rank(d_model, dt_rank),
                implementation=implementation,
            )
            for _ in range(2)
        )
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)
        with torch.no_grad():
            self.out_proj.weight.div_(n_layers**0.5)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        x_BLE, z_BLE = self.in_proj(zero_padding(x_BLD, mask_BL)).chunk(2, dim=-1)
        ahead_BLE, _ = self.forward_ssm.scan(x_BLE, z_BLE, mask_BL, segment_ids_BL)
        back_BLE, _ = self.reverse_ssm.scan(x_BLE, z_BLE, mask_BL, segment_ids_BL, reverse=True)
        return self.out_proj(ahead_BLE + back_BLE)


@register_backbone(
    "caduceus",
    summary="bidirectional Mamba for DNA, equivariant to the reverse complement",
    paper="https://arxiv.org/abs/2403.03234",
    cost="O(L)",
)
def build_caduceus(
    *,
    d_model: int,
    n_layers: int,
    rcps: bool = True,
    exchange: bool = True,
    d_state: int = 16,
    d_conv: int = 4,
    expand: int = 2,
    dt_rank: int | Literal["auto"] = "auto",
    norm_eps: float = 1e-5,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    gradient_checkpointing: bool = False,
    implementation: Implementation = "auto",
) -> Backbone:
    """A stack of `BiMambaMixer`, Caduceus-PS with `rcps` and Caduceus-Ph without.

    Args:
        d_model: width in and out. With `rcps` both strands together, twice the published `d_model`.
        n_layers: number of layers.
        rcps: exact equivariance to the reverse complement (PS); without it the network sees one strand (Ph), and is
            trained with reverse-complement augmentation.
        exchange: with `rcps`, the strands change places between the layers, as in the published checkpoints (their
            fused_add_norm=true); False is the wiring of fused_add_norm=false.
        d_state: states of each channel and direction.
        d_conv: taps of the short convolutions.
        expand: inner width over the strand's width.
        dt_rank: rank of the step sizes' projection; `auto` is the strand's width / 16, rounded up.
        norm_eps: added to the mean square in the RMS norms.
        dropout: on each layer's output.
        drop_path: stochastic depth of the last layer.
        gradient_checkpointing: recompute each block in backward.
        implementation: of the scans and convolutions.

    Raises:
        ValueError: for an odd d_model with `rcps`.
    """
    if rcps and d_model % 2:
        raise ValueError(f"caduceus with rcps needs an even d_model (two strands of d_model / 2), found {d_model}")
    width = d_model // 2 if rcps else d_model
    mixers = [
        BiMambaMixer(
            width,
            n_layers=n_layers,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            dt_rank=dt_rank,
            implementation=implementation,
        )
        for _ in range(n_layers)
    ]
    stack = Stack(
        mixers,
        width,
        norm="rms",
        norm_eps=norm_eps,
        mlp_ratio=0.0,
        dropout=dropout,
        drop_path=drop_path,
        gradient_checkpointing=gradient_checkpointing,
    )
    return ReverseComplement(stack, exchange=exchange) if rcps else stack
