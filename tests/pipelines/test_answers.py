"""Commands that cannot be obeyed are answered in words, without a traceback; regular expressions need no second quotes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from longseq.pipelines.cli import quoted_pattern

Command = Callable[..., int]
FAST = [
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "baselines=false",
    "report=false",
    "backbone.d_model=16",
    "backbone.n_layers=1",
    "run_dir=run",
]
SERIES = ["domain=timeseries", "data.demo_series=1", "data.demo_days=40", "data.lookback=48", "data.horizon=12"]


@pytest.mark.parametrize(("verb", "option"), [("evaluate", "run"), ("finetune", "pretrained"), ("embed", "pretrained")])
def test_an_option_that_must_be_given(verb: str, option: str, longseq: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert longseq(verb) == 2
    error = capsys.readouterr().err
    assert option in error and "Traceback" not in error


def test_a_model_that_does_not_take_the_changed_data(longseq: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert longseq("fit", *FAST, *SERIES) == 0
    assert longseq("evaluate", "run=run", "data.lookback=72", "trainer=cpu", "baselines=false") == 2
    assert "run=run does not fit data.lookback=72: a window must be (batch, 48 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (r"data.test_pattern=_[0-4]\.wav$", r"data.test_pattern='_[0-4]\.wav$'"),
        (r"data.path_pattern='(?P<label>\d)_'", r"data.path_pattern='(?P<label>\d)_'"),
        ("data.path_pattern=it's", r"data.path_pattern='it\'s'"),
        ("data.label_pattern=null", "data.label_pattern=null"),
        ("data.train=[a,b]", "data.train=[a,b]"),
    ],
)
def test_regular_expressions_are_taken_as_they_are(override: str, expected: str) -> None:
    assert quoted_pattern(override) == expected


def test_a_regular_expression_on_the_command_line(longseq: Command, tmp_path: Path) -> None:
    bases = "".join(f">r{i}|{'ab'[i % 2]}|x\n{'ACGTTGCATC' * 3}\n" for i in range(40))
    (tmp_path / "reads.fa").write_text(bases)
    pattern = r"data.label_pattern=\|(?P<label>\w+)\|"
    assert longseq("fit", *FAST, "experiment=null", "data.train=reads.fa", pattern) == 0
