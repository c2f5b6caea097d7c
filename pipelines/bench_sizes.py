"""Sizes that operators are timed at, by name: the letters are the shapes'."""

import math
from typing import Any

from longseq.errors import ConfigError
from longseq.pipelines.cli import nearest_of

Size = dict[str, int]

# B batch, L length, D channels, N states (conjugate pairs for the linear models), H heads of P channels, W neighbours on each
# side, G global tokens, K taps.
HOPPER: dict[str, list[Size]] = {
    "selective_scan": [
        {"B": 8, "L": 4096, "D": 2048, "N": 16},
        {"B": 1, "L": 131_072, "D": 2048, "N": 16},
        {"B": 1, "L": 1_048_576, "D": 256, "N": 16},
    ],
    "ssd": [{"B": 8, "L": 4096, "H": 32, "P": 64, "N": 128}, {"B": 1, "L": 131_072, "H": 32, "P": 64, "N": 128}],
    "diagonal_ssm": [{"B": 8, "L": 4096, "D": 1024, "N": 32}, {"B": 1, "L": 1_048_576, "D": 256, "N": 32}],
    "dplr_ssm": [{"B": 8, "L": 1024, "D": 512, "N": 32}],
    "fft_conv": [
        {"B": 8, "L": 4096, "D": 1024},
        {"B": 8, "L": 32_768, "D": 256},
        {"B": 1, "L": 131_072, "D": 256},
        {"B": 1, "L": 1_048_576, "D": 256},
    ],
    "window_attention": [
        {"B": 2, "L": 4096, "H": 12, "P": 64, "W": 256, "G": 4},
        {"B": 1, "L": 131_072, "H": 12, "P": 64, "W": 256, "G": 4},
    ],
    "causal_conv1d": [{"B": 8, "L": 4096, "D": 2048, "K": 4}],
    "add_norm": [{"B": 8, "L": 4096, "D": 1024}, {"B": 1, "L": 1_048_576, "D": 256}],
    "mamba": [{"B": 1, "L": 4096, "D": 256}],
}
OPERATORS = tuple(HOPPER)


def everywhere(length: int, width: int) -> dict[str, list[Size]]:
    """One size for each operator: a row of so many positions and channels."""
    head = width if width < 64 else math.gcd(width, 64)
    heads = width // head
    row: Size = {"B": 1, "L": length, "D": width}
    return {
        "selective_scan": [{**row, "N": 16}],
        "ssd": [{"B": 1, "L": length, "H": heads, "P": head, "N": 64}],
        "diagonal_ssm": [{**row, "N": 32}],
        "dplr_ssm": [{**row, "N": 32}],
        "fft_conv": [row],
        "window_attention": [{"B": 1, "L": length, "H": heads, "P": head, "W": min(256, max(1, length // 8)), "G": 4}],
        "causal_conv1d": [{**row, "K": 4}],
        "add_norm": [row],
        "mamba": [row],
    }


SIZES: dict[str, dict[str, list[Size]]] = {
    "tiny": everywhere(64, 16),
    # The size that four layers of mamba are compared at with transformers' everywhere.
    "small": {**everywhere(512, 64), "mamba": HOPPER["mamba"]},
    "medium": everywhere(16_384, 256),
    "hopper": HOPPER,
}


def sizes_of(name: str, device: str, lengths: list[int], width: int) -> dict[str, list[Size]]:
    """Every operator's sizes.

    Args:
        name: of a set of sizes; `auto` is `small` on a CPU and `hopper` on a GPU.
        device: cpu or cuda.
        lengths: if there are any, one row of each of these lengths instead.
        width: its channels.

    Raises:
        ConfigError: an unknown name; the message holds the nearest known ones.
    """
    if lengths:
        found = [everywhere(length, width) for length in lengths]
        return {operator: [sizes[operator][0] for sizes in found] for operator in OPERATORS}
    if name == "auto":
        name = "hopper" if device == "cuda" else "small"
    if name not in SIZES:
        raise ConfigError(f"bench ops has no size {name!r}{nearest_of(name, SIZES, 'Sizes')}")
    return SIZES[name]


def show(size: dict[str, Any]) -> str:
    """`B8 L4096 D2048 N16`."""
    return " ".join(f"{letter}{number}" for letter, number in size.items())
