"""Series that clients of a served model send: values and times in JSON, or files."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from longseq.domains.base import DomainData
from longseq.domains.requests import Asked, kind, numbers, plain_name
from longseq.domains.requests import Requests as BaseRequests
from longseq.domains.timeseries.frequency import Frequency, parse_frequency
from longseq.domains.timeseries.windows import ForecastRows, SpanRows, WindowRows
from longseq.errors import DataError

# The first time of series that come without times; a Monday.
START = np.datetime64("2001-01-01T00:00:00", "ns")
TIME = "date"


class Requests(BaseRequests):
    """Series: `{"values": [[...], ...], "timestamps": [...]}`, csv. Missing values are null, or empty cells."""

    keys: ClassVar[Mapping[str, str]] = {
        "values": "a list of steps, each a list of channels; or an object of columns; null where missing",
        "timestamps": "of the steps: dates and times, or whole numbers; may be left out unless the model reads the calendar",
    }
    suffixes = (".csv", ".tsv")

    @property
    def labelled(self) -> bool:
        """Whether each series is a row of its own that gets a label."""
        return self.config.get("task") == "classification"

    @property
    def columns(self) -> list[str]:
        """What the model reads at each step, in its order."""
        series = self.config.get("series", {})
        return [*series.get("channels", []), *series.get("covariates", [])]

    def read(self, body: Mapping[str, Any]) -> Asked:
        table = self.lines(body) if self.labelled else self.table(body)
        with tempfile.TemporaryDirectory(prefix="longseq-") as folder:
            path = Path(folder) / "values.csv"
            # All digits: what is read back is what was sent.
            table.to_csv(path, index=False, header=not self.labelled)
            asked = self.read_file(path)
        for index, names in enumerate(asked.names):
            names["id"] = str(index)
            if "timestamps" not in body:
                names.pop("times", None)
                names.get("history", {}).pop("times", None)
        return asked

    def lines(self, body: Mapping[str, Any]) -> pd.DataFrame:
        """One line per series to classify."""
        if "timestamps" in body:
            raise DataError("timestamps are not read: the model tells whole series apart")
        given = body["values"]
        single = isinstance(given, list) and given and not isinstance(given[0], list)
        if not isinstance(given, list) or not given:
            raise DataError(f"values must be a list of numbers, or a list of such lists, found {kind(given)}")
        series = [given] if single else given
        self.check_rows(len(series))
        rows = [numbers(line, "values" if single else f"values[{i}]", missing=True) for i, line in enumerate(series)]
        for index, row in enumerate(rows):
            if row.ndim != 1:
                raise DataError(f"values[{index}] must be one list of numbers, found {row.ndim} dimensions")
            self.check_length(len(row), f"values[{index}]", "steps")
            if np.isnan(row).all():
                raise DataError(f"values[{index}] holds no number, {len(row)} of {len(row)} steps are missing")
        width = max(len(row) for row in rows)
        return pd.DataFrame([np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in rows])

    def table(self, body: Mapping[str, Any]) -> pd.DataFrame:
        """Times and columns."""
        values = self.channel_values(body["values"])
        count = len(next(iter(values.values())))
        self.check_length(count, "values", "steps")
        times = body.get("timestamps")
        if times is None:
            if self.config.get("series", {}).get("covariates"):
                raise DataError("timestamps are missing: the model reads covariates, which belong to times")
            times = self.made_up_times(count)
        elif not isinstance(times, list) or len(times) != count:
            found = len(times) if isinstance(times, list) else kind(times)
            raise DataError(f"timestamps must be a list of {count}, one for each step of values, found {found}")
        elif not all(isinstance(t, (str, int)) and not isinstance(t, bool) for t in times):
            raise DataError("timestamps must be texts such as 2026-01-31T06:00, or whole numbers")
        elif any(isinstance(t, int) and abs(t) >= 2**63 for t in times):
            raise DataError("timestamps hold a number of more than 64 bits")
        return pd.DataFrame({TIME: times, **values})

    def channel_values(self, given: Any) -> dict[str, np.ndarray]:
        """The columns by name."""
        if isinstance(given, Mapping):
            found = {str(name): numbers(column, f"values.{name}", missing=True) for name, column in given.items()}
            lengths = {name: column.shape for name, column in found.items()}
            if len(set(lengths.values())) != 1 or any(len(shape) != 1 for shape in lengths.values()):
                raise DataError(f"the columns of values must be lists of one length, found {lengths}"[:400])
            if TIME in found:
                raise DataError(f"values.{TIME}: give times as timestamps")
            return found
        array = numbers(given, "values", missing=True)
        array = array[:, None] if array.ndim == 1 else array
        names = self.columns
        if array.ndim != 2 or array.shape[1] != len(names):
            raise DataError(
                f"values must hold {len(names)} columns at each step ({', '.join(names[:10])}), found the shape {array.shape}"
            )
        return {name: array[:, place] for place, name in enumerate(names)}

    def made_up_times(self, count: int) -> Sequence[Any]:
        """Times a step apart."""
        name = str(self.config.get("series", {}).get("frequency", "steps of 1"))
        if name.startswith("steps of"):
            return (np.arange(count) * int(name.rsplit(" ", 1)[1])).tolist()
        frequency: Frequency = parse_frequency(name)
        return [str(time) for time in frequency.after(START, np.arange(count))]

    def check_file(self, path: Path) -> None:
        super().check_file(path)
        # A header and an empty line at the end come on top.
        self.check_table(path, 2 + (self.max_rows if self.labelled else self.max_length))

    def file_names(self, data: DomainData, count: int) -> list[dict[str, Any]]:
        rows = data.splits["predict"]
        if not isinstance(rows, WindowRows):
            return [{"id": plain_name(name)} for name in data.row_names("predict", np.arange(count))["id"]]
        return [self.window_names(rows, index) for index in range(count)]

    def window_names(self, rows: WindowRows, index: int) -> dict[str, Any]:
        """Series, channels and times of a window; of a forecast also what was observed before."""
        series = rows.series
        if isinstance(rows, SpanRows):
            which, first, _ = rows.start(index)
            times = series.times(which, first, rows.length)
            return {"id": series.ids[which], "channels": series.channels, "times": shown(times)}
        assert isinstance(rows, ForecastRows)
        which, origin = rows.place(index)
        known = min(origin, rows.lookback)
        past = rows.values(which, origin - known, known)[:, : series.n_targets].astype(np.float64)
        return {
            "id": series.ids[which],
            "channels": series.targets,
            "times": shown(series.times(which, origin, rows.horizon)),
            "history": {
                "times": shown(series.times(which, origin - known, known)),
                "values": np.where(np.isnan(past), None, past).tolist(),  # type: ignore[call-overload]
            },
        }

    def facts(self) -> dict[str, Any]:
        found = {**self.config.get("series", {}), "lookback": self.config.get("tokenizer", {}).get("lookback")}
        return found | {name: self.config[name] for name in ("horizon", "quantiles") if name in self.config}

    def example(self) -> dict[str, Any]:
        count = int(self.config.get("tokenizer", {}).get("lookback", 8))
        wave = np.sin(np.arange(count) / 4).round(4)
        if self.labelled:
            return {"values": wave.tolist()}
        body: dict[str, Any] = {"values": [[float(value)] * len(self.columns) for value in wave]}
        if self.config.get("series", {}).get("covariates"):
            body["timestamps"] = list(self.made_up_times(count))
        return body


def shown(times: np.ndarray) -> list[Any]:
    """Times as ISO 8601 texts, numbers as they are."""
    if times.dtype.kind == "M":
        return [str(time) for time in times.astype("datetime64[s]")]
    return times.tolist()
