"""The verb fit: a finished run's files, resuming, Ctrl-C, and answers to bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from longseq.checkpoint import load_model
from longseq.pipelines.callbacks import RunCheckpoints
from tests.pipelines.resuming import ends_with_the_weights_of, last_checkpoint, signal_at

Command = Callable[..., int]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def start(*args: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "longseq.pipelines.cli", *[str(arg) for arg in args]]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A shell's background job, tests included, ignores Ctrl-C, and so would what it starts.
    prepare = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "start_new_session": True}
    return subprocess.Popen(command, **pipes, env=env, **prepare)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_a_run_leaves_everything(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "run_dir=run") == 0
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "metrics.json", "predictions.csv", "report.html", "model", "checkpoints"} <= names
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    found = metrics(folder)
    assert set(found["baselines"]) == {"majority", "k-mer logistic regression"}
    assert 0 <= found["test"]["accuracy"] <= 1
    assert found["training"]["steps"] == 12
    predictions = pd.read_csv(folder / "predictions.csv")
    assert len(predictions) == found["data"]["splits"]["test"]["rows"]
    agreement = (predictions["prediction"].to_numpy() == predictions["label"].to_numpy()).mean()
    assert agreement == pytest.approx(found["test"]["accuracy"], abs=1e-6)


def test_the_model_folder_gives_the_predictions(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.csv"
    test.write_text("".join(dna_csv.read_text().splitlines(keepends=True)[:9]))
    assert longseq("fit", *tiny, f"data.train={dna_csv}", f"data.test={test}", "run_dir=run", "report=false") == 0
    model = load_model(tmp_path / "run" / "model")
    ids = {"A": 7, "C": 8, "G": 9, "T": 10}
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
    for i, line in enumerate(test.read_text().splitlines()[1:]):
        sequence = line.split(",")[0]
        with torch.no_grad():
            p = model(torch.tensor([[ids[letter] for letter in sequence]])).softmax(-1)[0]
        assert p[1].item() == pytest.approx(predictions["p_1"][i], abs=1e-4)


def test_same_seed_same_result_and_another_seed_another(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        args = [f"data.train={dna_csv}", f"run_dir={name}", f"seed={seed}", "report=false", "baselines=false"]
        assert longseq("fit", *tiny, *args) == 0
    a, b, c = (metrics(tmp_path / name)["test"] for name in "abc")
    assert a == b
    assert a != c


def test_killed_in_an_epoch_and_resumed_equals_never_stopped(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path
) -> None:
    options = [
        *tiny,
        f"data.train={dna_csv}",
        "backbone.dropout=0.2",
        "data.rc_augment=true",
        "trainer.max_epochs=3",
        "callbacks.checkpoint.every_n_steps=2",
        "report=false",
        "baselines=false",
    ]
    assert longseq("fit", *options, "run_dir=whole") == 0
    # Stops by SIGKILL when a checkpoint from the middle of the second epoch is on disk.
    process = start("fit", *options, "run_dir=killed", signal_at("on_train_batch_end", 9, name="SIGKILL"))
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "metrics.json").exists()
    assert last_checkpoint(tmp_path / "killed")["global_step"] == 8
    assert longseq("fit", *options, "run_dir=killed", "resume=auto") == 0
    assert metrics(tmp_path / "killed")["test"] == metrics(tmp_path / "whole")["test"]
    assert ends_with_the_weights_of(tmp_path / "killed", tmp_path / "whole")


def test_ctrl_c_writes_the_last_checkpoint_and_exits_130(tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    options = ["trainer.max_epochs=100000", "trainer.accumulate_grad_batches=3", "data.num_workers=1"]
    process = start("fit", *tiny, f"data.train={dna_csv}", "run_dir=run", *options)
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "best.ckpt").exists(), process)
    # As a terminal does, to the loader's processes too.
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert output.count("Ctrl-C:") == 1
    assert "interrupted" in output
    assert "val/mcc" in output
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


# Twelve batches an epoch, six steps, two validations of three batches.
STEPS = [
    "data.batch_size=8",
    "data.rc_augment=true",
    "trainer.max_epochs=3",
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=0.5",
    "backbone.dropout=0.2",
    "report=false",
    "baselines=false",
    "callbacks.progress=null",
]


AVERAGING = ["callbacks=[default,ema]"]


@pytest.mark.usefixtures("_signals")
def test_interrupted_anywhere_and_resumed_equals_never_stopped(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    lines = dna_csv.read_text().splitlines(keepends=True)
    for name, start, end in (("train", 1, 97), ("val", 97, 121), ("test", 1, 25)):
        (rows / f"{name}.csv").write_text("".join([lines[0], *lines[start:end]]))
    options = [*tiny, *STEPS, *(f"data.{name}={rows / name}.csv" for name in ("train", "val", "test"))]
    for i, more in enumerate(([], AVERAGING)):
        assert longseq("fit", *options, *more, f"run_dir=whole{i}") == 0
    places = [
        ("on_train_batch_end", 3, []),  # In the first epoch, with a gradient in hand.
        ("on_validation_batch_end", 2, []),
        ("on_train_batch_end", 12, ["data.num_workers=1"]),  # The epoch's last.
        ("on_validation_batch_start", 10, []),
        ("on_validation_batch_end", 4, AVERAGING),
        ("on_train_end", 1, []),  # All that is left is the test.
    ]
    for i, (hook, times, more) in enumerate(places):
        run, whole = f"run{i}", f"whole{int(more == AVERAGING)}"
        assert longseq("fit", *options, *more, f"run_dir={run}", signal_at(hook, times)) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if hook == "on_validation_batch_start":
            assert longseq("fit", *options, *more, f"run_dir={run}", "resume=auto", signal_at(hook, 2)) == 130
        assert not (tmp_path / run / "metrics.json").exists()
        assert longseq("fit", *options, *more, f"run_dir={run}", "resume=auto") == 0
        assert metrics(tmp_path / run)["training"]["steps"] == 18
        assert metrics(tmp_path / run)["test"] == metrics(tmp_path / whole)["test"], places[i]
        assert ends_with_the_weights_of(tmp_path / run, tmp_path / whole), places[i]


def test_all_processes_of_a_run_end_at_the_same_step(tmp_path: Path) -> None:
    asked: list[bool] = []

    def any_of(own: bool, *, all: bool) -> bool:
        asked.append(own)
        return not all  # Another process has had a Ctrl-C.

    strategy = SimpleNamespace(reduce_boolean_decision=any_of)
    saved: list[Path] = []
    trainer: Any = SimpleNamespace(
        world_size=2, strategy=strategy, is_last_batch=False, accumulate_grad_batches=2, save_checkpoint=saved.append
    )
    module: Any = None
    keeper = RunCheckpoints(str(tmp_path), "val/mcc", "max")
    keeper.on_train_batch_end(trainer, module, None, None, 0)
    assert not asked and not saved
    with pytest.raises(KeyboardInterrupt):
        keeper.on_train_batch_end(trainer, module, None, None, 1)
    assert asked == [False] and saved == [tmp_path / "last.ckpt"]


def test_a_run_that_has_decided_to_stop_does_so_in_spite_of_ctrl_c(tmp_path: Path) -> None:
    """No checkpoint holds the decision: a run that was resumed would train on."""
    trainer: Any = SimpleNamespace(world_size=1, should_stop=True, save_checkpoint=lambda path: None)
    module: Any = None
    keeper = RunCheckpoints(str(tmp_path), "val/mcc", "max")
    keeper._note_interrupt(signal.SIGINT, None)
    keeper.on_train_epoch_end(trainer, module)
    keeper.on_train_end(trainer, module)
    trainer.should_stop = False
    with pytest.raises(KeyboardInterrupt):
        keeper.on_train_epoch_end(trainer, module)


@pytest.mark.usefixtures("_signals")
def test_a_new_run_in_the_folder_of_an_old_one_is_a_run_of_its_own(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [*tiny, f"data.train={dna_csv}", "report=false", "baselines=false", "run_dir=the run"]
    assert longseq("fit", *options) == 0
    assert longseq("fit", *options, "seed=2", signal_at("on_fit_start", 1)) == 130
    assert "no checkpoint was written" in "".join(capfd.readouterr())
    assert longseq("fit", *options, "seed=2", signal_at("on_train_batch_end", 8)) == 130
    assert "longseq fit 'resume=\"the run\"'" in "".join(capfd.readouterr())
    assert longseq("fit", *options, "seed=2", "resume=auto") == 0
    assert "starting a new one" not in "".join(capfd.readouterr())
    assert metrics(tmp_path / "the run")["seed"] == 2


@pytest.mark.usefixtures("_signals")
def test_a_second_ctrl_c_ends_at_once_with_the_checkpoint_as_it_was(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path
) -> None:
    at = signal_at("on_train_batch_end", 8, presses=2)
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "run_dir=run", at) == 130
    assert last_checkpoint(tmp_path / "run")["global_step"] == 6


@pytest.mark.usefixtures("_signals")
def test_ctrl_c_before_the_first_step_says_that_nothing_was_written(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "run_dir=run", signal_at("on_fit_start", 1)) == 130
    output = "".join(capfd.readouterr())
    assert "no checkpoint was written" in output
    assert "go on with" not in output
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.usefixtures("_signals")
def test_who_ignores_ctrl_c_goes_on_ignoring_it(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        at = signal_at("on_train_batch_end", 2)
        assert longseq("fit", *tiny, f"data.train={dna_csv}", "run_dir=run", "report=false", "baselines=false", at) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_signals")
def test_ctrl_c_ends_a_sweep(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    at = signal_at("on_train_batch_end", 2)
    assert longseq("fit", "-m", *tiny, f"data.train={dna_csv}", "seed=1,2", "run_dir=run${seed}", at) == 130
    assert (tmp_path / "run1").is_dir()
    assert not (tmp_path / "run2").exists()


def test_a_run_that_was_moved_goes_on_where_it_is(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "run_dir=run", "report=false", "baselines=false") == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert longseq("fit", "resume=moved", "trainer.max_epochs=3") == 0
    assert metrics(tmp_path / "moved")["training"]["epochs"] == 3
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_data_leaves_no_folder(longseq: Command, tiny: list[str], tmp_path: Path) -> None:
    assert longseq("fit", *tiny, "data.train=missing.csv", "run_dir=run") == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_that_no_config_can_name_is_refused(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", r"run_dir=a\${b}c") == 2
    assert "run_dir=a${b}c" in capsys.readouterr().err
    assert not (tmp_path / "a${b}c").exists()


def test_resume_by_path_goes_on_with_more_epochs(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "run_dir=run", "report=false", "baselines=false") == 0
    assert longseq("fit", "resume=run", "trainer.max_epochs=4") == 0
    assert metrics(tmp_path / "run")["training"]["epochs"] == 4


def test_resuming_another_backbone_is_refused(
    longseq: Command, tiny: list[str], dna_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "run_dir=run", "report=false", "baselines=false") == 0
    assert longseq("fit", "backbone=gru", "resume=run") == 2
    assert "backbone=hyena" in capsys.readouterr().err
    assert longseq("fit", "resume=nowhere") == 2
    assert "last.ckpt" in capsys.readouterr().err


def test_multirun_makes_one_run_per_seed(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    args = [*tiny, f"data.train={dna_csv}", "report=false", "baselines=false", "trainer.max_epochs=1"]
    assert longseq("fit", "-m", *args, "seed=1,2") == 0
    found = [metrics(path.parent)["seed"] for path in sorted(tmp_path.glob("runs/dna/hyena/*/metrics.json"))]
    assert sorted(found) == [1, 2]


def test_early_stopping_and_ema_by_config(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    callbacks = ["callbacks=[default,early_stopping,ema]", "callbacks.early_stopping.patience=1", "callbacks.ema.decay=0.9"]
    args = [f"data.train={dna_csv}", "run_dir=run", "trainer.max_epochs=50", "report=false", "baselines=false"]
    assert longseq("fit", *tiny, *args, *callbacks) == 0
    assert metrics(tmp_path / "run")["training"]["epochs"] < 50
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=False)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert any(not torch.equal(averaged[key], current[key]) for key in averaged)
    saved = load_model(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(saved[key], averaged[f"model.{key}"]) for key in saved)


def test_nan_loss_stops_and_names_the_step(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [f"data.train={dna_csv}", "run_dir=run", "optimizer.lr=1e30", "schedule.warmup=7", "schedule=constant"]
    assert longseq("fit", *tiny, *args, "trainer.gradient_clip_val=null") == 2
    assert "NaN or infinite at step" in capsys.readouterr().err
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if last.exists():
        state = torch.load(last, weights_only=False)["state_dict"]
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert not (tmp_path / "run" / "model").exists()


def test_gradient_checkpointing_gives_the_same_run(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    for name, extra in (("a", []), ("b", ["+backbone.gradient_checkpointing=true"])):
        args = [*tiny, f"data.train={dna_csv}", f"run_dir={name}", "report=false", "baselines=false", *extra]
        assert longseq("fit", *args) == 0
    a, b = (metrics(tmp_path / name)["test"]["loss"] for name in "ab")
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sequence,class\nACGT,1\n", "label"),
        ("sequence,label\n", "empty|no "),
        ("sequence,label\nMKVLAAGIVGLLLAQWERTY,1\nACGT,0\n", "protein|not DNA|amino"),
        ("sequence,label\n" + "ACGTACGT,1\n" * 40, "all 32 labels"),
    ],
)
def test_bad_files_get_an_answer(
    longseq: Command, tmp_path: Path, content: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    (tmp_path / "bad.csv").write_text(content)
    assert longseq("fit", "trainer=cpu", "data.train=bad.csv") == 2
    message = capsys.readouterr().err
    assert "bad.csv" in message
    assert re.search(expected, message)
    assert "Traceback" not in message


def test_evaluate_repeats_the_test_and_takes_other_files(
    longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert longseq("fit", *tiny, f"data.train={dna_csv}", "run_dir=run", "report=false") == 0
    assert longseq("evaluate", "run=run", "trainer=cpu") == 0
    first = sorted((tmp_path / "run" / "evaluations").glob("*.json"))[-1]
    assert json.loads(first.read_text())["test"]["mcc"] == pytest.approx(metrics(tmp_path / "run")["test"]["mcc"], abs=1e-6)
    own, again = pd.read_csv(tmp_path / "run" / "predictions.csv"), pd.read_csv(first.with_suffix(".csv"))
    pd.testing.assert_frame_equal(again, own, atol=1e-5)
    capsys.readouterr()
    assert longseq("evaluate", "run=run", "trainer=cpu", f"data.test={dna_csv}") == 0
    # What it was tested on is said as before training.
    assert "leaks in test" in capsys.readouterr().out
    assert longseq("evaluate", "run=run", "trainer=cpu", "data.tset=x.csv") == 2
    assert longseq("evaluate", "run=nowhere") == 2


@pytest.mark.parametrize("task", ["lm", "mlm"])
def test_language_models_beat_nothing_but_run(longseq: Command, tiny: list[str], tmp_path: Path, task: str) -> None:
    fasta = tmp_path / "genome.fa"
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(4, (12_000,), generator=generator)
    fasta.write_text(">one\n" + "".join("ACGT"[i] for i in letters) + "\n")
    extra = ["+backbone.bidirectional=true"] if task == "mlm" else []
    args = [f"task={task}", f"data.train={fasta}", "data.window=256", "run_dir=run", "optimizer.lr=2e-2", *extra]
    assert longseq("fit", *tiny, *args, "trainer.max_epochs=25", "report=false") == 0
    found = metrics(tmp_path / "run")
    # Random bases hold two bits each; nothing can do better, and a model that leaks its targets would.
    assert 1.9 < found["test"]["bits_per_base"] < 2.3


def test_a_masked_model_on_a_causal_backbone_is_refused(
    longseq: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "genome.fa").write_text(">one\n" + "ACGTTGCA" * 800 + "\n")
    assert longseq("fit", "trainer=cpu", "task=mlm", "data.train=genome.fa", "data.window=128") == 2
    assert "bidirectional" in capsys.readouterr().err


def test_two_processes_count_every_row_once(longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    devices = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    options = [option for option in tiny if option != "trainer=cpu"]
    # A process of its own: the launcher starts the second one with this one's command.
    process = start("fit", *options, *devices, f"data.train={dna_csv}", "run_dir=run", "report=false", "baselines=false")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    found = metrics(tmp_path / "run")
    assert found["environment"]["devices"] == 2
    assert len(pd.read_csv(tmp_path / "run" / "predictions.csv")) == found["data"]["splits"]["test"]["rows"]
    assert longseq("evaluate", "run=run", "trainer=cpu", "baselines=false") == 0
    alone = json.loads(next((tmp_path / "run" / "evaluations").glob("*.json")).read_text())["test"]
    for name in ("accuracy", "mcc", "auroc", "loss"):
        assert alone[name] == pytest.approx(found["test"][name], abs=1e-5), name


@pytest.mark.parametrize(("task", "column"), [("regression", "y"), ("multilabel", "[a, b]")])
def test_other_targets(task: str, column: str, longseq: Command, tiny: list[str], dna_csv: Path, tmp_path: Path) -> None:
    lines = dna_csv.read_text().splitlines()[1:]
    rows = [f"{line.split(',')[0]},{line.count('G') / 60},{i % 2},{i // 2 % 2}" for i, line in enumerate(lines)]
    (tmp_path / "t.csv").write_text("\n".join(["sequence,y,a,b", *rows]) + "\n")
    args = [f"task={task}", "data.train=t.csv", f"data.label_column={column}", "run_dir=run"]
    assert longseq("fit", *tiny, *args) == 0
    found = metrics(tmp_path / "run")
    assert len(found["baselines"]) == 2
    assert set(found["test"]) >= ({"mse", "mae", "r2", "pearson"} if task == "regression" else {"auroc", "auprc", "f1"})


def test_a_backbone_that_cannot_be_built_is_answered(
    longseq: Command, dna_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["trainer=cpu", f"data.train={dna_csv}", "backbone=transformer", "backbone.d_model=30", "backbone.n_heads=4"]
    assert longseq("fit", *args) == 2
    message = capsys.readouterr().err
    assert "n_heads" in message
    assert "Traceback" not in message
