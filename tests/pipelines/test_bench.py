"""The verb bench: tables with every operator and backbone, and answers to mistakes."""

import csv
import math
from pathlib import Path

import pytest

from longseq.errors import ConfigError
from longseq.ops import __path__ as ops_path
from longseq.pipelines import bench
from longseq.registry import list_backbones


@pytest.fixture(autouse=True)
def _one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(run_once, device, seconds=1.0):  # type: ignore[no-untyped-def]
        run_once()
        return 1.0

    monkeypatch.setattr(bench, "median_ms", once)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_every_operator_is_timed_beside_the_peer(tmp_path: Path) -> None:
    assert bench.run(["ops", "trainer=cpu", "lengths=64", "d_model=16", f"output={tmp_path / 'b.csv'}"]) == 0
    found = rows(tmp_path / "b.csv")
    public = {path.parent.name for path in Path(ops_path[0]).glob("*/__init__.py")} - {"dplr_ssm"}
    assert public <= {row["what"] for row in found}
    assert {row["implementation"] for row in found if row["what"] == "mamba"} == {"longseq", "transformers"}


def test_every_backbone_gets_an_exponent(tmp_path: Path) -> None:
    assert bench.run(["backbones", "trainer=cpu", "lengths=32,64", "d_model=16", f"output={tmp_path / 'b.csv'}"]) == 0
    found = rows(tmp_path / "b.csv")
    assert {row["what"] for row in found if "exponent" in row["note"]} == set(list_backbones())


def test_steps_are_timed_where_there_are_any(tmp_path: Path) -> None:
    assert bench.run(["step", "trainer=cpu", "name=*mamba*", "lengths=3,9", "d_model=16", f"output={tmp_path / 'b.csv'}"]) == 0
    assert [row["what"] for row in rows(tmp_path / "b.csv")] == ["mamba"] * 2 + ["mamba2"] * 2


def test_the_exponent_is_the_slope() -> None:
    assert bench.exponent([(math.log(n), math.log(n**1.5)) for n in (10, 100, 1000)]) == pytest.approx(1.5)


@pytest.mark.parametrize("args", [["opz"], ["ops", "lenghts=3"], ["ops", "trainer=tpu"], ["ops", "step"]])
def test_mistakes_are_answered(args: list[str]) -> None:
    with pytest.raises(ConfigError):
        bench.run(args)
