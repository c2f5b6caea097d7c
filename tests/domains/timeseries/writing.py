"""Small files of series, for the tests of what reads them."""

from pathlib import Path

import numpy as np
import pandas as pd


def wide_frame(n: int = 200, channels: int = 2, start: str = "2024-01-01", freq: str = "h") -> pd.DataFrame:
    """A day's wave and noise; the time column is `date`."""
    rng = np.random.default_rng(0)
    steps = np.arange(n)
    times = pd.date_range(start, periods=n, freq=freq).strftime("%Y-%m-%d %H:%M:%S")
    columns = {f"c{i}": 10 * (i + 1) + np.sin(2 * np.pi * steps / 24 + i) + rng.normal(0, 0.1, n) for i in range(channels)}
    return pd.DataFrame({"date": times, **columns})


def long_frame(lengths: dict[str, int], start: str = "2024-01-01") -> pd.DataFrame:
    """Daily series of different lengths as `unique_id, ds, y`."""
    rng = np.random.default_rng(1)
    parts = []
    for i, (name, n) in enumerate(lengths.items()):
        times = pd.date_range(start, periods=n, freq="D").strftime("%Y-%m-%d")
        parts.append(pd.DataFrame({"unique_id": name, "ds": times, "y": 100.0 * (i + 1) + rng.normal(0, 1, n).cumsum()}))
    return pd.concat(parts, ignore_index=True)


def write(frame: pd.DataFrame, path: Path, **options) -> str:
    """Writes a csv and returns its path as text."""
    frame.to_csv(path, index=False, **options)
    return str(path)
