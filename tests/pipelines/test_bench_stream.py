"""The benchmark of streams: a line for every backbone that can step, with latency and real-time factor."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from longseq.pipelines import bench_stream


def test_latency_of_chunks(
    longseq: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_stream, "HEARD_S", 0.2)
    monkeypatch.setattr(bench_stream, "WARM_S", 0.04)
    args = ["trainer=cpu", "d_model=16", "lengths=20,40", "output=out.csv"]
    assert longseq("bench", "stream", *args, "name=[cm]a[dm][ub][ca]*") == 0
    printed = capsys.readouterr().out
    assert "real-time factor" in printed and "p99" in printed
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Caduceus matches too, but sees the future.
    assert [(row["what"], row["size"][:5]) for row in rows] == [
        (name, size) for name in ("mamba", "mamba2") for size in ("20 ms", "40 ms")
    ]
    assert all(float(row["forward_ms"]) > 0 for row in rows)
