"""Reading series: both layouts, encodings, frequencies, gaps, and every kind of bad input with its message."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from writing import long_frame, wide_frame, write

from longseq.domains.timeseries.frequency import Frequency, infer_frequency
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.sources import read_series
from longseq.errors import ConfigError, DataError


def read(source, **options):
    return read_series(source, ReadOptions(**options))


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_wide_files_of_every_format_hold_the_same(tmp_path: Path, suffix: str) -> None:
    frame, path = wide_frame(), tmp_path / f"load{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    series = read(str(path))
    assert series.channels == ["c0", "c1"]
    np.testing.assert_allclose(series.values_TC, frame[["c0", "c1"]], rtol=1e-6)
    assert series.frequency == Frequency("fixed", 3600 * 10**9)
    assert str(series.time(0, 199)) == "2024-01-09T07:00:00.000000000"
    assert str(series.time(0, 200)) == "2024-01-09T08:00:00.000000000"


def test_windows_1252_just_works_with_a_note(tmp_path: Path) -> None:
    frame = wide_frame().rename(columns={"c0": "T (°C)", "c1": "µmol"})
    path = tmp_path / "w.csv"
    path.write_bytes(frame.to_csv(index=False).encode("cp1252"))
    series = read(str(path))
    assert series.channels == ["T (°C)", "µmol"]
    assert "Windows-1252" in series.counts["encoding of w.csv"]
    path.write_bytes(frame.to_csv(index=False).encode("utf-16"))
    assert read(str(path)).channels == ["T (°C)", "µmol"]


def test_long_files_hold_series_of_different_lengths(tmp_path: Path) -> None:
    frame = long_frame({"a": 30, "b": 7, "c": 12})
    # Rows of several series may be mixed, as long as each is in order.
    mixed = frame.sort_values("ds", kind="stable")
    series = read(write(mixed, tmp_path / "l.csv"))
    assert series.ids == ["a", "b", "c"]
    assert series.lengths.tolist() == [30, 7, 12]
    np.testing.assert_allclose(series.values_TC[30:37, 0], frame.loc[frame.unique_id == "b", "y"], rtol=1e-6)


def test_several_wide_files_are_a_series_each(tmp_path: Path) -> None:
    for name in ("north", "south"):
        write(wide_frame(50), tmp_path / f"{name}.csv")
    assert read(str(tmp_path / "*.csv")).ids == ["north", "south"]
    assert read(str(tmp_path)).lengths.tolist() == [50, 50]


def test_covariates_of_all_kinds(tmp_path: Path) -> None:
    frame = long_frame({"a": 20, "b": 25})
    frame["price"] = np.arange(len(frame), dtype=float)
    frame["temperature"] = 1.0
    frame["shop"] = np.where(frame["unique_id"] == "a", "small", "large")
    frame.loc[frame.index[-5:], "y"] = np.nan
    path = write(frame, tmp_path / "c.csv")
    series = read(
        path,
        known_covariates=("price",),
        past_covariates=("temperature",),
        static_covariates=("shop",),
        calendar=("weekday",),
    )
    assert series.targets == ["y"] and series.channels == ["y", "temperature"]
    assert series.covariates == ["price", "weekday_sin", "weekday_cos", "shop=large", "shop=small"]
    assert series.ahead.tolist() == [0, 5] and series.lengths.tolist() == [20, 20]
    rows = series.covariate_rows(1, -2, 10)
    assert rows[:2, 0].tolist() == [0, 0] and rows[2:, 0].tolist() == [20, 21, 22, 23, 24, 25, 26, 27]
    assert (rows[:, 3] == 1).all() and (rows[:, 4] == 0).all()
    with pytest.raises(DataError, match=r"price must be known up to 2024-01-30 .* the file ends at 2024-01-25"):
        series.covariate_rows(1, 20, 10)


@pytest.mark.parametrize(
    ("freq", "kind", "name", "season"),
    [
        ("15min", "fixed", "15 min", 96),
        ("h", "fixed", "1 h", 24),
        ("D", "fixed", "1 d", 7),
        ("W", "fixed", "7 d", 52),
        ("MS", "month", "month", 12),
        ("ME", "month", "month", 12),
        ("QS", "quarter", "quarter", 4),
        ("B", "business", "business", 5),
    ],
)
def test_frequencies_are_found_and_continued(freq: str, kind: str, name: str, season: int) -> None:
    times = pd.date_range("2020-01-31", periods=60, freq=freq).to_numpy(dtype="datetime64[ns]")
    found = infer_frequency(times[:40], "x")
    assert (found.kind, found.name, found.season) == (kind, name, season)
    np.testing.assert_array_equal(found.after(times[0], np.arange(60)), times)


def test_missing_steps_become_missing_values_or_are_ignored(tmp_path: Path) -> None:
    path = write(wide_frame(100).drop(index=[10, 11, 50]), tmp_path / "g.csv")
    series = read(path)
    assert series.lengths.tolist() == [100] and series.counts["steps missing in time, filled"] == 3
    assert np.isnan(series.values_TC[[10, 11, 50]]).all() and np.isnan(series.values_TC).sum() == 6
    assert read(path, gaps="ignore").lengths.tolist() == [97]
    with pytest.raises(DataError, match=r"line 12, series 'g': 3 steps of 1 h are missing, the first before 2024-01-01 12:00"):
        read(path, gaps="error")
    forward = read(path, missing="forward")
    assert forward.values_TC[11, 0] == forward.values_TC[9, 0]


def test_months_with_a_hole(tmp_path: Path) -> None:
    frame = wide_frame(24, freq="MS").drop(index=[5])
    series = read(write(frame, tmp_path / "m.csv"))
    assert series.frequency.name == "month" and series.lengths.tolist() == [24]
    assert np.isnan(series.values_TC[5]).all()


def test_plain_numbers_serve_as_time(tmp_path: Path) -> None:
    frame = wide_frame(20).assign(date=np.arange(0, 40, 2))
    series = read(write(frame, tmp_path / "i.csv"))
    assert series.frequency == Frequency("index", 2) and series.time(0, 20) == 40


def test_one_bad_cell_is_named_or_skipped(tmp_path: Path) -> None:
    frame = wide_frame(50).astype(object)
    frame.loc[7, "c1"] = "n.a.?"
    path = write(frame, tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"b.csv, line 9, column 'c1': 'n.a.\?' is not a finite number \(1 such"):
        read(path)
    series = read(path, on_bad="skip")
    assert np.isnan(series.values_TC[7, 1]) and series.counts["cells that are no numbers, read as missing"] == 1


def test_times_twice(tmp_path: Path) -> None:
    frame = wide_frame(30)
    same = pd.concat([frame, frame.iloc[[12]]]).sort_values("date", kind="stable")
    series = read(write(same, tmp_path / "s.csv"))
    assert series.lengths.tolist() == [30] and series.counts["rows that repeat a time, left out"] == 1
    other = same.copy()
    other.iloc[13, 1] = 99.0
    path = write(other, tmp_path / "o.csv")
    with pytest.raises(
        DataError, match=r"line 15, series 'o': time 2024-01-01 12:00:00 stands there a second time.*in line 14\)"
    ):
        read(path)
    assert read(path, on_bad="skip").values_TC[12, 0] == pytest.approx(frame["c0"][12])


def test_unsorted_times(tmp_path: Path) -> None:
    frame = wide_frame(30)
    path = write(frame.iloc[::-1], tmp_path / "u.csv")
    with pytest.raises(DataError, match=r"line 3, series 'u': time .* stands behind .*; sort the rows"):
        read(path)
    np.testing.assert_allclose(read(path, on_bad="skip").values_TC[:, 0], frame["c0"], rtol=1e-6)


def test_times_off_the_grid(tmp_path: Path) -> None:
    frame = wide_frame(30)
    frame.loc[20, "date"] = "2024-01-01 20:17:00"
    path = write(frame, tmp_path / "t.csv")
    with pytest.raises(DataError, match="line 22, series 't': time 2024-01-01 20:17:00 is not a multiple of 1 h"):
        read(path)
    assert np.isnan(read(path, on_bad="skip").values_TC[20]).all()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"date": "yesterday"}, {}, "line 2, column 'date': 'yesterday' is no time"),
        ({}, {"targets": ["c7"]}, "there is no column 'c7'.*did you mean c"),
        ({}, {"time_column": "when"}, "there is no column 'when'"),
        ({}, {"known_covariates": ("wind",)}, "there is no column 'wind'"),
        ({}, {"encoding": "latin-99"}, "cannot be read with data.encoding=latin-99"),
        ({}, {"frequency": "often"}, "data.frequency='often' is no frequency"),
        ({}, {"calendar": ("moon",)}, "data.calendar holds 'moon'"),
        ({}, {"gaps": "mend"}, "data.gaps must be fill or ignore or error"),
        ({}, {"past_covariates": ("c1",), "targets": ["c1"]}, "both hold c1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict, options: dict, message: str) -> None:
    path = write(wide_frame(20).assign(**change), tmp_path / "x.csv")
    with pytest.raises((DataError, ConfigError), match=message):
        read(path, **options)


def test_missing_empty_and_broken_files(tmp_path: Path) -> None:
    write(wide_frame(20), tmp_path / "load.csv")
    with pytest.raises(DataError, match=r"there is no such file; did you mean .*load.csv"):
        read(str(tmp_path / "laod.csv"))
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(DataError, match="the file is empty"):
        read(str(tmp_path / "empty.csv"))
    (tmp_path / "head.csv").write_text("date,a\n")
    with pytest.raises(DataError, match="but no rows"):
        read(str(tmp_path / "head.csv"))
    (tmp_path / "cut.csv.gz").write_bytes(b"\x1f\x8b\x08\x00rest")
    with pytest.raises(DataError, match="cut off or damaged"):
        read(str(tmp_path / "cut.csv.gz"))
    (tmp_path / "p.parquet").write_bytes(b"PAR0 is nothing")
    with pytest.raises(DataError, match="not a parquet file"):
        read(str(tmp_path / "p.parquet"))


def test_summer_and_winter_time_in_one_column(tmp_path: Path) -> None:
    times = pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    series = read(write(pd.DataFrame({"date": times, "a": np.arange(72.0)}), tmp_path / "a.csv"))
    assert str(series.time(0, 0)) == "2024-03-29T23:00:00.000000000"
    assert (len(series.values_TC), series.counts["time zone"]) == (72, "read as UTC")


def test_what_spreadsheets_leave_is_no_data(tmp_path: Path) -> None:
    lines = wide_frame(50).to_csv(index=False).splitlines()
    path = tmp_path / "a.csv"
    path.write_text("\n".join(f"{line}," for line in [*lines[:20], ",,", *lines[20:]]) + "\n")
    series = read(str(path))
    assert (series.channels, len(series.values_TC)) == (["c0", "c1"], 50)


@pytest.mark.parametrize(
    ("cell", "hint"),
    [("0,5", "data.decimal=','"), ("1,000.5", "without marks between the thousands"), ("n/a?", "data.targets")],
)
def test_columns_that_hold_no_numbers_say_what_was_found(tmp_path: Path, cell: str, hint: str) -> None:
    frame = pd.DataFrame({"date": pd.date_range("2024", periods=9), "a": cell})
    with pytest.raises(DataError, match="no column of numbers") as caught:
        read(write(frame, tmp_path / "a.csv", sep=";"))
    assert repr(cell) in str(caught.value) and hint in str(caught.value)
