"""The position-wise MLP of a residual block."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
GATED: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu}


class MLP(nn.Module):
    """`fc2(activation(fc1(x)))`, or gated `fc2(activation(gate) * value)` with fc1 giving both halves.

    Args:
        d_model: width in and out.
        d_hidden: width between.
        activation: `gelu`, `gelu_tanh`, `relu`, `silu`; gated: `swiglu`, `geglu` (https://arxiv.org/abs/2002.05202).
    """

    def __init__(self, d_model: int, d_hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS and activation not in GATED:
            raise ValueError(f"mlp must be one of {', '.join([*ACTIVATIONS, *GATED])}, found {activation!r}")
        self.activation = activation
        self.gated = activation in GATED
        self.fc1 = nn.Linear(d_model, 2 * d_hidden if self.gated else d_hidden)
        self.fc2 = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, value = self.fc1(x).chunk(2, dim=-1)
            return self.fc2(GATED[self.activation](gate) * value)
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
