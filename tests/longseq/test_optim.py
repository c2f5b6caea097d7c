"""Parameter groups and schedules."""

import pytest
import torch
from torch import nn

from longseq.layers.marks import mark
from longseq.optim import SCHEDULES, parameter_groups, parameter_options


def test_marks_cap_the_rate_and_override_the_decay() -> None:
    model = nn.Linear(3, 3)
    model.special = mark(nn.Parameter(torch.ones(2, 2)), weight_decay=0.0, max_lr=1e-3)
    fast = parameter_options(model, lr=1e-2, weight_decay=0.1)
    assert fast["special"] == {"lr": 1e-3, "weight_decay": 0.0}
    assert fast["weight"] == {"lr": 1e-2, "weight_decay": 0.1}
    assert fast["bias"]["weight_decay"] == 0.0
    # A run that is slower than the cap keeps its own rate.
    assert parameter_options(model, lr=1e-4, weight_decay=0.1)["special"]["lr"] == 1e-4
    groups = parameter_groups(model.named_parameters(), fast)
    assert [(g["lr"], g["weight_decay"], g["names"]) for g in groups] == [
        (1e-2, 0.1, ["weight"]),
        (1e-2, 0.0, ["bias"]),
        (1e-3, 0.0, ["special"]),
    ]


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Linear(3, 3)
    model.weight.requires_grad = False
    options = parameter_options(model, lr=1.0, weight_decay=0.0)
    assert [g["names"] for g in parameter_groups(model.named_parameters(), options)] == [["bias"]]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_warm_up_and_end_where_they_should(name: str) -> None:
    factor = SCHEDULES[name](100, 10, 0.1)
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == pytest.approx(1.0)
    assert values[:10] == sorted(values[:10])
    assert values[100] == pytest.approx(1.0 if name == "constant" else 0.1)
