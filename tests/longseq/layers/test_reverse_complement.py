"""Exact reverse-complement equivariance, and the published wiring of Caduceus transcribed from its description."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longseq.backbone import Backbone, Stack
from longseq.backbones.mamba import MambaMixer
from longseq.layers.bidirectional import Bidirectional
from longseq.layers.reverse_complement import ReverseComplement
from longseq.layers.row_order import RowOrder
from longseq.layers.selective_ssm import SelectiveSSM
from longseq.registry import create_backbone


def make(**options: Any) -> Backbone:
    model = create_backbone("caduceus", d_model=12, n_layers=3, d_state=4, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def flip_both(x: Tensor) -> Tensor:
    return x.flip(1, 2)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def published_forward(model: ReverseComplement, x: Tensor) -> Tensor:
    """Caduceus-PS as its fused branch writes it: hidden and residual apart, halves of the channels, explicit flips."""
    stack, half = model.inner, x.shape[-1] // 2
    assert isinstance(stack, Stack)
    hidden, residual = x, torch.zeros_like(x)
    for block in stack.blocks:
        mixer, weight = block.get_submodule("mixer"), block.get_parameter("norm1.weight")
        low, high = residual[..., :half] + hidden[..., :half], residual[..., half:] + hidden[..., half:]
        residual = torch.cat([high, low], dim=-1)
        hidden_low, hidden_high = rms(high, weight), flip_both(rms(flip_both(low), weight))
        hidden = torch.cat([mixer(hidden_low), flip_both(mixer(flip_both(hidden_high)))], dim=-1)
    total, weight = residual + hidden, stack.get_parameter("final_norm.weight")
    return torch.cat([rms(total[..., :half], weight), flip_both(rms(flip_both(total[..., half:]), weight))], dim=-1)


def published_mixer(mixer: nn.Module, x: Tensor) -> Tensor:
    """BiMamba as two whole layers with tied projections."""
    forward_ssm, reverse_ssm = mixer.get_submodule("forward_ssm"), mixer.get_submodule("reverse_ssm")
    in_proj, out_proj = mixer.get_submodule("in_proj"), mixer.get_submodule("out_proj")

    def one(ssm: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(ssm, SelectiveSSM)
        return out_proj(ssm.scan(*in_proj(x).chunk(2, dim=-1))[0])

    return one(forward_ssm, x) + one(reverse_ssm, x.flip(1)).flip(1)


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_equals_the_published_wiring(length: int) -> None:
    model = make()
    assert isinstance(model, ReverseComplement)
    x = torch.randn(2, length, 12, dtype=torch.float64)
    # The stack's norms compute in float32.
    torch.testing.assert_close(model(x), published_forward(model, x), rtol=1e-5, atol=1e-6)
    mixer = model.get_submodule("inner.blocks.0.mixer")
    torch.testing.assert_close(mixer(x[..., :6]), published_mixer(mixer, x[..., :6]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        {"name": "caduceus"},
        {"name": "mamba", "reverse_complement": True},
        {"name": "mamba", "reverse_complement": True, "mlp_ratio": 2.0, "prenorm": False, "norm": "layer"},
        {"name": "mamba", "reverse_complement": True, "bidirectional": True, "merge": "hydra", "gradient_checkpointing": True},
        {"name": "transformer", "reverse_complement": True, "n_heads": 2},
    ],
)
@pytest.mark.parametrize("packing", ["plain", "right", "left", "packed"])
def test_commutes_with_the_reverse_complement(build: dict[str, Any], packing: str) -> None:
    model = create_backbone(**build, d_model=8, n_layers=3).double().eval()
    x = torch.randn(3, 15, 8, dtype=torch.float64)
    place = torch.arange(15)
    lengths = torch.tensor([[15], [7], [1]])
    mask = {"right": place < lengths, "left": place >= 15 - lengths, "packed": place < lengths}.get(packing)
    ids = (place // 6).expand(3, 15) if packing == "packed" else None
    order = RowOrder(mask, ids)
    reverse_complement = order.reverse(x).flip(-1)
    expected = order.reverse(model(x, mask, ids)).flip(-1)
    torch.testing.assert_close(model(reverse_complement, mask, ids), expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(model(x, mask, ids), expected)


@pytest.mark.parametrize("rcps", [True, False])
def test_caduceus_does_not_read_padding(rcps: bool) -> None:
    model, x = make(rcps=rcps), torch.randn(2, 11, 12, dtype=torch.float64)
    expected = model(x)
    pad = torch.full((2, 5, 12), float("nan"), dtype=torch.float64)
    for parts, real in (([pad, x], slice(5, 16)), ([x, pad], slice(0, 11))):
        mask = torch.zeros(2, 16, dtype=torch.bool)
        mask[:, real] = True
        y = model(torch.cat(parts, dim=1), mask)
        torch.testing.assert_close(y[:, real], expected)
        assert torch.equal(y[~mask], torch.zeros_like(y[~mask]))


def test_works_around_a_network_without_blocks() -> None:
    inner = create_backbone("mamba", d_model=6, n_layers=1).double()

    class Opaque(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.d_model, self.inner = 6, inner

        def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
            return self.inner(x_BLD, mask_BL, segment_ids_BL)

    x = torch.randn(2, 9, 12, dtype=torch.float64)
    y = ReverseComplement(Opaque())(x)
    torch.testing.assert_close(y, torch.cat([inner(x[..., :6]), flip_both(inner(flip_both(x[..., 6:])))], dim=-1))


def test_export_with_any_batch_and_length() -> None:
    model = create_backbone("caduceus", d_model=8, n_layers=1).eval()
    both = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    arguments = (torch.randn(2, 20, 8), torch.ones(2, 20, dtype=torch.bool))
    program = torch.export.export(model, arguments, dynamic_shapes=(both, both))
    x, mask = torch.randn(3, 37, 8), torch.arange(37) < torch.tensor([[37], [20], [3]])
    torch.testing.assert_close(program.module()(x, mask), model(x, mask), rtol=1e-4, atol=1e-4)


def test_errors() -> None:
    with pytest.raises(ValueError, match="even d_model"):
        create_backbone("caduceus", d_model=7)
    with pytest.raises(ValueError, match="even d_model"):
        create_backbone("mamba", d_model=7, reverse_complement=True)
    with pytest.raises(ValueError, match="strand_width"):
        ReverseComplement(Bidirectional(MambaMixer(8), MambaMixer(8), 8))
    with pytest.raises(ValueError, match="ReverseComplement is not causal"):
        make().init_state(1)
    with pytest.raises(ValueError, match="d_model=12"):
        make()(torch.randn(1, 4, 6, dtype=torch.float64))
