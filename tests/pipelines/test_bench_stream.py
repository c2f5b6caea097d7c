"""The benchmark of streams: a line for every backbone that can step, with latency and real-time factor."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        _, *rows = csv.DictReader(file)
    # Caduceus matches too, but sees the future.
    assert [(row["what"], row["size"][:5]) for row in rows] == [
        (name, size) for name in ("mamba", "mamba2") for size in ("20 ms", "40 ms")
    ]
    assert all(float(row["forward_ms"]) > 0 for row in rows)


def test_long_chunks_are_whole_and_several(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pushed = [0.0], []

    class Stream:
        state_bytes = 0

        def push(self, chunk: Any) -> Any:
            pushed.append(chunk.shape[1])
            # A tenth of the sound's own length.
            clock[0] += 0.1 * chunk.shape[1] / 16_000
            return chunk

    class Model:
        embedding = backbone = type("Parts", (), {"d_model": 16})

        def stream(self) -> Stream:
            return Stream()

    monkeypatch.setattr(bench_stream.time, "perf_counter", lambda: clock[0])
    for chunk_ms in (30, 3000):
        pushed.clear()
        row = bench_stream.time_stream("toy", Model(), chunk_ms, "cpu")  # type: ignore[arg-type]
        assert set(pushed) == {16 * chunk_ms} and len(pushed) >= bench_stream.FEWEST
        assert "real-time factor 0.100" in row.note


@pytest.mark.parametrize("tokenizer", ["waveform", "mulaw"])
def test_a_trained_model_is_timed_at_its_own_rate(
    tokenizer: str, longseq: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Any
) -> None:
    monkeypatch.setattr(bench_stream, "HEARD_S", 0.5)
    task = ["task=lm", "module.generate_clips=0"] if tokenizer == "mulaw" else ["task=classification"]
    run = trained("domain=audio", *task, f"data.tokenizer={tokenizer}", "backbone=gru", "data.demo_rows=24")
    for source in (f"run={run}", f"model={run / 'model'}"):
        assert longseq("bench", "stream", "trainer=cpu", source, "output=out.csv") == 0
        with (tmp_path / "out.csv").open() as file:
            _, row = csv.DictReader(file)
        assert (row["what"], row["size"]) == ("gru", "20 ms of 4 kHz D16")
        assert float(row["forward_ms"]) > 0 and "real-time factor" in row["note"] and "p99" in row["note"]


def test_what_cannot_be_timed_says_why(
    longseq: Callable[..., int], trained: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dna = trained("backbone=gru", "data.demo_rows=20")
    both = trained("domain=audio", "backbone=gru", "backbone.bidirectional=true", "data.demo_rows=24")
    cases = [
        ([f"run={dna}"], "measures models of sound"),
        ([f"run={both}"], "cannot stream"),
        ([f"run={dna}", f"model={dna / 'model'}"], "not both"),
        ([f"run={tmp_path}"], "not a model folder"),
    ]
    for options, reason in cases:
        assert longseq("bench", "stream", "trainer=cpu", *options) == 2
        assert reason in capsys.readouterr().err
    assert longseq("bench", "ops", f"run={dna}") == 2
    assert "longseq bench stream" in capsys.readouterr().err
