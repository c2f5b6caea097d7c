"""Kernels on a GPU of a family that nothing was measured on: sizes that fit anywhere, the same results."""

import importlib

import pytest
import torch

from tests.longseq.ops import kernel_checks as checks


@pytest.mark.gpu
@pytest.mark.parametrize("operator", ["selective_scan", "ssd", "diagonal_ssm", "fft_conv", "window_attention", "causal_conv1d"])
def test_what_is_run_where_nothing_was_measured(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"longseq.ops.{operator}.triton")
    from triton.runtime import driver

    from longseq.ops.gpu import family
    from longseq.ops.window_attention.triton_choices import tiles

    # It keeps what it finds, and compiles for that.
    driver.active.get_current_target()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: (99, 0))
    for kept in (family, tiles):
        kept.cache_clear()
    try:
        with torch.cuda.device(0):
            checks.assert_small({"outputs and gradients": module.self_check()}, 1e-2)
    finally:
        for kept in (family, tiles):
            kept.cache_clear()
