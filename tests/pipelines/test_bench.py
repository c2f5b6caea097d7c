"""The verb bench: tables with every operator, network and backbone, and answers to mistakes."""

import csv
import math
import subprocess
from pathlib import Path

import pytest
import torch

from longseq.errors import ConfigError, LongseqError
from longseq.ops import __path__ as ops_path
from longseq.ops.dispatch import prefer
from longseq.pipelines import bench, bench_clock, bench_memory, bench_ops, bench_sizes, bench_train
from longseq.registry import list_backbones


@pytest.fixture(autouse=True)
def _one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(run_once, device, seconds=1.0, clock="wall"):  # type: ignore[no-untyped-def]
        run_once()
        return 1.0

    monkeypatch.setattr(bench, "median_ms", once)
    monkeypatch.setattr(bench_clock, "copy_bandwidth", lambda device: 1e9)
    # In this process: a fresh one imports torch and transformers again.
    monkeypatch.setattr(bench_ops, "peak_mib", lambda *arguments: max(1.0, bench_memory.measure(*arguments)))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def table(tmp_path: Path, *args: str) -> list[dict[str, str]]:
    assert bench.run(["budget_s=0.01", *args, "trainer=cpu", f"output={tmp_path / 'b.csv'}"]) == 0
    return rows(tmp_path / "b.csv")


def test_every_operator_has_sizes() -> None:
    public = {path.parent.name for path in Path(ops_path[0]).glob("*/__init__.py")}
    for name, sizes in bench_sizes.SIZES.items():
        assert set(sizes) == public | {"mamba"}, name


@pytest.mark.parametrize("operator", sorted({*bench_sizes.OPERATORS} - {"mamba"}))
def test_operators_are_timed(operator: str, tmp_path: Path) -> None:
    _, *found = table(tmp_path, "ops", f"op={operator}", "size=tiny", "implementation=chunked")
    assert (found[0]["what"], found[0]["implementation"]) == (operator, "longseq chunked")
    for row in found:
        # A peer that is missing something here says so; the others have times and shares.
        assert row["note"].startswith("failed") or min(float(row["forward_ms"]), float(row["floor_backward"])) > 0
    assert not any(row["note"].startswith("failed") for row in found)


def test_implementations_stand_side_by_side(tmp_path: Path) -> None:
    found = table(tmp_path, "ops", "op=causal_conv1d", "lengths=32,48", "d_model=8")
    ours = ["longseq reference", "longseq chunked", "longseq cpu"]
    assert [row["implementation"] for row in found] == ["torch", *2 * [*ours, "torch conv1d"]]
    assert [row["size"] for row in found[1::4]] == ["B1 L32 D8 K4", "B1 L48 D8 K4"]


def test_memory_that_runs_out_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longseq.pipelines import bench_peers

    def too_large(case: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 128.00 GiB.")

    monkeypatch.setattr(bench_peers, "_conv1d", too_large)
    found = table(tmp_path, "ops", "op=causal_conv1d", "size=tiny", "implementation=chunked,triton")
    named = {row["implementation"]: row for row in found}
    assert named["torch conv1d"]["note"] == "out of memory" and not named["torch conv1d"]["forward_ms"]
    assert named["longseq triton"]["note"].startswith("failed: ValueError")
    assert float(named["longseq chunked"]["backward_ms"]) > 0


def test_mamba_stands_beside_the_peer(tmp_path: Path) -> None:
    found = table(tmp_path, "ops", "op=mamba", "size=tiny")
    used = {row["implementation"]: float(row["memory_mib"]) for row in found if row["what"] == "mamba fwd+bwd"}
    assert set(used) == {"longseq", "transformers"}
    assert min(used.values()) > 0
    assert {row["implementation"] for row in found if row["what"] == "mamba"} == {"longseq", "transformers"}


def test_every_preset_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, *found = table(tmp_path, "train", "size=tiny", "implementation=auto")
    assert [row["what"] for row in found] == list(bench_train.PRESETS)
    _, *both = table(tmp_path, "train", "size=tiny", "name=s4d*")
    assert [row["implementation"] for row in both] == ["longseq", "plain chunked"]
    assert "times longseq's" in both[1]["note"]
    assert all(float(row["step_ms"]) > 0 and float(row["tokens_per_s"]) > 0 for row in found)
    assert "tokens/s" in capsys.readouterr().out


def test_the_profile_says_where_the_time_goes(tmp_path: Path) -> None:
    found = table(tmp_path, "train", "size=tiny", "name=mamba-130m", "implementation=auto", "profile=true")
    parts = {row["size"].strip(): row["note"] for row in found}
    shares = [float(parts[name].split("%")[0]) for name in ("in operators", "outside")]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares[0] > 0
    assert {"in selective_scan", "in causal_conv1d", "optimizer", "kernel"} <= set(parts)


def test_the_plain_form_is_asked_for_in_one_place() -> None:
    from longseq.ops.selective_scan import _operator

    x = torch.zeros(1, 4, 2)
    with prefer("chunked"):
        assert _operator.choose("auto", x) is _operator._functions["chunked"]
        assert _operator.choose("reference", x) is _operator._functions["reference"]
    with prefer("nothing that it has"):
        assert _operator.choose("auto", x) is not _operator._functions["reference"]


def test_presets_keep_their_published_sizes() -> None:
    for name, (width, layers, length) in {"hyenadna-large-1m": (256, 8, 10**6), "mamba-130m": (768, 24, 8192)}.items():
        preset = bench_train.PRESETS[name]
        assert (preset.backbone["d_model"], preset.backbone["n_layers"], preset.length) == (width, layers, length)
        assert bench_train.shrink(preset, "full") is preset
        assert bench_train.shrink(preset, "tiny").length < 100


def test_every_backbone_gets_exponents_and_a_picture(tmp_path: Path) -> None:
    args = ["backbones", "trainer=cpu", "lengths=16,32", "d_model=16", f"output={tmp_path / 'b.csv'}"]
    assert bench.run(args) == 0
    found = rows(tmp_path / "b.csv")
    assert {row["what"] for row in found if "exponent" in row["note"]} == set(list_backbones())
    assert all((tmp_path / f"b.{kind}").stat().st_size > 5000 for kind in ("png", "svg"))


@pytest.mark.slow
def test_mamba_takes_a_fifth_of_the_peers_memory() -> None:
    used = [bench_memory.peak_mib(name, 1024, 128, "cpu") for name in bench_memory.PEERS]
    assert 5 * used[0] <= used[1]


def test_a_failed_measurement_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback ...\nValueError: x has length 0\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(LongseqError, match="memory of longseq at length 0 failed: ValueError: x has length 0"):
        bench_memory.peak_mib("longseq", 0, 16, "cpu")


def test_a_backbone_stops_at_its_budget(tmp_path: Path) -> None:
    options = ["backbones", "trainer=cpu", "name=mamba", "lengths=8,16,999999", "d_model=16", "budget_s=50"]
    assert bench.run([*options, f"output={tmp_path / 'b.csv'}"]) == 0
    device, *found = rows(tmp_path / "b.csv")
    assert "torch" in device["note"]
    assert [row["size"].split()[1] for row in found] == ["L8", "L16"]
    assert "exponent" in found[-1]["note"]
    assert "stopped before L999999" in found[-1]["note"]


def test_a_backbone_stops_where_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_memory, "available", lambda: 0.0)
    monkeypatch.setattr(bench_clock, "peak_mib", lambda call, device: 7.0)
    _, *found = table(tmp_path, "backbones", "name=cnn", "lengths=16,8,16", "d_model=16", "budget_s=9999")
    assert [row["note"] for row in found] == ["stopped before L16: about 14 MiB, of which 0 are free"]


def test_steps_are_timed_where_there_are_any(tmp_path: Path) -> None:
    assert bench.run(["step", "trainer=cpu", "name=*mamba*", "lengths=3,9", "d_model=16", f"output={tmp_path / 'b.csv'}"]) == 0
    assert [row["what"] for row in rows(tmp_path / "b.csv")] == ["device"] + ["mamba"] * 2 + ["mamba2"] * 2


def test_the_exponent_is_the_slope() -> None:
    assert bench.exponent([(math.log(n), math.log(n**1.5)) for n in (10, 100, 1000)]) == pytest.approx(1.5)


def test_turns_are_as_many_as_fit() -> None:
    counts = [0, 0]

    def count(i: int) -> None:
        counts[i] += 1

    calls = [lambda: count(0), lambda: count(1)]
    assert len(bench_clock.in_turns(calls, "cpu", seconds=1.0, expected_ms=100.0)) == 2
    assert counts == [10, 10]
    bench_clock.in_turns(calls, "cpu", seconds=0.05, expected_ms=100.0)
    assert counts == [11, 11]
    assert bench_clock.in_turns([], "cpu", 1.0, 0.0) == []


@pytest.mark.parametrize(
    "args",
    [
        ["opz"],
        ["ops", "lenghts=3"],
        ["ops", "trainer=tpu"],
        ["ops", "step"],
        ["ops", "d_model=wide"],
        ["ops", "trainer=cpu", "op=selective_scam"],
        ["ops", "trainer=cpu", "size=huge"],
        ["ops", "trainer=cpu", "lengths=1k"],
        ["ops", "trainer=cpu", "size=tiny", "op=add_norm", "dtype=half"],
        ["train", "trainer=cpu", "name=gpt"],
        ["train", "trainer=cpu", "size=hopper"],
        ["train", "profile=maybe"],
        ["train", "trainer=cpu", "implementation=auto,chuncked"],
        ["train", "trainer=cpu", "lengths=64"],
        ["train", "trainer=cpu", "dtype=bf16"],
        ["ops", "trainer=cpu", "implementation=chunked,"],
        ["ops", "trainer=cpu", "d_model=64"],
        ["ops", "trainer=cpu", "size=tiny", "lengths=64"],
        ["ops", "trainer=cpu", "lengths=-3"],
        ["ops", "trainer=cpu", "budget_s=nan"],
        ["ops", "trainer=cpu", "budget_s=-1"],
        ["backbones", "trainer=cpu", "lengths=,"],
        ["backbones", "trainer=cpu", "lengths=0"],
        ["backbones", "trainer=cpu", "d_model=-3"],
        ["backbones", "trainer=cpu", "name=manba"],
        ["backbones", "trainer=cpu", "name=gru", "output=b.png"],
        ["step", "trainer=cpu", "name=nope"],
        ["stream", "trainer=cpu", "name=nope"],
        ["stream", "trainer=cpu", "dtype=float32"],
        ["ops", "trainer=cpu", "output=."],
        ["ops", "trainer=cpu", "output=/proc/x/b.csv"],
    ],
)
def test_mistakes_are_answered_and_leave_older_tables(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench.csv").write_text("yesterday's")
    with pytest.raises(ConfigError):
        bench.run(args)
    assert (tmp_path / "bench.csv").read_text() == "yesterday's"
    assert [path.name for path in tmp_path.iterdir()] == ["bench.csv"]


def test_a_named_implementation_that_is_not_there_is_a_row(tmp_path: Path) -> None:
    _, failed, found = table(tmp_path, "train", "name=s4d-scifar", "size=tiny", "implementation=triton,chunked")
    assert "not available" in failed["note"] and not failed["step_ms"]
    assert float(found["step_ms"]) > 0
    # Parameters, gradients and moments stand in memory on a CPU as well.
    model = bench_train.make_step(bench_train.shrink(bench_train.PRESETS["s4d-scifar"], "tiny"), "cpu", torch.float32)[1]
    assert float(found["memory_mib"]) > 16e-6 * sum(p.numel() for p in model.parameters()) / 1.05


@pytest.mark.parametrize("width", [16, 64, 100, 256])
def test_heads_have_all_channels(width: int) -> None:
    sizes = bench_sizes.everywhere(64, width)
    for operator in ("ssd", "window_attention"):
        (size,) = sizes[operator]
        assert size["H"] * size["P"] == width
