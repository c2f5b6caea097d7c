"""The command line answers mistakes at once, with the nearest valid words."""

import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest

from longseq.errors import ConfigError
from longseq.pipelines import cli
from longseq.pipelines.cli import check_overrides, dispatch, groups, verbs


def cpu_seconds() -> float:
    """Of all finished child processes; unlike the clock's time it does not depend on what else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*args: str) -> tuple[int, str, float]:
    started = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "longseq.pipelines.cli", *args], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr, cpu_seconds() - started


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["fit", "domain=dna", "backbon=hyena"], "backbone"),
        (["fit", "backbone=hyeena"], "hyena"),
        (["fit", "backbone.d_modl=64"], "backbone.d_model"),
        (["fit", "lr=1e-3"], "optimizer.lr"),
        (["fit", "trainer.max_epoch=3"], "trainer.max_epochs"),
        (["fit", "domain=dan"], "dna"),
        (["fti"], "fit"),
    ],
)
def test_mistakes_get_a_suggestion_in_under_a_second(arguments: list[str], suggestion: str) -> None:
    code, output, seconds = run(*arguments)
    assert code == 2
    assert suggestion in output
    assert "Traceback" not in output
    assert seconds < 1.0


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["--version"]])
def test_help_is_fast(arguments: list[str]) -> None:
    code, _, seconds = run(*arguments)
    assert code == 0
    assert seconds < 0.5


def test_help_names_every_verb_and_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(verb in output for verb in verbs())
    assert dispatch(["fit", "--help"]) == 0
    output = capsys.readouterr().out
    assert all(choice in output for choice in groups()["backbone"])
    assert "experiment" in output


def test_valid_overrides_pass() -> None:
    check_overrides("fit", ["domain=dna", "backbone=hyena", "seed=1,2,3", "+trainer.new=1", "logger=[csv]", "optimizer.lr=0.1"])


def test_timms_models_are_named_behind_a_colon() -> None:
    found = check_overrides("fit", ["domain=vision", "backbone=timm:deit_tiny_patch16_224"])
    assert found == ["domain=vision", "backbone=timm", "backbone.model=deit_tiny_patch16_224"]


def test_rolling_origins_have_names_of_their_own() -> None:
    found = check_overrides("evaluate", ["run=a", "backtest.windows=8", "backtest.step=24"])
    assert [override.lstrip("+") for override in found] == ["run=a", "data.backtest_windows=8", "data.backtest_step=24"]


def test_words_that_are_no_overrides_are_refused() -> None:
    with pytest.raises(ConfigError, match="key=value"):
        check_overrides("fit", ["hyena"])


def test_config_is_printed() -> None:
    code, output, _ = run("fit", "--cfg", "job", "optimizer.lr=0.5")
    assert code == 0
    assert "lr: 0.5" in output


def test_importing_the_package_is_light() -> None:
    code = "import longseq, sys; print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert done.stdout.split() == ["False", "False"]


def test_the_sign_of_a_sweep_may_stand_between_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = []
    verb = types.SimpleNamespace(run=lambda cfg: seeds.append(cfg.seed))
    monkeypatch.setattr(cli, "load_verb", lambda name: verb)
    assert dispatch(["fit", "trainer=cpu", "-m", "seed=1,2", "backbone=gru"]) == 0
    assert seeds == [1, 2]
