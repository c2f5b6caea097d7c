"""The verb bench: tables with every operator and backbone, and answers to mistakes."""

import csv
import math
import subprocess
from pathlib import Path

import pytest

from longseq.errors import ConfigError, LongseqError
from longseq.ops import __path__ as ops_path
from longseq.pipelines import bench, bench_memory, bench_ops
from longseq.registry import list_backbones


@pytest.fixture(autouse=True)
def _one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(run_once, device, seconds=1.0, clock="wall"):  # type: ignore[no-untyped-def]
        run_once()
        return 1.0

    monkeypatch.setattr(bench, "median_ms", once)
    # In this process: a fresh one imports torch and transformers again.
    monkeypatch.setattr(bench_ops, "peak_mib", lambda *arguments: max(1.0, bench_memory.measure(*arguments)))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_operator_is_timed_beside_the_peer(tmp_path: Path) -> None:
    assert bench.run(["ops", "trainer=cpu", "lengths=64", "d_model=16", f"output={tmp_path / 'b.csv'}"]) == 0
    found = rows(tmp_path / "b.csv")
    used = {row["implementation"]: float(row["memory_mib"]) for row in found if row["what"] == "mamba fwd+bwd"}
    assert set(used) == {"longseq", "transformers"}
    assert min(used.values()) > 0
    public = {path.parent.name for path in Path(ops_path[0]).glob("*/__init__.py")} - {"dplr_ssm"}
    assert public <= {row["what"] for row in found}
    assert {row["implementation"] for row in found if row["what"] == "mamba"} == {"longseq", "transformers"}


def test_every_backbone_gets_an_exponent(tmp_path: Path) -> None:
    assert bench.run(["backbones", "trainer=cpu", "lengths=32,64", "d_model=16", f"output={tmp_path / 'b.csv'}"]) == 0
    found = rows(tmp_path / "b.csv")
    assert {row["what"] for row in found if "exponent" in row["note"]} == set(list_backbones())


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
    options = ["backbones", "trainer=cpu", "name=mamba", "lengths=8,16,999999", "d_model=16", "budget_s=1"]
    assert bench.run([*options, f"output={tmp_path / 'b.csv'}"]) == 0
    found = rows(tmp_path / "b.csv")
    assert [row["size"].split()[1] for row in found] == ["L8", "L16"]
    assert "exponent" in found[-1]["note"]
    assert "stopped before L999999" in found[-1]["note"]


def test_steps_are_timed_where_there_are_any(tmp_path: Path) -> None:
    assert bench.run(["step", "trainer=cpu", "name=*mamba*", "lengths=3,9", "d_model=16", f"output={tmp_path / 'b.csv'}"]) == 0
    assert [row["what"] for row in rows(tmp_path / "b.csv")] == ["mamba"] * 2 + ["mamba2"] * 2


def test_the_exponent_is_the_slope() -> None:
    assert bench.exponent([(math.log(n), math.log(n**1.5)) for n in (10, 100, 1000)]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "args", [["opz"], ["ops", "lenghts=3"], ["ops", "trainer=tpu"], ["ops", "step"], ["ops", "d_model=wide"]]
)
def test_mistakes_are_answered(args: list[str]) -> None:
    with pytest.raises(ConfigError):
        bench.run(args)
