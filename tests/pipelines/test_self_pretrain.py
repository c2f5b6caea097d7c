"""Pretraining on the task's own data, the warm-up of the length, and the loss in chunks inside a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longseq.checkpoint import load_model
from longseq.domains import base
from longseq.domains.loading import split_rows
from longseq.errors import ConfigError
from longseq.pipelines.callbacks import LengthWarmup
from tests.pipelines.resuming import ends_with_the_weights_of, last_checkpoint, signal_at

Command = Callable[..., int]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(("backbone", "task"), [("hyena", "lm"), ("caduceus", "mlm")])
def test_one_command_pretrains_and_trains(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path, backbone: str, task: str
) -> None:
    options = [f"backbone={backbone}", f"data.train={dna_csv}", "self_pretrain.epochs=2", "baselines=false"]
    # The task itself learns nothing, so that what it holds is what was pretrained.
    assert longseq("fit", *tiny, *options, "optimizer.lr=1e-12", "self_pretrain.lr=1e-2", "run_dir=run") == 0
    found = metrics(tmp_path / "run")["self_pretrain"]
    assert found["task"] == task and found["epochs"] == 2 and found["validation"]["loss"] > 0
    assert found["training"]["steps"] == 12 and metrics(tmp_path / "run")["task"] == "classification"
    pretrained, model = (load_model(tmp_path / "run" / name) for name in ("pretraining/model", "model"))
    theirs = pretrained.state_dict()
    shared = [name for name in model.state_dict() if not name.startswith("head.")]
    assert len(shared) == found["tensors"]
    for name in shared:
        torch.testing.assert_close(model.state_dict()[name], theirs[name], atol=1e-6, rtol=1e-6)
    assert "Pretraining on the task" in (tmp_path / "run" / "report.html").read_text()


def test_a_new_run_in_an_old_folder_pretrains_anew(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    options = [f"data.train={dna_csv}", "backbone=gru", "baselines=false", "report=false", "run_dir=run"]
    for epochs in (1, 2):
        assert longseq("fit", *tiny, *options, f"self_pretrain.epochs={epochs}") == 0
        assert metrics(tmp_path / "run")["self_pretrain"]["epochs"] == epochs
    # A run that goes on has it behind it.
    written = (tmp_path / "run" / "pretraining" / "pretraining.json").stat().st_mtime_ns
    assert longseq("fit", "resume=run", "trainer.max_epochs=3") == 0
    assert (tmp_path / "run" / "pretraining" / "pretraining.json").stat().st_mtime_ns == written


@pytest.mark.usefixtures("_signals")
def test_an_interrupted_pretraining_goes_on_where_it_was(
    longseq: Command,
    tiny: list[str],
    dna_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [*tiny, f"data.train={dna_csv}", "self_pretrain.epochs=2", "backbone.dropout=0.2", "report=false"]
    options += ["trainer.max_epochs=1", "baselines=false"]
    assert longseq("fit", *options, "run_dir=whole") == 0
    assert longseq("fit", *options, "run_dir=run", signal_at("on_train_batch_end", 8)) == 130
    assert "go on with: longseq fit resume=run" in capsys.readouterr().out
    assert longseq("fit", *options, "run_dir=run", "resume=auto") == 0
    for place in ("", "pretraining"):
        run, whole = tmp_path / "run" / place, tmp_path / "whole" / place
        assert last_checkpoint(run)["global_step"] == last_checkpoint(whole)["global_step"]
        assert ends_with_the_weights_of(run, whole)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("self_pretrain.epochs=abc", "self_pretrain.epochs must be a whole number"),
        ("self_pretrain.epochs=-1", "self_pretrain.epochs must be 0 (none) or more"),
        ("self_pretrain.lr=fast", "self_pretrain.lr must be a number or null"),
        ("length_warmup.stages=16", "length_warmup.stages must be a list of whole numbers"),
        ("length_warmup.stages=[a]", "length_warmup.stages must be a list of whole numbers"),
    ],
)
def test_options_of_the_wrong_kind(
    longseq: Command, tiny: list[str], dna_csv: Path, capsys: pytest.CaptureFixture[str], option: str, expected: str
) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "self_pretrain.epochs=1", option, "run_dir=run") == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message


def test_tasks_that_do_not_go_say_so(
    longseq: Command, tiny: list[str], dna_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"data.train={dna_csv}", "run_dir=run"]
    assert longseq("fit", *tiny, *options, "self_pretrain.epochs=1", "self_pretrain.task=masked") == 2
    assert "masked_patch" in capsys.readouterr().err
    for own in (
        ["domain=timeseries", "task=masked_series", "data.demo_days=150"],
        ["domain=vision", "task=masked_patch", "backbone.bidirectional=true"],
        ["domain=audio", "task=masked_sound", "data.demo_rows=8"],
    ):
        assert longseq("fit", *tiny, *own, "self_pretrain.epochs=1", "run_dir=run2") == 2
        assert "needs no labels as it is" in capsys.readouterr().err


BOTH_SIDES = ["backbone=mamba", "backbone.bidirectional=true"]
SOUNDS = ["domain=audio", "data.demo_rows=24", "data.batch_size=8"]
SERIES = ["domain=timeseries", "data.demo_days=120", "data.batch_size=16"]


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ([*SOUNDS, "data.tokenizer=logmel"], "masked_sound"),
        ([*SOUNDS, "data.tokenizer=waveform", *BOTH_SIDES], "masked_sound"),
        ([*SOUNDS, "data.tokenizer=mulaw", "data.clip_s=0.05"], "lm"),
        ([*SERIES, "data.calendar=[hour]"], "imputation"),
        ([*SERIES, "task=classification", "data.lookback=40", "data.tokenizer=point", "backbone=gru"], "imputation"),
        (["domain=vision"], "masked_patch"),
        (["domain=vision", "data.class_token=middle", "module.mixup=0.2", *BOTH_SIDES], "masked_patch"),
        (["domain=vision", "data.tokenizer=pixel", "data.permutation_seed=1", "backbone=gru"], "masked_patch"),
    ],
)
def test_every_domain_pretrains_on_its_own_data(trained: Callable[..., Path], options: list[str], task: str) -> None:
    run = trained(*options, "self_pretrain.epochs=1", "self_pretrain.lr=1e-2", "optimizer.lr=1e-12")
    found = metrics(run)["self_pretrain"]
    assert found["task"] == task and found["training"]["steps"] == 2
    assert all(value == value for value in found["validation"].values())
    pretrained, model = (load_model(run / name) for name in ("pretraining/model", "model"))
    theirs, own = pretrained.state_dict(), model.state_dict()
    shared = [name for name in own if not name.startswith("head.") and name != "embedding.class_vector"]
    assert len(shared) == found["tensors"]
    for name in shared:
        torch.testing.assert_close(own[name], theirs[name], atol=1e-6, rtol=1e-6)


def test_pieces_hold_the_same_tokens() -> None:
    inputs = torch.arange(14).reshape(2, 7)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    labels = inputs.masked_fill(~mask, -100)
    batch = {"inputs": inputs, "mask": mask, "labels": labels, "index": torch.tensor([4, 5])}
    pieces = split_rows(batch, 3)
    assert pieces["inputs"].shape == (4, 3) and pieces["index"].tolist() == [4, 4, 4, 5]
    assert pieces["inputs"][pieces["mask"]].tolist() == inputs[mask].tolist()
    assert pieces["labels"][pieces["mask"]].tolist() == labels[mask].tolist()
    assert (pieces["labels"][~pieces["mask"]] == -100).all()
    assert split_rows(batch, 7) is batch


def test_length_rises_in_stages(longseq: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def record(batch: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
        found = split_rows(batch, length)
        lengths.append((length, found["inputs"].shape[1], int(found["mask"].sum()) == int(batch["mask"].sum())))
        return found

    monkeypatch.setattr(base, "split_rows", record)
    letters = torch.randint(4, (6000,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "g.fa").write_text(">one\n" + "".join("ACGT"[i] for i in letters) + "\n")
    options = ["task=lm", "data.train=g.fa", "data.window=64", "run_dir=run", "report=false", "baselines=false"]
    stages = ["length_warmup.stages=[8,32]", "length_warmup.steps=0.25", "data.batch_size=19"]
    assert longseq("fit", *tiny, *options, *stages) == 0
    steps = metrics(tmp_path / "run")["training"]["steps"]
    assert steps == 8 and lengths == [(8, 8, True)] * 2 + [(32, 32, True)] * 2


def test_stages_that_make_no_sense() -> None:
    for stages, steps in (([], 0.1), ([32, 8], 0.1), ([8, 8], 0.1), ([0, 8], 0.1), ([8], 0)):
        with pytest.raises(ConfigError, match="rising lengths"):
            LengthWarmup(stages, steps)
    assert [LengthWarmup([8, 16], 3).length(step, 100) for step in (0, 2, 3, 6)] == [8, 8, 16, None]


def test_a_warmup_of_a_classifier_is_refused(
    longseq: Command, tiny: list[str], dna_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "length_warmup.stages=[8]", "run_dir=run") == 2
    assert "task along the sequence" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["lm", "mlm"])
def test_a_run_with_the_loss_in_chunks_is_the_same_run(
    longseq: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    letters = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "g.fa").write_text(">one\n" + "".join("ACGT"[i] for i in letters) + "\n")
    extra = ["backbone=caduceus"] if task == "mlm" else []
    options = [f"task={task}", *extra, "data.train=g.fa", "data.window=128", "report=false", "baselines=false"]
    assert longseq("fit", *tiny, *options, "run_dir=whole") == 0
    monkeypatch.setattr(base, "LOGITS_AT_ONCE", 100)
    assert longseq("fit", *tiny, *options, "run_dir=parts") == 0
    whole, parts = (metrics(tmp_path / name)["test"] for name in ("whole", "parts"))
    assert whole == pytest.approx(parts, rel=1e-4)
