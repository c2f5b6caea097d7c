"""Rows of several requests that are computed together: which of them, and with what padding."""

import numpy as np
import torch

# Rows share a batch while the shortest is at least this share of the longest.
ALIKE = 0.5


def padded(rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one dtype, zeros behind the shorter ones, and a mask with True at what is real."""
    longest = max(len(row) for row in rows)
    inputs = np.zeros((len(rows), longest, *rows[0].shape[1:]), dtype=rows[0].dtype)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for index, row in enumerate(rows):
        inputs[index, : len(row)], mask[index, : len(row)] = row, True
    return torch.from_numpy(inputs), torch.from_numpy(mask)


def batches(lengths: list[int], max_rows: int, max_tokens: int, alike: float = ALIKE) -> list[list[int]]:
    """Row numbers by batch: rows of similar length together, longest first.

    Args:
        lengths: of the rows.
        max_rows: of a batch.
        max_tokens: rows times the longest; a row beyond it is alone.
        alike: how short a row may be, as a share of the longest.
    """
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[found[-1][0]] if found else 0
        fits = found and len(found[-1]) < max_rows and longest * (len(found[-1]) + 1) <= max_tokens
        if fits and lengths[row] >= alike * longest:
            found[-1].append(row)
        else:
            found.append([row])
    return found
