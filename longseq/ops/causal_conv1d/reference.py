"""The causal depthwise convolution as a plain loop over time: slow, short, and the yardstick of the other implementations."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_reference(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state_BKD: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Causal convolution, one row and one position after the other; arguments as in `longseq.ops.causal_conv1d`."""
    (batch, length, width), taps = x_BLD.shape, weight_DK.shape[1]
    dtype = torch.promote_types(x_BLD.dtype, torch.float32)
    weight_DK = weight_DK.to(dtype)
    zero_D = torch.zeros(width, dtype=dtype, device=x_BLD.device)
    bias = zero_D if bias_D is None else bias_D.to(dtype)
    rows, states = [], []
    for b in range(batch):
        # The last K-1 inputs, oldest first, and the segment they belong to.
        window = [zero_D] * (taps - 1) if initial_state_BKD is None else list(initial_state_BKD[b].to(dtype).unbind(0))
        state, segment, started = window, None, False
        outputs = [zero_D] * length
        for t in reversed(range(length)) if reverse else range(length):
            real = mask_BL is None or bool(mask_BL[b, t])
            if not real and not started:
                continue
            if real and segment_ids_BL is not None:
                if segment is not None and segment != int(segment_ids_BL[b, t]):
                    window = [zero_D] * (taps - 1)
                segment = int(segment_ids_BL[b, t])
            started = True
            window = [*window, x_BLD[b, t].to(dtype) if real else zero_D]
            if real:
                total_D = bias + sum(weight_DK[:, k] * window[k] for k in range(taps))
                outputs[t] = F.silu(total_D) if activation == "silu" else total_D
            window = window[1:]
            state = window if real else state
        rows.append(torch.stack(outputs))
        states.append(torch.stack(state) if taps > 1 else zero_D.new_empty(0, width))
    return torch.stack(rows).to(x_BLD.dtype), torch.stack(states)
