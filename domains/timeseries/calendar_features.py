"""Calendar covariates, known for any time ahead: each as a point on a circle, so that December is beside January."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from longseq.errors import ConfigError, DataError

PERIODS = {"minute": 60, "hour": 24, "weekday": 7, "monthday": 31, "yearday": 366, "month": 12}


def calendar_names(calendar: Sequence[str]) -> list[str]:
    """Names of the columns that `calendar_features` gives."""
    return [f"{name}_{wave}" for name in calendar for wave in ("sin", "cos")]


def calendar_features(times: np.ndarray, calendar: Sequence[str]) -> np.ndarray:
    """Sine and cosine of each cycle, (T, 2 x cycles) fp32.

    Args:
        times: (T,) datetime64.
        calendar: of minute (of the hour), hour (of the day), weekday, monthday, yearday, month.

    Raises:
        ConfigError: for an unknown cycle.
        DataError: if the times are plain numbers.
    """
    for name in calendar:
        if name not in PERIODS:
            raise ConfigError(f"data.calendar holds {name!r}; known: {', '.join(PERIODS)}")
    if not np.issubdtype(times.dtype, np.datetime64):
        raise DataError("data.calendar needs dates, but the time column holds plain numbers; set data.calendar=[]")
    index = pd.DatetimeIndex(times)
    values = {
        "minute": index.minute + index.second / 60,
        "hour": index.hour + index.minute / 60,
        "weekday": index.day_of_week + index.hour / 24,
        "monthday": index.day - 1,
        "yearday": index.day_of_year - 1,
        "month": index.month - 1,
    }
    columns = []
    for name in calendar:
        angle = 2 * np.pi * np.asarray(values[name], dtype=np.float64) / PERIODS[name]
        columns += [np.sin(angle), np.cos(angle)]
    return np.stack(columns, 1).astype(np.float32)
