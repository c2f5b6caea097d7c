"""The verb predict: every domain's tasks and files, formats, interruptions, and answers to bad commands."""

import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

from longseq.checkpoint import load_model
from longseq.pipelines import prediction_files

Command = Callable[..., int]


def dna(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list("ACGT"), length))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Three records of 30, 700 and 250 bases."""
    rng = np.random.default_rng(0)
    path = tmp_path / "new.fa"
    path.write_text("".join(f">r{i} about\n{dna(rng, n)}\n" for i, n in enumerate((30, 700, 250))))
    return path


CNN = ("backbone=cnn", "data.demo_rows=20")


# -- DNA


def test_rows_equal_the_models_own_answers_whatever_the_format(
    longseq: Command, trained: Any, fasta: Path, tmp_path: Path
) -> None:
    run = trained(*CNN)
    tables = {}
    for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl", "a.csv.gz"):
        assert longseq("predict", f"run={run}", f"data.predict={fasta}", f"output={name}", "part_rows=2") == 0
        read: dict[str, Any] = {"a.parquet": pd.read_parquet, "a.jsonl": lambda p: pd.read_json(p, lines=True)}
        tables[name] = read.get(name, lambda p: pd.read_csv(p, sep="\t" if ".tsv" in str(p) else ","))(tmp_path / name)
    table = tables["a.csv"]
    assert list(table.columns) == ["id", "length", "prediction", "p_convergent", "p_divergent"]
    assert table["id"].tolist() == ["r0", "r1", "r2"]
    model = load_model(run / "model")
    for letters, chance in zip(fasta.read_text().splitlines()[1::2], table["p_divergent"], strict=True):
        with torch.no_grad():
            ids = torch.tensor([["ACGT".index(letter) + 7 for letter in letters]])
            assert model(ids).softmax(-1)[0, 1].item() == pytest.approx(chance, abs=1e-4)
    for other in tables.values():
        assert np.allclose(other["p_divergent"], table["p_divergent"], atol=1e-6)
        assert other["id"].tolist() == table["id"].tolist()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".a")) == []


def test_a_bare_model_folder_predicts_the_same(longseq: Command, trained: Any, fasta: Path, tmp_path: Path) -> None:
    run = trained(*CNN)
    assert longseq("predict", f"run={run}", f"data.predict={fasta}", "output=a.csv") == 0
    assert longseq("predict", f"model={run / 'model'}", f"data.predict={fasta}", "output=b.csv") == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_intervals_keep_their_coordinates_also_in_bed(longseq: Command, trained: Any, fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "peaks.bed").write_text("r1\t100\t200\tpeak\t0\t-\nr2\t0\t50\tother\t0\t+\n")
    args = [f"run={trained(*CNN)}", "data.predict=peaks.bed", f"data.genome={fasta}"]
    assert longseq("predict", *args, "output=out.bed") == 0
    header, *lines = (tmp_path / "out.bed").read_text().splitlines()
    assert header.startswith("#chrom\tstart\tend\tname\tscore\tstrand")
    fields = [line.split("\t") for line in lines]
    assert [f[:3] + f[5:6] for f in fields] == [["r1", "100", "200", "-"], ["r2", "0", "50", "+"]]
    assert all(0 <= int(f[4]) <= 1000 and f[3] in ("convergent", "divergent") for f in fields)


def test_long_sequences_are_read_in_windows(longseq: Command, trained: Any, fasta: Path, tmp_path: Path) -> None:
    args = [f"run={trained(*CNN)}", f"data.predict={fasta}", "data.on_long=window", "data.max_length=200", "data.stride=150"]
    assert longseq("predict", *args, "output=out.csv") == 0
    table = pd.read_csv(tmp_path / "out.csv")
    long = table[table["id"] == "r1"]
    assert long["start"].tolist() == [0, 150, 300, 450, 500]
    assert long["end"].tolist() == [200, 350, 500, 650, 700]
    assert longseq("predict", *args, "output=out.bed") == 0


MAMBA_LM = ("backbone=mamba", "task=lm", "data.window=64")


def log_likelihoods(run: Path, fasta: Path) -> list[float]:
    """Each record's, from one whole pass."""
    model, found = load_model(run / "model"), []
    for letters in fasta.read_text().splitlines()[1::2]:
        ids = torch.tensor([["ACGT".index(letter) + 7 for letter in letters]])
        with torch.no_grad():
            log_p = model(ids)[0, :-1].log_softmax(-1)
        found.append(float(log_p.gather(1, ids[0, 1:, None]).sum()))
    return found


def test_language_models_score_in_chunks_what_they_score_at_once(
    longseq: Command, trained: Any, fasta: Path, tmp_path: Path
) -> None:
    run = trained(*MAMBA_LM)
    for name, options in (("a", []), ("b", ["chunk=90", "part_tokens=180"])):
        assert longseq("predict", f"run={run}", f"data.predict={fasta}", f"output={name}.csv", *options) == 0
        table = pd.read_csv(tmp_path / f"{name}.csv")
        assert np.allclose(table["log_likelihood"], log_likelihoods(run, fasta), rtol=1e-5)
        assert table["scored_bases"].tolist() == [29, 699, 249]
    bits = -table["log_likelihood"] / table["scored_bases"] / np.log(2)
    assert np.allclose(table["bits_per_base"], bits)


def test_language_models_score_stretches(longseq: Command, trained: Any, fasta: Path, tmp_path: Path) -> None:
    run = trained(*MAMBA_LM)
    args = [f"run={run}", f"data.predict={fasta}", "chunk=90", "part_tokens=180", "resolution=100"]
    assert longseq("predict", *args, "output=out.csv") == 0
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.loc[table["id"] == "r2", "end"].tolist() == [100, 200, 250]
    sums = [float(table.loc[table["id"] == name, "log_likelihood"].sum()) for name in ("r0", "r1", "r2")]
    assert np.allclose(sums, log_likelihoods(run, fasta), rtol=1e-5)
    assert longseq("predict", *args, "output=out.bed") == 0


@pytest.mark.parametrize("task", ["lm", "mlm"])
def test_models_of_fixed_length_score_in_windows_each_base_once(
    task: str, longseq: Command, trained: Any, fasta: Path, tmp_path: Path
) -> None:
    both = ["backbone.bidirectional=true"] if task == "mlm" else []
    run = trained("backbone=hyena", f"task={task}", "data.window=64", *both)
    for parts in ("part_tokens=128", "part_tokens=100000"):
        assert longseq("predict", f"run={run}", f"data.predict={fasta}", "output=out.csv", parts) == 0
        table = pd.read_csv(tmp_path / "out.csv")
        missing = 1 if task == "lm" else 0
        assert table["scored_bases"].tolist() == [30 - missing, 700 - missing, 250 - missing]
        assert table["bits_per_base"].between(0, 8).all()


@pytest.mark.parametrize("task", ["base_labels", "profile"])
def test_positions_are_stitched_from_windows(task: str, longseq: Command, trained: Any, fasta: Path, tmp_path: Path) -> None:
    run = trained("backbone=cnn", f"task={task}", "data.demo_rows=20")
    tables = []
    # A cnn of one layer sees a few bases: with that much context, windows and the whole agree.
    for name, options in (("whole", ["window=4096"]), ("cut", ["window=256", "part_tokens=256"])):
        assert longseq("predict", f"run={run}", f"data.predict={fasta}", f"output={name}.csv", *options) == 0
        tables.append(pd.read_csv(tmp_path / f"{name}.csv"))
    assert len(tables[0]) and list(tables[0].columns[:3]) == ["id", "start", "end"]
    pd.testing.assert_frame_equal(tables[0], tables[1], atol=1e-4)
    if task == "profile":
        assert tables[0].groupby("id")["end"].max().tolist() == [30, 700, 250]


# -- audio


def sound(path: Path, seconds: float, rate: int = 8000) -> Path:
    rng = np.random.default_rng(3)
    soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * rate)), rate)
    return path


@pytest.mark.parametrize("task", ["classification", "ctc", "frames", "lm"])
def test_sounds(task: str, longseq: Command, trained: Any, tmp_path: Path) -> None:
    run = trained("domain=audio", f"task={task}", "backbone=gru", "data.demo_rows=24")
    folder = tmp_path / "sounds"
    folder.mkdir()
    # The second has another sampling rate.
    sound(folder / "a.wav", 2.0)
    sound(folder / "b.wav", 1.3, 16000)
    assert longseq("predict", f"run={run}", f"data.predict={folder}", "output=out.csv", "chunk=50") == 0
    table = pd.read_csv(tmp_path / "out.csv")
    if task == "frames":
        assert {"id", "onset", "offset", "event_label", "probability"} <= set(table.columns)
        assert np.all(table["onset"] < table["offset"]) and np.max(table["offset"]) <= 2.0
    else:
        assert table["id"].tolist() == ["a.wav", "b.wav"]
        assert table["duration_s"].tolist() == [2.0, 1.3]
    # The same from a bare folder, from one file and with another cut into chunks.
    again = [f"model={run / 'model'}", f"data.predict={folder}", "chunk=7", "output=again.csv"]
    assert longseq("predict", *again) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again.csv"), table, rtol=1e-4, atol=1e-5)
    assert longseq("predict", f"run={run}", f"data.predict={folder / 'a.wav'}", "output=one.csv") == 0


def test_frames_from_windows_meet_without_a_seam(longseq: Command, trained: Any, tmp_path: Path) -> None:
    run = trained("domain=audio", "task=frames", "backbone=gru", "data.demo_rows=24")
    sound(tmp_path / "a.wav", 3.0)
    tables = []
    for name, options in (("whole", []), ("cut", ["window=12000", "overlap=0.9"])):
        assert longseq("predict", f"run={run}", "data.predict=a.wav", f"output={name}.csv", *options) == 0
        tables.append(pd.read_csv(tmp_path / f"{name}.csv"))
    assert tables[0]["event_label"].tolist() == tables[1]["event_label"].tolist()
    assert np.allclose(tables[0]["onset"], tables[1]["onset"], atol=0.1)


def test_long_sounds_are_classified_window_by_window(longseq: Command, trained: Any, tmp_path: Path) -> None:
    run = trained("domain=audio", "task=classification", "backbone=gru", "data.demo_rows=24")
    sound(tmp_path / "a.wav", 2.0)
    args = ["data.predict=a.wav", "data.on_long=window", "data.clip_s=0.8", "data.hop_s=0.4"]
    assert longseq("predict", f"run={run}", *args, "output=out.csv") == 0
    assert pd.read_csv(tmp_path / "out.csv")["start_s"].tolist() == pytest.approx([0.0, 0.4, 0.8, 1.2])


# -- time series


def table_of(tmp_path: Path, rows: int, missing: bool = False) -> Path:
    rng = np.random.default_rng(0)
    values = np.sin(np.arange(rows) / 4)[:, None] + 0.1 * rng.standard_normal((rows, 2))
    if missing:
        values[40:45, 0] = np.nan
    dates = pd.date_range("2024-01-01", periods=rows, freq="h")
    path = tmp_path / f"load_{rows}_{missing}.csv"
    pd.DataFrame({"date": dates, "a": values[:, 0], "b": values[:, 1]}).to_csv(path, index=False)
    return path


@pytest.fixture
def series(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that train on a table of two channels."""
    path = table_of(tmp_path_factory.getbasetemp(), 400)
    return (
        "domain=timeseries",
        "backbone=gru",
        f"data.train={path}",
        "data.lookback=24",
        "data.patch=6",
        "data.patch_stride=6",
    )


def test_forecasts_begin_behind_the_end_and_roll_out(longseq: Command, trained: Any, series: Any, tmp_path: Path) -> None:
    run = trained(*series, "data.horizon=6")
    new = table_of(tmp_path, 100)
    for source in (f"run={run}", f"model={run / 'model'}"):
        for options, steps in (([], 6), (["data.horizon=15"], 15)):
            assert longseq("predict", source, f"data.predict={new}", *options, "output=out.csv") == 0
            table = pd.read_csv(tmp_path / "out.csv")
            assert len(table) == 2 * steps
            assert table["channel"].unique().tolist() == ["a", "b"]
            times = pd.to_datetime(table["date"] if "date" in table else table["ds"]).unique()
            assert times[0] == pd.Timestamp("2024-01-05 04:00") and len(times) == steps
            assert {"unique_id", "last_observed", "step", "forecast", "q0.5"} <= set(table.columns)
            assert "truth" not in table


def test_several_series_with_calendar_covariates(
    longseq: Command, trained: Any, tmp_path: Path, tmp_path_factory: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=200, freq="D")
    parts = [pd.DataFrame({"unique_id": name, "ds": days, "y": rng.standard_normal(200)}) for name in ("x", "y")]
    path = tmp_path_factory.getbasetemp() / "long.csv"
    pd.concat(parts).to_csv(path, index=False)
    small = ["data.lookback=24", "data.horizon=4", "data.patch=6", "data.patch_stride=6"]
    run = trained("domain=timeseries", "backbone=gru", f"data.train={path}", "data.calendar=[weekday]", *small)
    assert longseq("predict", f"run={run}", f"data.predict={path}", "output=out.csv") == 0
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["unique_id"].tolist() == ["x"] * 4 + ["y"] * 4
    assert table["ds"].tolist()[:2] == ["2024-07-19", "2024-07-20"]
    model = f"model={run / 'model'}"
    assert longseq("predict", model, f"data.predict={path}", "data.calendar=[weekday]", "output=again.csv") == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again.csv"), table)
    assert longseq("predict", model, f"data.predict={path}", "output=no.csv") == 2
    assert "data.calendar" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["imputation", "anomaly"])
def test_series_are_filled_in_and_scored(task: str, longseq: Command, trained: Any, series: Any, tmp_path: Path) -> None:
    run = trained(*series, f"task={task}")
    new = table_of(tmp_path, 100, missing=True)
    tables = []
    for source in (f"run={run}", f"model={run / 'model'}"):
        assert longseq("predict", source, f"data.predict={new}", "output=out.parquet") == 0
        tables.append(pd.read_parquet(tmp_path / "out.parquet"))
    pd.testing.assert_frame_equal(*tables)
    if task == "imputation":
        assert tables[0]["channel"].tolist() == ["a"] * 5
        assert pd.to_datetime(tables[0]["ds"]).dt.hour.tolist() == [16, 17, 18, 19, 20]
    else:
        assert len(tables[0]) == 100 and tables[0]["score"].notna().all()


def test_series_are_classified_with_and_without_a_label_in_front(longseq: Command, trained: Any, tmp_path: Path) -> None:
    run = trained(
        "domain=timeseries", "task=classification", "backbone=gru", "data.lookback=32", "data.patch=8", "data.patch_stride=8"
    )
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 32)).round(3)
    (tmp_path / "bare.csv").write_text("\n".join(",".join(map(str, row)) for row in values))
    labels = json.loads((run / "model" / "config.json").read_text())["labels"]
    (tmp_path / "labelled.csv").write_text("\n".join(",".join([labels[0], *map(str, row)]) for row in values))
    tables = []
    for name in ("bare", "labelled"):
        assert longseq("predict", f"run={run}", f"data.predict={name}.csv", "output=out.csv") == 0
        tables.append(pd.read_csv(tmp_path / "out.csv").drop(columns="id"))
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 4


# -- vision


@pytest.mark.parametrize("task", ["classification", "lm", "masked_patch"])
def test_images(task: str, longseq: Command, trained: Any, tmp_path: Path) -> None:
    extra = {"lm": ["data.tokenizer=pixel"], "masked_patch": ["backbone.bidirectional=true"]}.get(task, [])
    run = trained("domain=vision", f"task={task}", "backbone=mamba", *extra)
    rng = np.random.default_rng(0)
    for i, side in enumerate((8, 8, 20)):
        Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    tables = []
    for source in (f"run={run}", f"model={run / 'model'}"):
        assert longseq("predict", source, f"data.predict={tmp_path}/*.png", "output=out.jsonl") == 0
        tables.append(pd.read_json(tmp_path / "out.jsonl", lines=True))
    pd.testing.assert_frame_equal(*tables)
    assert [Path(name).name for name in tables[0]["id"]] == ["0.png", "1.png", "2.png"]
    wanted = {"classification": "p_0", "lm": "bits_per_dim", "masked_patch": "mse"}[task]
    assert tables[0][wanted].notna().all()
    assert longseq("predict", f"run={run}", "data.predict=0.png", "output=one.csv") == 0


def test_a_folder_of_frames_is_a_video(longseq: Command, trained: Any, tmp_path: Path) -> None:
    run = trained("domain=vision", "data.tokenizer=tubelet", "backbone=mamba")
    rng = np.random.default_rng(0)
    (tmp_path / "clip").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path / "clip" / f"{i}.png")
    for source in (f"run={run}", f"model={run / 'model'}"):
        assert longseq("predict", source, "data.predict=clip", "data.window_stride=2", "output=out.csv") == 0
        assert pd.read_csv(tmp_path / "out.csv")["first_frame"].tolist() == [0, 2, 4]


# -- interruptions


@pytest.fixture
def reads(tmp_path: Path) -> Path:
    """Forty sequences in a table."""
    rng = np.random.default_rng(1)
    path = tmp_path / "reads.csv"
    path.write_text("\n".join(["sequence", *(dna(rng, int(n)) for n in rng.integers(30, 60, 40))]) + "\n")
    return path


# Each command is a process of its own, which dies at a certain moment as if the machine had lost its power.
KILLED = """
import os, signal
from pathlib import Path
import longseq.domains.dna.module, longseq.domains.dna.datamodule, longseq.pipelines.predict
from longseq.pipelines import prediction_files
from longseq.pipelines.cli import main

Table = prediction_files.PartialTable

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def not_noted():
    write, calls = prediction_files.write_atomically, []
    def note(path, text):
        calls.append(path)
        die() if len(calls) == 4 else write(path, text)
    prediction_files.write_atomically = note

def half_a_part():
    encoded = Table._encoded
    def half(self, table, first):
        data = encoded(self, table, first)
        if self.done == 3:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            die()
        return data
    Table._encoded = half

def not_in_place():
    Table.finish = die

def not_forgotten():
    Table._remove = die

def half_joined():
    join = prediction_files.join_parquet
    prediction_files.join_parquet = lambda partial, joined: (join(partial, joined), die())

for args, moment in {commands!r}:
    child = os.fork()
    if not child:
        globals()[moment]()
        main(args)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, moment
"""
MOMENTS = [("a.csv", "not_noted"), ("b.csv", "not_in_place"), ("c.csv", "not_forgotten"), ("a.tsv", "half_a_part")]
MOMENTS += [("a.jsonl", "half_a_part"), ("a.bed", "not_noted"), ("a.csv.gz", "half_a_part")]
MOMENTS += [("a.parquet", "half_a_part"), ("b.parquet", "half_joined")]


def test_killed_commands_go_on_without_gaps_or_repeats(
    longseq: Command, trained: Any, reads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["predict", f"run={trained(*CNN)}", f"data.predict={reads}", "part_rows=7", "device=cpu"]
    code = KILLED.replace("{commands!r}", repr([([*args, f"output={output}"], moment) for output, moment in MOMENTS]))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, env=dict(os.environ))
    assert process.returncode == 0, process.stderr[-3000:]
    for output, moment in MOMENTS:
        path, whole = tmp_path / output, tmp_path / f"whole{''.join(Path(output).suffixes)}"
        if not whole.exists():
            assert longseq(*args, f"output={whole.name}") == 0
        assert path.exists() == (moment == "not_forgotten")
        done = 3 if moment in ("not_noted", "half_a_part") else 6
        assert json.loads((tmp_path / f".{output}.progress.json").read_text())["done"] == done
        capsys.readouterr()
        assert longseq(*args, f"output={output}") == 0
        assert f"going on behind {done} of 6 parts" in capsys.readouterr().out
        assert path.read_bytes() == whole.read_bytes()
        assert path.stat().st_mode == whole.stat().st_mode
    assert not list(tmp_path.glob(".*.progress.json")) + list(tmp_path.glob(".*.partial"))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Ctrl-C in the middle."""
    add = prediction_files.PartialTable.add

    def stops(self: prediction_files.PartialTable, table: pd.DataFrame) -> None:
        if self.done == parts:
            raise KeyboardInterrupt
        add(self, table)

    monkeypatch.setattr(prediction_files.PartialTable, "add", stops)


def test_an_interrupted_command_goes_on(
    longseq: Command, trained: Any, reads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["predict", f"run={trained(*CNN)}", f"data.predict={reads}", "part_rows=9"]
    assert longseq(*args, "output=whole.csv.gz") == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert longseq(*args, "output=out.csv.gz") == 130
    assert not (tmp_path / "out.csv.gz").exists()
    assert longseq(*args, "output=out.csv.gz") == 0
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == gzip.decompress((tmp_path / "whole.csv.gz").read_bytes())


@pytest.mark.parametrize("options", [["resolution=50"], []])
def test_a_sequence_that_was_half_scored_is_scored_right(
    options: list[str], longseq: Command, trained: Any, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["predict", f"run={trained(*MAMBA_LM)}", f"data.predict={fasta}", "chunk=64", "part_tokens=128", *options]
    assert longseq(*args, "output=whole.csv") == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert longseq(*args, "output=out.csv") == 130
    assert longseq(*args, "output=out.csv") == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_other_options_do_not_go_on(
    longseq: Command,
    trained: Any,
    reads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["predict", f"run={trained(*CNN)}", f"data.predict={reads}", "part_rows=9", "output=out.csv"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert longseq(*args) == 130
    assert longseq(*args, "data.max_length=40") == 2
    assert "data.max_length" in capsys.readouterr().err
    reads.write_text(reads.read_text().replace("A", "C"))
    assert longseq(*args) == 2
    message = capsys.readouterr().err
    assert "files" in message and "restart=true" in message
    assert longseq(*args, "restart=true") == 0
    assert len(pd.read_csv(tmp_path / "out.csv")) == 40


def test_two_commands_do_not_write_one_file(tmp_path: Path) -> None:
    first = prediction_files.PartialTable(tmp_path / "out.csv", {}, 1)
    second = prediction_files.PartialTable(tmp_path / "out.csv", {}, 1)
    with first.opened(), pytest.raises(ValueError, match="another command"), second.opened():
        pass


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_full_disk_loses_nothing(
    name: str, longseq: Command, trained: Any, reads: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["predict", f"run={trained(*CNN)}", f"data.predict={reads}", "part_rows=9"]
    whole = f"whole{Path(name).suffix}"
    assert longseq(*args, f"output={whole}") == 0
    write, left = prediction_files.write_whole, [2000]

    def full(file: Any, data: bytes) -> None:
        write(file, data[: left[0]])
        if len(data) > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)

    with monkeypatch.context() as patch:
        patch.setattr(prediction_files, "write_whole", full)
        left[0] = 1000 if name == "out.csv" else 9000
        assert longseq(*args, f"output={name}") == 2
    error = capsys.readouterr().err
    assert f"output={name} cannot be written: No space left" in error and "goes on" in error
    assert longseq(*args, f"output={name}") == 0
    assert Path(name).read_bytes() == Path(whole).read_bytes()


def test_bad_records_are_left_out_if_told_so(longseq: Command, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.fa").write_text(">ok\nACGT\n>bad\nAC!!\n>empty\n>good\nGGG\n")
    args = ["predict", f"run={trained(*CNN)}", "data.predict=bad.fa", "output=out.csv"]
    assert longseq(*args) == 2
    assert longseq(*args, "data.on_bad=skip") == 0
    assert "skipped in predict: 2; the first: bad.fa, record 2" in " ".join(capsys.readouterr().out.split())
    assert pd.read_csv("out.csv")["id"].tolist() == ["ok", "good"]


def test_ids_of_a_table_are_kept_whatever_they_hold(longseq: Command, trained: Any) -> None:
    ids = ["a,b", 'say "x"', "tab\there", "two\nlines", "NA", "001", "ü🧬", "a,b", "L" * 3000]
    pd.DataFrame({"id": ids, "sequence": ["ACGT"] * len(ids)}).to_csv("ids.csv", index=False)
    args = ["predict", f"run={trained(*CNN)}", "data.predict=ids.csv"]
    for name, sep in (("out.csv", ","), ("out.tsv", "\t")):
        assert longseq(*args, f"output={name}") == 0
        assert pd.read_csv(name, sep=sep, dtype=str, keep_default_na=False)["id"].tolist() == ids
    assert longseq(*args, "output=out.jsonl") == 0
    assert [json.loads(line)["id"] for line in Path("out.jsonl").read_text().splitlines()] == ids
    # BED knows no quotes: a line is an interval, and a tab ends a field.
    assert longseq(*args, "output=out.bed") == 0
    lines = Path("out.bed").read_text().splitlines()[1:]
    assert [line.split("\t")[0] for line in lines] == [name.replace("\t", " ").replace("\n", " ") for name in ids]
    assert {line.count("\t") for line in lines} == {8}


def test_a_command_that_fails_at_once_leaves_nothing(longseq: Command, trained: Any, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save("a.png")
    run = trained("domain=vision", "backbone=cnn")
    # An image has no place in a genome.
    assert longseq("predict", f"run={run}", "data.predict=a.png", "output=out.bed") == 2
    assert not list(tmp_path.glob(".out*"))


# -- a domain's own ways of predicting


def test_a_file_of_the_domain_adds_a_way_of_predicting(
    longseq: Command, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import longseq.domains.dna as domain

    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "letter_count.py").write_text(
        "import pandas as pd\n"
        "from longseq.domains.prediction import Predictions\n\n"
        "def predictions(module, *, letters, times=1):\n"
        "    class Counts(Predictions):\n"
        "        def __len__(self): return 2\n"
        "        def table(self, part): return pd.DataFrame({'part': [part], 'n': [times * len(letters)]})\n"
        "    return Counts()\n"
    )
    monkeypatch.setattr(domain, "__path__", [str(folder), *domain.__path__])
    args = ["predict", f"run={trained(*CNN)}", "output=out.csv"]
    assert longseq(*args, "task=letter_count", "data.letters=ACGT", "data.times=2") == 0
    assert (tmp_path / "out.csv").read_text() == "part,n\n0,8\n1,8\n"
    assert longseq(*args, "task=letter_count", "data.letter=ACGT") == 2
    assert "did you mean letters" in capsys.readouterr().err
    assert longseq(*args, "task=letter_count") == 2
    assert "data.letters=" in capsys.readouterr().err
    assert longseq(*args, "task=letters_count") == 2
    assert "letter_count" in capsys.readouterr().err


# -- bad commands


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run=nowhere"], "not a run folder"),
        (["model=nowhere"], "not a model folder"),
        (["run=RUN", "model=RUN/model"], "either a run folder"),
        ([], "either a run folder"),
        (["run=RUN"], "data.predict"),
        (["run=RUN", "data.predict=nowhere.fa"], "nowhere.fa"),
        (["run=RUN", "data.predict=new.fa", "data.max_lenght=3"], "did you mean max_length"),
        (["run=RUN", "data.predict=new.fa", "module.rc_averag=true"], "rc_average"),
        (["run=RUN", "data.predict=new.fa", "output=out.xlsx"], ".parquet"),
        (["run=RUN", "data.predict=new.fa", "output=out.wav"], "longseq generate"),
        (["run=RUN", "data.predict=new.fa", "device=tpu9"], "device must be auto, cpu, cuda, cuda:1 or mps, found 'tpu9'"),
        (["run=RUN", "data.predict=new.fa", "--device", "tpu9"], "found 'tpu9'"),
        (["run=RUN", "data.predict=new.fa", "--device=cuda:99"], "device=cuda:99, but torch sees"),
        (["run=RUN", "data.predict=new.fa", "--device"], "--device wants a value"),
        (["run=RUN", "data.predict=new.fa", "--devise", "cpu"], "did you mean device"),
        (["run=RUN", "data.predict=new.fa", "resolution=10"], "language models"),
        (["run=RUN", "data.predict=new.fa", "task=nothing"], "task=classification"),
        (["run=RUN", "data.predict=protein.fa"], "protein"),
        (["run=RUN", "data.predict=empty.fa"], "empty"),
        (["run=RUN", "data.predict=new.fa", "output=folder.csv"], "there is a folder of that name"),
        (["run=RUN", "data.predict=new.fa", "output=new.fa/out.csv"], "is a file"),
        (["run=RUN", "data.predict=new.fa", "output=begun.csv"], "is damaged: add restart=true"),
        (["run=RUN", "data.predict=new.fa", "part_rows=0"], "part_rows must be at least 1"),
        (["run=RUN", "data.predict=new.fa", "part_rows=1.5"], "part_rows must be at least 1, and a whole number"),
        (["run=RUN", "data.predict=new.fa", "chunk=many"], "chunk must be at least 1, and a whole number"),
        (["run=RUN", "data.predict=new.fa", "overlap=half"], "overlap is a share"),
        (["run=RUN", "data.predict=new.fa", "restart=maybe"], "restart must be true or false"),
        (["run=RUN", "data.predict=bad.fa", "data.on_bad=skip"], "none of its 2 records"),
    ],
)
def test_bad_commands_are_answered(
    options: list[str], message: str, longseq: Command, trained: Any, fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained(*CNN))
    fasta.with_name("protein.fa").write_text(">p\nMKVLEEQ\n")
    fasta.with_name("empty.fa").write_text("")
    fasta.with_name("bad.fa").write_text(">a\n>b\nMKVLEEQ\n")
    fasta.with_name("folder.csv").mkdir()
    fasta.with_name(".begun.csv.progress.json").write_text('{"key": {}, "done"')
    assert longseq("predict", *(option.replace("RUN", run) for option in options)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
