"""The stack makes each residual sum together with the norm after it: the same numbers as one after the other."""

import pytest
import torch
from torch import Tensor, nn

from longseq.backbone import Block, Stack
from longseq.layers.norms import ScalarNorm
from longseq.registry import create_backbone

CASES = [
    {"name": "mamba", "n_layers": 3},
    {"name": "hyena", "max_length": 32, "norm": "rms"},
    {"name": "longformer", "prenorm": False, "n_heads": 2},
    {"name": "mamba", "final_norm": False, "mlp_ratio": 2.0},
    {"name": "s4d", "norm": "scalar", "norm_eps": 1e-5},
    {"name": "mamba2", "gradient_checkpointing": True},
]


def one_by_one(stack: Stack, x_BLD: Tensor) -> Tensor:
    """Every sum and every norm by itself, in PyTorch's own modules."""

    def norm(module: nn.Module, x: Tensor) -> Tensor:
        if isinstance(module, nn.Identity):
            return x
        weight, bias = module.get_parameter("weight"), dict(module.named_parameters()).get("bias")
        if isinstance(module, ScalarNorm) and bias is not None:
            variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
            return (x - mean + bias) * weight / (variance + 1e-5).sqrt()
        if bias is None:
            return nn.functional.rms_norm(x, x.shape[-1:], weight, 1e-5)
        return nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    for block in stack.layers():
        branches = [(block.norm1, block.mixer), (block.norm2, block.mlp)]
        for module, branch in ((m, b) for m, b in branches if m is not None and b is not None):
            x_BLD = x_BLD + branch(norm(module, x_BLD)) if block.prenorm else norm(module, x_BLD + branch(x_BLD))
    return norm(stack.final_norm, x_BLD)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_stack_is_its_sums_and_norms(options: dict) -> None:  # type: ignore[type-arg]
    torch.manual_seed(0)
    stack = create_backbone(d_model=16, **{"n_layers": 2, **options}).double()
    assert isinstance(stack, Stack)
    found = []
    for run in (stack, lambda x: one_by_one(stack, x)):
        x = torch.randn(2, 20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = run(x)
        found.append([y, *torch.autograd.grad(y.pow(3).sum(), [x, *stack.parameters()], allow_unused=True)])
    for ours, expected in zip(*found, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


def test_a_block_alone_gives_its_whole_sum() -> None:
    stack = create_backbone("mamba", d_model=8, n_layers=1, mlp_ratio=2.0)
    assert isinstance(stack, Stack)
    block = stack.layers()[0]
    x_BLD = torch.randn(1, 6, 8)
    stream_BLD, update_BLD = block((x_BLD, None))
    assert update_BLD is not None
    torch.testing.assert_close(block(x_BLD), stream_BLD + update_BLD)


def test_hooks_of_blocks_are_called() -> None:
    stack = create_backbone("mamba", d_model=8, n_layers=2)
    seen: list[nn.Module] = []
    for module in stack.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    stack(torch.randn(1, 4, 8))
    assert len(seen) == 2
