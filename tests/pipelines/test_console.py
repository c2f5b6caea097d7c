"""The table of results fits the terminal: nothing of a number is cut off."""

import io

import pytest
from rich.console import Console

from longseq.pipelines.console import results_table

NAMES = ("mse", "loss", "mae", "pearson", "r2", "spearman", "real_time_factor")


@pytest.mark.parametrize("width", [80, 160])
def test_numbers_are_whole_whatever_the_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    values = dict(zip(NAMES, (114631.96, 0.4611, 213.7, 0.7907, 0.5389, 0.7972, 0.02039), strict=True))
    baselines = {"MFCC + SVM": dict.fromkeys(NAMES[:1], 9900.25), "mean": {"mse": 248612.5, "r2": 4.172e-07}}
    out = Console(width=width, record=True, file=io.StringIO())
    out.print(results_table({"backbone": "gru", "test": values, "baselines": baselines}, "test result", "mse", "min"))
    text = out.export_text()
    for word in (*NAMES, "1.146e+05", "2.486e+05", "9900", "4.172e-07"):
        assert word in text
    # Wide terminals show a method per line, narrow ones a metric.
    assert any("gru" in line and "213.7" in line for line in text.splitlines()) == (width == 160)
