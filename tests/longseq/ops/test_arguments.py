"""Arguments that every operator answers alike: tensors on another device, nothing to compute on, autocast, the meta device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longseq.ops.causal_conv1d import causal_conv1d
from longseq.ops.diagonal_ssm import diagonal_ssm
from longseq.ops.dplr_ssm import dplr_ssm
from longseq.ops.fft_conv import fft_conv
from longseq.ops.selective_scan import selective_scan
from longseq.ops.ssd import ssd
from longseq.pipelines.bench_cases import make_case
from longseq.pipelines.bench_sizes import everywhere

SEQUENTIAL = ["selective_scan", "ssd", "diagonal_ssm", "dplr_ssm", "fft_conv", "causal_conv1d", "window_attention"]


def call(operator: str) -> tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor]]:
    (size,) = everywhere(20, 16)[operator]
    case = make_case(operator, size, "cpu", torch.float32)
    return case.call("auto"), [leaf.detach() for leaf in case.leaves]


@pytest.mark.parametrize("operator", SEQUENTIAL)
def test_tensors_on_two_devices_are_refused(operator: str) -> None:
    run, (first, second, *others) = call(operator)
    with pytest.raises(ValueError, match=f"{operator}: all tensors must be on cpu, found one on meta"):
        run(first, second.to("meta"), *others)


# The case of window attention has global tokens on the CPU.
@pytest.mark.parametrize("operator", SEQUENTIAL[:-1])
def test_shapes_are_found_on_the_meta_device(operator: str) -> None:
    run, leaves = call(operator)
    expected, found = run(*leaves), run(*(leaf.to("meta") for leaf in leaves))
    first, shape = (outputs if isinstance(outputs, Tensor) else outputs[0] for outputs in (expected, found))
    assert shape.device.type == "meta" and (shape.shape, shape.dtype) == (first.shape, first.dtype)


@pytest.mark.parametrize("operator", SEQUENTIAL)
def test_autocast_takes_nothing_away(operator: str) -> None:
    run, leaves = call(operator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(*leaves)
    torch.testing.assert_close(found, run(*leaves), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 2])
def test_no_rows_and_no_channels_are_named(axis: int) -> None:
    x, row = torch.ones(2, 5, 4).narrow(axis, 0, 0), torch.ones(4 if axis == 0 else 0)
    width = len(row)
    pairs = torch.ones(width, 3)
    calls: dict[str, Callable[[], object]] = {
        "selective_scan": lambda: selective_scan(x, x, pairs, torch.ones(*x.shape[:2], 3), torch.ones(*x.shape[:2], 3)),
        "causal_conv1d": lambda: causal_conv1d(x, torch.ones(width, 4)),
        "fft_conv": lambda: fft_conv(x, torch.ones(width, 5)),
        "diagonal_ssm": lambda: diagonal_ssm(x, row, -pairs, pairs, torch.ones(width, 3, 2)),
        "dplr_ssm": lambda: dplr_ssm(x, row, -pairs, pairs, *[torch.ones(width, 3, 2)] * 3),
        "ssd": lambda: ssd(x[..., None], x, -row, *[torch.ones(*x.shape[:2], 1, 3)] * 2),
    }
    for name, run in calls.items():
        with pytest.raises(ValueError, match="expected at least one row and one channel"):
            run()
            pytest.fail(name)


def test_whole_numbers_are_no_state() -> None:
    x = torch.ones(2, 5, 4, 1)
    with pytest.raises(TypeError, match="initial_state_BHPN: expected a floating dtype"):
        maps = [torch.ones(2, 5, 1, 3)] * 2
        ssd(x, x[..., 0], -torch.ones(4), *maps, initial_state_BHPN=torch.ones(2, 4, 1, 3, dtype=torch.int32))
