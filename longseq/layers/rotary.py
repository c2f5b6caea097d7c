"""Rotary position embedding: queries and keys turned by angles that grow with the position."""

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Turns each pair of channels by `position * base^(-2i/P)`, so that q.k depends on the distance alone.

    The pairs are channel i with channel i + P/2 (the "half-split" layout of GPT-NeoX and Llama), not neighbours as in the
    paper's equation 34; the two differ by a fixed permutation of channels. There are no parameters and no tables, so any
    position works, and angles are computed in float64: in float32 they are off by 0.06 rad at position one million.

    Args:
        width: P, channels of a head, even.
        base: the longest wavelength is about 2 pi base positions.

    Raises:
        ValueError: for an odd width or a base that is not positive.

    Cost: O(L P) time a head.

    Paper: RoFormer, https://arxiv.org/abs/2104.09864, equations 15 and 34.
    """

    def __init__(self, width: int, base: float = 10_000.0) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"rotary positions turn channels in pairs: the width of a head must be even, found {width}")
        if base <= 0:
            raise ValueError(f"rotary_base must be positive, found {base}")
        self.width = width
        self.base = base

    def forward(self, x_BLHP: Tensor, position_L: Tensor) -> Tensor:
        """Rotates queries or keys.

        Args:
            x_BLHP: (B, L, H, P).
            position_L: integers, (L) or (B, L); only differences matter, and they may be negative.

        Returns:
            (B, L, H, P) in the dtype of x; the product is taken in float32 (float64 for float64 inputs).
        """
        dtype = torch.float64 if x_BLHP.dtype == torch.float64 else torch.float32
        angle_LR = self.angles(position_L)
        cos, sin = angle_LR.cos().to(dtype).unsqueeze(-2), angle_LR.sin().to(dtype).unsqueeze(-2)
        first, second = x_BLHP.to(dtype).chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x_BLHP.dtype)

    def angles(self, position_L: Tensor) -> Tensor:
        """(..., P/2) angles in radians."""
        # Apple's GPUs have no float64; their positions are exact to about 0.01 rad up to 100,000.
        dtype = torch.float32 if position_L.device.type == "mps" else torch.float64
        pair = torch.arange(0, self.width, 2, device=position_L.device, dtype=dtype)
        return position_L.to(dtype).unsqueeze(-1) * self.base ** (-pair / self.width)

    def extra_repr(self) -> str:
        return f"width={self.width}, base={self.base:g}"
