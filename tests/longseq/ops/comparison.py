"""What tests of several operators share: outputs with every gradient, their comparison, and rows with padding and documents."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def run_with_gradients(
    operator: Callable[..., tuple[Tensor, Tensor]], inputs: dict[str, Any], seed: int = 7, **options: Any
) -> dict[str, Tensor]:
    """Outputs, final state, and the gradients of a random projection of both of them."""
    inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    y, state = operator(**inputs, **options)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (y, state)]
    # The last term keeps a graph where no position is real and nothing depends on anything.
    loss = (y * weights[0]).sum() + (state * weights[1]).sum() + sum(0.0 * t.nan_to_num().sum() for t in inputs.values())
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y.detach(), "state": state.detach()} | {f"d{k}": v for k, v in zip(inputs, gradients, strict=True)}


def assert_all_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Within `tolerance` of each tensor's own largest element."""
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        assert torch.isfinite(found[name]).all(), name
        scale = want.abs().max().item() + 1e-30 if want.numel() else 1.0
        error = (found[name].double() - want.double()).abs().max().item() / scale if want.numel() else 0.0
        assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"


def random_rows(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """A mask with padding on both sides and holes, and segment ids that also change under the padding; two rows."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, length, generator=generator) > 0.2
    mask[0, : length // 3] = False
    mask[1, length - length // 4 :] = False
    segments = (torch.rand(2, length, generator=generator) > 0.9).cumsum(1)
    segments[1, length - length // 4 :] = -1
    return mask, segments


def row_options(mode: str, length: int, seed: int) -> dict[str, Any]:
    """Options of an operator: "plain", "mask", "segments", "reverse", "everything", or "nothing real"."""
    mask, segments = random_rows(length, seed)
    return {
        "plain": {},
        "mask": {"mask_BL": mask},
        "segments": {"segment_ids_BL": segments},
        "reverse": {"reverse": True},
        "everything": {"mask_BL": mask, "segment_ids_BL": segments, "reverse": True},
        "nothing real": {"mask_BL": torch.zeros_like(mask)},
    }[mode]


ROW_MODES = ("plain", "mask", "segments", "reverse", "everything", "nothing real")
