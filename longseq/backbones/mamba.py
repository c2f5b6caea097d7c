"""Mamba: selective state spaces, linear in length, with a state of fixed size.

Equation: h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t
          y_t = (C_t h_t + D x_t) silu(z_t), where dt, B, C and the gate z are functions of the input.
Good at long sequences of symbols (DNA, text, audio tokens) of which few matter, and at streams. Not S4 or S4D, whose dynamics
do not depend on the input, and not Mamba-2, where all channels of a head share one decay.

Paper: Mamba: Linear-Time Sequence Modeling with Selective State Spaces, https://arxiv.org/abs/2312.00752. The parameters
carry the published names: in_proj, conv1d, x_proj, dt_proj, A_log, D, out_proj.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.backbone import Mixer, State, zero_padding
from longseq.layers.selective_ssm import SelectiveSSM, default_dt_rank
from longseq.ops.selective_scan import Implementation
from longseq.registry import register_backbone


@register_backbone(
    "mamba",
    summary="selective state space; linear in length, streams with a small state",
    paper="https://arxiv.org/abs/2312.00752",
    cost="O(L)",
    state="expand x d_model x (d_state + d_conv - 1)",
    norm="rms",
    mlp_ratio=0.0,
)
class MambaMixer(SelectiveSSM, Mixer):
    """One Mamba layer: `out_proj(scan(silu(conv(x))) * silu(z))` with `x, z = in_proj(u)`.

    Unlike S4 its dynamics depend on the input, so it can ignore tokens; unlike attention its memory does not grow.

    Args:
        d_model: width in and out.
        n_layers: of the network it stands in; the output projection starts smaller in a deep one.
        d_state: states N of each channel.
        d_conv: taps of the short convolution.
        expand: inner width over d_model.
        dt_rank: rank of the step sizes' projection; `auto` is d_model / 16, rounded up.
        dt_min: smallest first step size.
        dt_max: largest first step size.
        dt_init_floor: no first step size is smaller.
        conv_bias: a bias in the convolution.
        bias: biases in the input and output projections.
        bcdt_norm: root-mean-square norms without weights on the step sizes' low-rank form, B and C, as FalconMamba has.
        bcdt_norm_eps: added to the mean square there.
        implementation: of the scan and the convolution: `auto`, `reference`, `chunked`, `cpu` or `triton`.

    Cost: O(L d_model (d_model + d_state)) time, O(L d_model) memory; a step costs the same at every position.

    Paper: https://arxiv.org/abs/2312.00752, section 3; the norms of `bcdt_norm`: https://arxiv.org/abs/2410.05355, section 2.
    Unlike the authors' code, padding and packed documents do not leak, the state is float32 also in streaming, and chunks
    of any size can be chained.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int = 1,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        bcdt_norm: bool = False,
        bcdt_norm_eps: float = 1e-6,
        implementation: Implementation = "auto",
    ) -> None:
        if expand < 1:
            raise ValueError(f"expand must be at least 1, found {expand}")
        super().__init__(
            expand * d_model,
            d_state=d_state,
            d_conv=d_conv,
            dt_rank=default_dt_rank(d_model, dt_rank),
            dt_min=dt_min,
            dt_max=dt_max,
            dt_init_floor=dt_init_floor,
            conv_bias=conv_bias,
            implementation=implementation,
        )
        self.d_model = d_model
        self.bcdt_norm, self.bcdt_norm_eps = bcdt_norm, bcdt_norm_eps
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        with torch.no_grad():
            self.out_proj.weight.div_(n_layers**0.5)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        x_BLE, z_BLE = self.in_proj(zero_padding(x_BLD, mask_BL)).chunk(2, dim=-1)
        y_BLE, _ = self.scan(x_BLE, z_BLE, mask_BL, segment_ids_BL)
        return self.out_proj(y_BLE)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not self.bcdt_norm:
            return super()._select(x)
        low_rank, B, C = (
            F.rms_norm(part.to(torch.promote_types(part.dtype, torch.float32)), part.shape[-1:], eps=self.bcdt_norm_eps)
            for part in self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        )
        return *self._step_sizes(low_rank), B.to(x.dtype), C.to(x.dtype)

    def init_state(self, batch_size: int) -> State:
        return SelectiveSSM.init_state(self, batch_size)

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        x_BLE, z_BLE = self.in_proj(zero_padding(x_BLD, mask_BL)).chunk(2, dim=-1)
        y_BLE, state = self.scan(x_BLE, z_BLE, mask_BL, state=state)
        return self.out_proj(y_BLE), state

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        x_BE, z_BE = self.in_proj(x_BD).chunk(2, dim=-1)
        y_BE, state = self.scan_step(x_BE, z_BE, state)
        return self.out_proj(y_BE), state
