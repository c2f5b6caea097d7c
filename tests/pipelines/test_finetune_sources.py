"""Fine-tuning from a run, from published formats and from exported folders: the same network before its first step."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from longseq.checkpoint import load_model
from longseq.domains.tasks import Classification
from longseq.pipelines.cli import main
from tests.pipelines.published import publish

Command = Callable[..., int]
ONE_STEP = [
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "data.batch_size=16",
    "baselines=false",
    "report=false",
    "optimizer.lr=1e-12",
]
TINY = ["backbone.d_model=16", "backbone.n_layers=2", "data.window=128", "trainer.limit_train_batches=2"]


def command(*args: Any) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    return int(exit_info.value.code or 0)


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run folders of tiny causal language models, by backbone."""
    runs: dict[str, Path] = {}

    def run(backbone: str) -> Path:
        if backbone not in runs:
            folder = tmp_path_factory.mktemp(backbone)
            letters = torch.randint(4, (2500,), generator=torch.Generator().manual_seed(0))
            (folder / "g.fa").write_text(">one\n" + "".join("ACGT"[i] for i in letters) + "\n")
            options = [*ONE_STEP, *TINY, f"backbone={backbone}", f"data.train={folder / 'g.fa'}", "optimizer.lr=1e-3"]
            task = "mlm" if backbone == "caduceus" else "lm"
            assert command("fit", f"task={task}", *options, f"run_dir={folder / 'run'}") == 0
            runs[backbone] = folder / "run"
        return runs[backbone]

    return run


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What the networks answered to their batches, in order."""
    outputs: list[Tensor] = []
    loss = Classification.loss

    def record(self: Classification, found: Tensor, batch: dict[str, Tensor]) -> Tensor:
        outputs.append(found.detach().clone())
        return loss(self, found, batch)

    monkeypatch.setattr(Classification, "loss", record)
    yield outputs


@pytest.mark.parametrize("backbone", ["hyena", "mamba", "caduceus"])
def test_every_source_gives_the_same_first_logits(
    language_models: Callable[[str], Path], heard: list[Tensor], longseq: Command, dna_csv: Path, tmp_path: Path, backbone: str
) -> None:
    run = language_models(backbone)
    assert longseq("export", f"run={run}", "format=safetensors", "output=exported") == 0
    sources = {"run": run, "exported": tmp_path / "exported"}
    if backbone == "hyena":
        sources |= {"model": run / "model", "weights": tmp_path / "exported" / "model.safetensors"}
    sources["imported"] = publish(run, tmp_path / "imported")
    first, predicted, keys = {}, {}, {}
    for name, source in sources.items():
        heard.clear()
        assert longseq("finetune", f"pretrained={source}", f"data.train={dna_csv}", *ONE_STEP, f"run_dir=from_{name}") == 0
        first[name] = torch.cat(heard[:3])
        predicted[name] = pd.read_csv(tmp_path / f"from_{name}" / "predictions.csv")["p_1"].to_numpy()
        keys[name] = json.loads((tmp_path / f"from_{name}" / "key_report.json").read_text())
    assert first["run"].abs().max() > 1e-3 and first["run"].std() > 0
    for name in sources:
        torch.testing.assert_close(first[name], first["run"], atol=1e-5, rtol=1e-5)
        assert predicted[name] == pytest.approx(predicted["run"], abs=1e-5)
        anew = sorted(keys[name]["reinitialized"])
        assert len(anew) == 2 and all(re.fullmatch(r"head\.(strand\.)?projection\.(weight|bias)", key) for key in anew)
        loaded = set(keys[name]["matched"]) | set(keys[name]["renamed"])
        assert loaded == set(keys["run"]["matched"])
    assert keys["imported"]["format"] == "hyenadna" if backbone == "hyena" else backbone
    assert keys["exported"]["format"] == "longseq"
    head = load_model(tmp_path / "from_imported" / "model").config["head"]["name"]
    assert head == ("strand_pool" if backbone == "caduceus" else "pool")


def test_exported_graphs_are_refused_with_the_reason(
    longseq: Command,
    language_models: Callable[[str], Path],
    dna_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [f"run={language_models('gru')}", "format=torch", "output=graph", "step=false", "max_length=64", "latency=null"]
    assert longseq("export", *options) == 0
    capsys.readouterr()
    file = next(path for path in (tmp_path / "graph").iterdir() if path.suffix == ".pt2")
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    (onnx / "config.json").write_text((tmp_path / "graph" / "config.json").read_text())
    (onnx / "model.onnx").write_bytes(b"graph")
    for source in (tmp_path / "graph", file, onnx, onnx / "model.onnx"):
        assert longseq("finetune", f"pretrained={source}", f"data.train={dna_csv}", *ONE_STEP, "run_dir=run") == 2
        message = capsys.readouterr().err
        assert "for running" in message and "format=safetensors" in message and "Traceback" not in message
        assert not (tmp_path / "run").exists()
