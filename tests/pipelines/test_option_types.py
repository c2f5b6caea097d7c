"""Options of the wrong kind are told by their names, before anything is read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest

from longseq.errors import ConfigError
from longseq.pipelines.option_types import check_types, fits


def example(
    rows: int,
    share: float = 0.1,
    name: str | None = None,
    deep: bool = False,
    speeds: Sequence[float] = (),
    columns: str | Sequence[str] = "a",
    kind: Literal["x", "y"] = "x",
    source: str | Mapping[str, str] | None = None,
    other: Any = None,
) -> None: ...


@pytest.mark.parametrize(
    "options",
    [
        {"rows": 3, "share": 1, "name": None, "deep": True, "speeds": [0.9, 1], "columns": ["a", "b"], "kind": "y"},
        {"rows": 0, "name": 7, "columns": "a", "source": {"a": "b"}, "other": object(), "unknown": 1},
    ],
)
def test_what_fits(options: dict[str, Any]) -> None:
    check_types("data", example, options)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("rows", "many", "data.rows must be a whole number, found 'many'"),
        ("rows", 2.5, "data.rows must be a whole number, found 2.5"),
        ("rows", True, "data.rows must be a whole number, found true"),
        ("share", "half", "data.share must be a number"),
        ("deep", 1, "data.deep must be true or false"),
        ("name", [1], "data.name must be text or null"),
        ("speeds", 1.1, "data.speeds must be a list of numbers"),
        ("speeds", ["fast"], "data.speeds must be a list of numbers"),
        ("kind", "z", "data.kind must be one of x, y"),
        ("source", 3.5 + 2j, "data.source must be text or a mapping such as {a: b} or null"),
    ],
)
def test_what_does_not_fit(option: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_types("data", example, {option: value})
    assert str(caught.value).startswith(message)


def test_hints_that_are_not_of_plain_values_take_anything() -> None:
    assert fits("x", Callable[..., int]) and fits(3, object)


@pytest.mark.parametrize(
    "option", ["data.batch_size=many", "trainer.max_epochs=ten", "data.batch_size=0", "data.num_workers=-1"]
)
def test_the_command_answers(option: str, longseq: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert longseq("fit", "trainer=cpu", option) == 2
    error = capsys.readouterr().err
    assert option.split("=")[0] in error and "must be" in error
