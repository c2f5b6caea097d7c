"""Mamba-2: state spaces whose decay is one scalar per head, computed as matrix products (state-space duality).

Equation: h_t = exp(dt_t a) h_{t-1} + dt_t x_t B_t^T for each head, h being (P, N) and the rate a one number
          y_t = rms_norm((h_t C_t + D x_t) silu(z_t)), where dt, B, C and the gate z are functions of the input.
Good at what Mamba is good at, with larger states and faster on matrix units. Not Mamba, where each channel has N decays of its
own, and not linear attention, which forgets nothing.

Paper: Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality,
https://arxiv.org/abs/2405.21060. The parameters carry the published names: in_proj, conv1d, dt_bias, A_log, D, norm, out_proj.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.backbone import Mixer, State, zero_padding
from longseq.layers.marks import mark
from longseq.ops.add_norm import add_norm
from longseq.ops.causal_conv1d import causal_conv1d
from longseq.ops.ssd import Implementation, ssd, ssd_step
from longseq.registry import register_backbone


class GatedRMSNorm(nn.Module):
    """`y = rms_norm(x * silu(z)) * weight`, each group of channels with its own mean square, computed in fp32.

    Args:
        d_inner: channels.
        n_groups: groups that are normalised separately.
        eps: added to the mean square.

    Paper: https://arxiv.org/abs/2405.21060, section 7 and figure 6 (the extra norm before the output projection).
    """

    def __init__(self, d_inner: int, n_groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = mark(nn.Parameter(torch.ones(d_inner)), weight_decay=0.0)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return add_norm(x, self.weight, gate=z, kind="rms", eps=self.eps, n_groups=self.n_groups)[0]


@register_backbone(
    "mamba2",
    summary="selective state space with a scalar decay per head; matrix products, larger states than mamba",
    paper="https://arxiv.org/abs/2405.21060",
    cost="O(L)",
    state="expand x d_model x (d_state + d_conv - 1) + 2 x n_groups x d_state x (d_conv - 1)",
    norm="rms",
    mlp_ratio=0.0,
)
class Mamba2Mixer(Mixer):
    """One Mamba-2 layer: `out_proj(norm(ssd(x, dt, B, C) * silu(z)))`, with x, B and C from one short convolution.

    Unlike Mamba, dt, B and C come from the input of the layer at once with x, all channels of a head share one decay, and
    the state is as a rule eight times larger. Heads of one group share B and C, as in grouped-query attention.

    Args:
        d_model: width in and out.
        n_layers: of the network it stands in; the output projection starts smaller in a deep one.
        d_state: state size N.
        d_conv: taps of the short convolution.
        expand: inner width over d_model.
        head_dim: width P of a head; it divides expand x d_model. None: 64, or expand x d_model where that is less.
        n_groups: groups of heads that share B and C; it divides the number of heads.
        A_init_min: smallest initial decay rate.
        A_init_max: largest initial decay rate.
        dt_min: smallest initial step size.
        dt_max: largest initial step size.
        dt_init_floor: no initial step size is smaller.
        dt_limit: smallest and largest step size at any position, (low, high); a high of None, or None, is no limit.
        bias: biases in the input and output projections.
        conv_bias: a bias in the convolution.
        norm_eps: of the gated norm; given to `create_backbone`, of those between the layers too.
        chunk_size: positions per chunk of the operator.
        implementation: of the operator and the convolution: `auto`, `reference`, `chunked` or `triton`.

    Raises:
        ValueError: sizes that do not divide each other, or ranges out of order.

    Cost: O(L d_model (d_model + d_state + chunk_size)) time, O(L d_model) memory; a step costs the same at every position.

    Paper: https://arxiv.org/abs/2405.21060, section 7. Unlike the authors' code, padding and packed documents do not leak,
    the state is fp32 in streaming too, and chunks of any size can be chained.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int = 1,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int | None = None,
        n_groups: int = 1,
        A_init_min: float = 1.0,
        A_init_max: float = 16.0,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_init_floor: float = 1e-4,
        dt_limit: Sequence[float | None] | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        if expand < 1:
            raise ValueError(f"expand must be at least 1, found {expand}")
        self.d_inner, self.d_state, self.d_conv = expand * d_model, d_state, d_conv
        head_dim = min(64, self.d_inner) if head_dim is None else head_dim
        self.head_dim, self.n_groups = head_dim, n_groups
        self._check(dt_min, dt_max, A_init_min, A_init_max)
        self.n_heads = self.d_inner // head_dim
        self.chunk_size = chunk_size
        self.implementation: Implementation = implementation
        self.dt_limit = None if dt_limit is None else _limits(dt_limit)
        self.d_mixed = self.d_inner + 2 * n_groups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + self.d_mixed + self.n_heads, bias=bias)
        # Its parameters are used, its forward is not: the operator has a state, masks and segments.
        self.conv1d = nn.Conv1d(self.d_mixed, self.d_mixed, d_conv, groups=self.d_mixed, bias=conv_bias)
        rates_H = torch.empty(self.n_heads).uniform_(A_init_min, A_init_max)
        self.A_log = mark(nn.Parameter(rates_H.log()), weight_decay=0.0)
        self.D = mark(nn.Parameter(torch.ones(self.n_heads)), weight_decay=0.0)
        dt_H = torch.exp(torch.empty(self.n_heads).uniform_(math.log(dt_min), math.log(dt_max))).clamp(min=dt_init_floor)
        # The inverse of softplus, log(e^dt - 1), written so that small dt keep their digits.
        self.dt_bias = mark(nn.Parameter(dt_H + torch.log(-torch.expm1(-dt_H))), weight_decay=0.0)
        self.norm = GatedRMSNorm(self.d_inner, n_groups, norm_eps)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        with torch.no_grad():
            self.out_proj.weight.div_(n_layers**0.5)

    def _check(self, dt_min: float, dt_max: float, A_init_min: float, A_init_max: float) -> None:
        sizes = {"d_state": self.d_state, "d_conv": self.d_conv, "head_dim": self.head_dim, "n_groups": self.n_groups}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if self.d_inner % self.head_dim:
            raise ValueError(f"head_dim={self.head_dim} must divide expand x d_model = {self.d_inner}")
        if (self.d_inner // self.head_dim) % self.n_groups:
            heads = self.d_inner // self.head_dim
            raise ValueError(f"n_groups={self.n_groups} must divide the {heads} heads (expand x d_model / head_dim)")
        if not 0.0 < dt_min <= dt_max:
            raise ValueError(f"expected 0 < dt_min <= dt_max, found dt_min={dt_min} and dt_max={dt_max}")
        if not 0.0 < A_init_min <= A_init_max:
            raise ValueError(f"expected 0 < A_init_min <= A_init_max, found {A_init_min} and {A_init_max}")

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        return self._mix(x_BLD, None, mask_BL, segment_ids_BL)[0]

    def init_state(self, batch_size: int) -> State:
        """Zeros: the last K-1 inputs of the convolution (B, K-1, E + 2GN) and the scan's state (B, H, P, N)."""
        dtype, device = torch.promote_types(self.D.dtype, torch.float32), self.D.device
        conv_BKE = torch.zeros(batch_size, self.d_conv - 1, self.d_mixed, dtype=dtype, device=device)
        ssm_BHPN = torch.zeros(batch_size, self.n_heads, self.head_dim, self.d_state, dtype=dtype, device=device)
        return {"conv": conv_BKE, "ssm": ssm_BHPN}

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        return self._mix(x_BLD, state, mask_BL, None)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        z_BE, mixed_BE, dt_BH = self._split_input(self.in_proj(x_BD))
        dtype = state["conv"].dtype
        window_BKE = torch.cat([state["conv"], mixed_BE.to(dtype).unsqueeze(1)], dim=1)
        conv_BE = (window_BKE * self.conv1d.weight.squeeze(1).t().to(dtype)).sum(1)
        if self.conv1d.bias is not None:
            conv_BE = conv_BE + self.conv1d.bias.to(dtype)
        x_BHP, B_BGN, C_BGN = self._split_mixed(F.silu(conv_BE).to(mixed_BE.dtype))
        dt_BH, bias_H = self._limited(dt_BH)
        y_BHP, ssm_BHPN = ssd_step(
            x_BHP, dt_BH, self._rates(), B_BGN, C_BGN, self.D, bias_H, dt_softplus=bias_H is not None, state_BHPN=state["ssm"]
        )
        y_BD = self.out_proj(self.norm(y_BHP.flatten(-2), z_BE))
        return y_BD, {"conv": window_BKE[:, 1:], "ssm": ssm_BHPN}

    def _mix(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> tuple[Tensor, State]:
        z_BLE, mixed_BLE, dt_BLH = self._split_input(self.in_proj(zero_padding(x_BLD, mask_BL)))
        mixed_BLE, conv_BKE = causal_conv1d(
            mixed_BLE,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            initial_state_BKD=None if state is None else state["conv"],
            mask_BL=mask_BL,
            segment_ids_BL=segment_ids_BL,
            implementation=self.implementation,
        )
        x_BLHP, B_BLGN, C_BLGN = self._split_mixed(mixed_BLE)
        dt_BLH, bias_H = self._limited(dt_BLH)
        y_BLHP, ssm_BHPN = ssd(
            x_BLHP,
            dt_BLH,
            self._rates(),
            B_BLGN,
            C_BLGN,
            self.D,
            bias_H,
            dt_softplus=bias_H is not None,
            initial_state_BHPN=None if state is None else state["ssm"],
            mask_BL=mask_BL,
            segment_ids_BL=segment_ids_BL,
            chunk_size=self.chunk_size,
            implementation=self.implementation,
        )
        return self.out_proj(self.norm(y_BLHP.flatten(-2), z_BLE)), {"conv": conv_BKE, "ssm": ssm_BHPN}

    def _split_input(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate z, what goes through the convolution (x, B, C), and dt."""
        z, mixed, dt = projected.split([self.d_inner, self.d_mixed, self.n_heads], dim=-1)
        return z, mixed, dt

    def _split_mixed(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x by heads, B and C by groups."""
        shared = self.n_groups * self.d_state
        x, B, C = mixed.split([self.d_inner, shared, shared], dim=-1)
        groups = (self.n_groups, self.d_state)
        return x.unflatten(-1, (self.n_heads, self.head_dim)), B.unflatten(-1, groups), C.unflatten(-1, groups)

    def _limited(self, dt: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the operator gets as step sizes, and the bias that it is to add before its softplus; None if both are done."""
        if self.dt_limit is None:
            return dt, self.dt_bias
        # In float32: in 16 bits the bias, about -5, would round step sizes by a few per cent.
        wide = torch.promote_types(dt.dtype, torch.float32)
        return F.softplus(dt.to(wide) + self.dt_bias.to(wide)).clamp(*self.dt_limit), None

    def _rates(self) -> Tensor:
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))


def _limits(dt_limit: Sequence[float | None]) -> tuple[float, float]:
    limits = [math.inf if limit is None else float(limit) for limit in dt_limit]
    if len(limits) != 2 or not 0.0 <= limits[0] <= limits[1] or limits[0] == math.inf:
        raise ValueError(f"dt_limit must be (low, high) with 0 <= low <= high, found {tuple(dt_limit)}")
    return limits[0], limits[1]
