"""The verb fit on every backbone, in the forms that a language model of either kind needs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from longseq.registry import backbone_info, create_backbone, list_backbones

OPTIONS = {"mamba2": ["backbone.head_dim=8", "backbone.d_state=8"], "sashimi": ["backbone.n_layers=1"]}
FAST = ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "baselines=false", "report=false"]


@pytest.mark.parametrize("name", list_backbones())
def test_classification(name: str, longseq: Callable[..., int], dna_csv: Path, tmp_path: Path) -> None:
    small = ["backbone.d_model=16", "backbone.n_layers=1", *OPTIONS.get(name, [])]
    assert longseq("fit", f"backbone={name}", *small, *FAST, f"data.train={dna_csv}", "run_dir=run") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["backbone"] == name
    assert 0 <= metrics["test"]["accuracy"] <= 1


@pytest.mark.parametrize("name", list_backbones())
def test_language_models_take_what_fits_and_refuse_the_rest(
    name: str, longseq: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "genome.fa").write_text(">one\n" + "ACGTTGCATG" * 300 + "\n")
    small = ["backbone.d_model=16", "backbone.n_layers=1", *OPTIONS.get(name, [])]
    args = [f"backbone={name}", *small, *FAST, "data.train=genome.fa", "data.window=64", "run_dir=run"]
    either = "causal" in backbone_info(name).options()
    extra = ["backbone.causal=true"] if either else []
    causal = either or create_backbone(name, d_model=32, n_layers=1).causal
    assert longseq("fit", "task=lm", *args, *extra) == (0 if causal else 2)
    if not causal:
        assert "causal" in capsys.readouterr().err
