"""The verb fit on every backbone in every domain, and on every task of every domain."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longseq.registry import backbone_info, create_backbone, list_backbones

Command = Callable[..., int]
FAST = [
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "baselines=false",
    "report=false",
    "run_dir=run",
    "backbone.d_model=16",
]
# Little demo data, and what makes it short.
DOMAINS = {
    "dna": ["data.demo_rows=20", "data.max_length=128"],
    "audio": ["data.demo_rows=24"],
    "timeseries": ["data.demo_series=2", "data.demo_days=100"],
    "vision": ["data.tokenizer=patch"],
}
TASKS = {
    "dna": ["classification", "multilabel", "regression", "profile", "base_labels", "lm", "mlm"],
    "audio": ["classification", "ctc", "frames", "lm"],
    "timeseries": ["forecasting", "imputation", "anomaly", "classification"],
    "vision": ["classification", "lm", "masked_patch"],
}
# Tasks that fill in from both sides, and those that must not.
BOTH_SIDES, CAUSAL_ONLY = ("mlm", "masked_patch"), ("lm",)


def size(name: str) -> list[str]:
    """One layer, but for networks whose layers are counted per resolution."""
    return ["backbone.n_layers=1", *(["backbone.head_dim=8", "backbone.d_state=8"] if name == "mamba2" else [])]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "metrics.json").read_text())


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", list_backbones())
def test_every_backbone_in_every_domain(name: str, domain: str, longseq: Command, tmp_path: Path) -> None:
    assert longseq("fit", f"domain={domain}", f"backbone={name}", *size(name), *FAST, *DOMAINS[domain]) == 0
    found = result(tmp_path)
    assert (found["backbone"], found["domain"]) == (name, domain)
    assert all(value is None or isinstance(value, float) for value in found["test"].values())


@pytest.mark.parametrize(("domain", "task"), [(domain, task) for domain, tasks in TASKS.items() for task in tasks])
def test_every_task_of_every_domain(domain: str, task: str, longseq: Command, tmp_path: Path) -> None:
    extra = ["backbone.bidirectional=true"] if task in BOTH_SIDES else []
    small = [option for option in DOMAINS[domain] if "max_length" not in option]
    small += ["data.tokenizer=pixel"] if (domain, task) == ("vision", "lm") else []
    name = "cnn" if task not in (*BOTH_SIDES, *CAUSAL_ONLY) else "hyena"
    assert longseq("fit", f"domain={domain}", f"task={task}", f"backbone={name}", *size(name), *FAST, *small, *extra) == 0
    assert result(tmp_path)["task"] == task


@pytest.mark.parametrize("name", list_backbones())
def test_language_models_take_what_fits_and_refuse_the_rest(
    name: str, longseq: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "genome.fa").write_text(">one\n" + "ACGTTGCATG" * 300 + "\n")
    either = "causal" in backbone_info(name).options()
    extra = ["backbone.causal=true"] if either else []
    causal = either or create_backbone(name, d_model=32, n_layers=1).causal
    args = [f"backbone={name}", *size(name), *FAST, "task=lm", "data.train=genome.fa", "data.window=64", *extra]
    assert longseq("fit", *args) == (0 if causal else 2)
    if not causal:
        assert "causal" in capsys.readouterr().err
