"""The inside of a Mamba layer: short convolution, projections of the step size and of B and C, selective scan, gate."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.layers.marks import mark
from longseq.ops.causal_conv1d import causal_conv1d
from longseq.ops.selective_scan import Implementation, selective_scan, selective_scan_step


class LinearWithoutBias(nn.Linear):
    """A linear layer whose bias is added later: about -5, it would round step sizes in 16 bits by a few per cent."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


class SelectiveSSM(nn.Module):
    """`y = scan(silu(conv(x))) * silu(z)`, where the scan's step sizes, B and C are projections of its input.

    The parameters carry the published names (conv1d, x_proj, dt_proj, A_log, D), so a layer that derives from this holds
    published weights after a renaming of its prefix. A_log and D are float32 and not decayed; the bias of dt_proj is set
    so that the first step sizes lie log-uniform in [dt_min, dt_max], and must not be initialised again.

    Args:
        d_inner: width E of the scan.
        d_state: states N of each channel.
        d_conv: taps K of the convolution.
        dt_rank: rank R of the step sizes' projection.
        dt_min: smallest first step size.
        dt_max: largest first step size.
        dt_init_floor: no first step size is smaller.
        conv_bias: whether the convolution has a bias.
        implementation: of the scan and the convolution: `auto`, `reference`, `chunked`, `cpu` or `triton`.

    Raises:
        ValueError: for sizes below 1 or step sizes out of order.

    Cost: O(L E N) time, O(L E) memory.

    Paper: Mamba, https://arxiv.org/abs/2312.00752, algorithm 2 and section 3.6.
    """

    def __init__(
        self,
        d_inner: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        dt_rank: int,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        for name, value in (("d_inner", d_inner), ("d_state", d_state), ("d_conv", d_conv), ("dt_rank", dt_rank)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if not 0.0 < dt_min <= dt_max:
            raise ValueError(f"expected 0 < dt_min <= dt_max, found dt_min={dt_min} and dt_max={dt_max}")
        self.d_inner, self.d_state, self.d_conv, self.dt_rank = d_inner, d_state, d_conv, dt_rank
        self.implementation: Implementation = implementation
        # Its parameters are used, its forward is not: the operator has a state, masks and segments.
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = LinearWithoutBias(dt_rank, d_inner)
        rates_DN = torch.arange(1, d_state + 1, dtype=torch.float32).repeat(d_inner, 1)
        self.A_log = mark(nn.Parameter(rates_DN.log()), weight_decay=0.0)
        self.D = mark(nn.Parameter(torch.ones(d_inner)), weight_decay=0.0)
        self._init_dt(dt_min, dt_max, dt_init_floor)

    @torch.no_grad()
    def _init_dt(self, dt_min: float, dt_max: float, floor: float) -> None:
        bound = self.dt_rank**-0.5
        self.dt_proj.weight.uniform_(-bound, bound)
        log_dt_D = torch.rand(self.d_inner) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        dt_D = log_dt_D.exp().clamp(min=floor)
        # The inverse of softplus, log(e^dt - 1), written so that small dt keep their digits.
        self.dt_proj.bias.copy_(dt_D + torch.log(-torch.expm1(-dt_D)))
        mark(self.dt_proj.bias, weight_decay=0.0)

    def init_state(self, batch_size: int) -> dict[str, Tensor]:
        """Zeros: the last K-1 inputs of the convolution (B, K-1, E) and the scan's state (B, E, N)."""
        dtype = torch.promote_types(self.D.dtype, torch.float32)
        conv = torch.zeros(batch_size, self.d_conv - 1, self.d_inner, dtype=dtype, device=self.D.device)
        return {"conv": conv, "ssm": torch.zeros(batch_size, self.d_inner, self.d_state, dtype=dtype, device=self.D.device)}

    def scan(
        self,
        x_BLE: Tensor,
        z_BLE: Tensor,
        mask_BL: Tensor | None = None,
        segment_ids_BL: Tensor | None = None,
        state: dict[str, Tensor] | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The layer between its input and output projections; from `state` if given, right to left if `reverse`."""
        x_BLE, conv_state = causal_conv1d(
            x_BLE,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            initial_state_BKD=None if state is None else state["conv"],
            mask_BL=mask_BL,
            segment_ids_BL=segment_ids_BL,
            reverse=reverse,
            implementation=self.implementation,
        )
        dt_BLE, bias_E, B_BLN, C_BLN = self._select(x_BLE)
        y_BLE, ssm_state = selective_scan(
            x_BLE,
            dt_BLE,
            self._rates(),
            B_BLN,
            C_BLN,
            self.D,
            z_BLE,
            bias_E,
            dt_softplus=True,
            initial_state_BDN=None if state is None else state["ssm"],
            mask_BL=mask_BL,
            segment_ids_BL=segment_ids_BL,
            reverse=reverse,
            implementation=self.implementation,
        )
        return y_BLE, {"conv": conv_state, "ssm": ssm_state}

    def scan_step(self, x_BE: Tensor, z_BE: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """`scan` over one position."""
        dtype = state["conv"].dtype
        window_BKE = torch.cat([state["conv"], x_BE.to(dtype).unsqueeze(1)], dim=1)
        conv_BE = (window_BKE * self.conv1d.weight.squeeze(1).t().to(dtype)).sum(1)
        if self.conv1d.bias is not None:
            conv_BE = conv_BE + self.conv1d.bias.to(dtype)
        x_BE = F.silu(conv_BE).to(x_BE.dtype)
        dt_BE, bias_E, B_BN, C_BN = self._select(x_BE)
        y_BE, ssm_state = selective_scan_step(
            x_BE, dt_BE, self._rates(), B_BN, C_BN, self.D, z_BE, bias_E, state_BDN=state["ssm"], dt_softplus=True
        )
        return y_BE, {"conv": window_BKE[:, 1:], "ssm": ssm_state}

    def _rates(self) -> Tensor:
        return -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step sizes before their bias and softplus, that bias, B and C."""
        low_rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return *self._step_sizes(low_rank), B, C

    def _step_sizes(self, low_rank: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes before their bias and softplus, and the bias, which the scan adds in fp32."""
        return self.dt_proj(low_rank.to(self.dt_proj.weight.dtype)), self.dt_proj.bias


def default_dt_rank(d_model: int, dt_rank: int | Literal["auto"]) -> int:
    """`auto` is d_model / 16, rounded up.

    Raises:
        ValueError: for another word.
    """
    if isinstance(dt_rank, str) and dt_rank != "auto":
        raise ValueError(f"dt_rank must be a number or auto, found {dt_rank!r}")
    return math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
