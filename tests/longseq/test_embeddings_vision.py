"""Pixels, patches and tubelets: their cells, positions, class token, hidden cells and masks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from longseq.embeddings_vision import (
    ClassTokenHead,
    PatchEmbedding,
    PixelEmbedding,
    TubeletEmbedding,
    interpolate_space,
    interpolate_time,
    sincos_positions,
)


def test_a_patch_is_a_strided_convolution() -> None:
    module = PatchEmbedding(6, size=(8, 12), patch=4, n_channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], positions="none")
    x = torch.rand(2, 3, 8, 12)
    out, mask = module(x)
    z = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    expected = (
        F.conv2d(z, module.projection.weight.view(6, 3, 4, 4), module.projection.bias, stride=4).flatten(2).transpose(1, 2)
    )
    assert mask is None
    torch.testing.assert_close(out, expected)


def test_a_tubelet_is_a_convolution_over_time_too() -> None:
    module = TubeletEmbedding(5, size=(4, 4), frames=6, patch=2, tube=3, n_channels=2, positions="none")
    x = torch.rand(2, 6, 2, 4, 4)
    expected = F.conv3d(
        x.transpose(1, 2), module.projection.weight.view(5, 2, 3, 2, 2), module.projection.bias, stride=(3, 2, 2)
    )
    torch.testing.assert_close(module(x)[0], expected.flatten(2).transpose(1, 2))


def test_bytes_are_shares_of_255() -> None:
    module = PatchEmbedding(4, size=(4, 4), patch=2, n_channels=1)
    x = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(module(x)[0], module(x / 255)[0])


def test_pixels_in_a_fixed_permutation_that_is_saved() -> None:
    module = PixelEmbedding(4, size=(3, 5), n_channels=1, permutation_seed=3)
    plain = PixelEmbedding(4, size=(3, 5), n_channels=1)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if k != "permutation"})
    x = torch.rand(2, 1, 3, 5)
    assert sorted(module.permutation.tolist()) == list(range(15))
    torch.testing.assert_close(module(x)[0], plain(x)[0][:, module.permutation])
    other = PixelEmbedding(4, size=(3, 5), n_channels=1, permutation_seed=4)
    assert not torch.equal(other.permutation, module.permutation)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x)[0], module(x)[0])
    with pytest.raises(ValueError, match="permutation is over 15 pixels"):
        module(torch.rand(1, 1, 4, 5))


@pytest.mark.parametrize(("where", "place"), [("front", 0), ("middle", 8), ("end", 16)])
def test_class_token_and_its_head_agree_at_any_resolution(where: str, place: int) -> None:
    module = PatchEmbedding(6, size=(8, 8), patch=2, n_channels=1, class_token=where)
    head = ClassTokenHead(6, n_outputs=6, place=where)
    nn.init.eye_(head.projection.weight)
    nn.init.zeros_(head.projection.bias)
    out, _ = module(torch.rand(2, 1, 8, 8))
    assert out.shape == (2, 17, 6) and module.class_vector is not None
    torch.testing.assert_close(out[:, place], module.class_vector.expand(2, -1))
    for side in (4, 8, 12):
        larger, _ = module(torch.rand(2, 1, side, side))
        torch.testing.assert_close(head(larger), module.class_vector.expand(2, -1))


def test_positions_are_interpolated_for_other_sizes() -> None:
    table = torch.arange(16.0).view(4, 4, 1)
    assert interpolate_space(table, (4, 4)) is table
    assert interpolate_space(table, (8, 6)).shape == (8, 6, 1)
    assert interpolate_space(table, (8, 8)).mean().item() == pytest.approx(table.mean().item(), abs=1e-3)
    ramp = torch.arange(4.0).unsqueeze(1)
    torch.testing.assert_close(interpolate_time(ramp, 8).squeeze(1), torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    module = TubeletEmbedding(4, size=(4, 4), frames=4, patch=2, n_channels=1)
    assert module(torch.rand(1, 8, 1, 8, 6))[0].shape == (1, 4 * 4 * 3, 4)


def test_learned_positions_are_the_sum_of_space_and_time() -> None:
    module = TubeletEmbedding(4, size=(4, 4), frames=4, patch=2, n_channels=1)
    nn.init.zeros_(module.projection.weight)
    nn.init.zeros_(module.projection.bias)
    assert module.space_positions is not None and module.time_positions is not None
    out = module(torch.rand(1, 4, 1, 4, 4))[0].view(2, 2, 2, 4)
    torch.testing.assert_close(out, module.space_positions + module.time_positions[:, None, None])


def test_sincos_positions_tell_every_cell_apart() -> None:
    for grid in ((1, 5, 7), (3, 4, 4)):
        table = sincos_positions(grid, 48)
        distance = torch.cdist(table, table) + 10 * torch.eye(len(table))
        assert distance.min() > 0.1
    with pytest.raises(ValueError, match="positions=sincos needs d_model"):
        sincos_positions((3, 4, 4), 4)


def test_hidden_cells_do_not_matter_and_keep_their_place() -> None:
    module = PatchEmbedding(4, size=(4, 4), patch=2, n_channels=1, mask_token=True)
    assert module.mask_vector is not None and module.space_positions is not None
    x = torch.rand(1, 1, 4, 4)
    x[..., :2, 2:] = torch.nan
    out = module(x)[0]
    torch.testing.assert_close(out[0, 1], module.mask_vector + module.space_positions[0, 1])
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_masks_over_frames_and_over_cells() -> None:
    module = TubeletEmbedding(4, size=(4, 4), frames=4, patch=2, n_channels=1, class_token="end")
    frames = torch.tensor([[True, True, True, False], [True, True, False, False]])
    mask = module(torch.rand(2, 4, 1, 4, 4), frames)[1]
    assert mask is not None
    assert mask.tolist() == [[True] * 9, [True] * 4 + [False] * 4 + [True]]
    cells = torch.rand(2, 8) > 0.5
    found = module(torch.rand(2, 4, 1, 4, 4), cells)[1]
    assert found is not None and torch.equal(found[:, :8], cells) and found[:, 8].all()
    with pytest.raises(ValueError, match="8 cells or 4 frames"):
        module(torch.rand(2, 4, 1, 4, 4), torch.ones(2, 5, dtype=torch.bool))


def test_bf16_weights_and_export() -> None:
    module = PatchEmbedding(4, size=(4, 4), patch=2, n_channels=3, class_token="middle")
    assert module.bfloat16()(torch.rand(1, 3, 4, 4))[0].dtype == torch.bfloat16
    module = module.float()
    x = torch.rand(2, 3, 4, 4)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    torch.testing.assert_close(exported(x)[0], module(x)[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PatchEmbedding(4, size=(6, 8), patch=4), "size=6 is no multiple of patch=4"),
        (lambda: TubeletEmbedding(4, size=(8, 8), frames=5, patch=4), "frames=5 is no multiple of tube=2"),
        (lambda: PatchEmbedding(4, size=(8, 8), patch=4, positions="rope"), "learned, sincos, none"),
        (lambda: PatchEmbedding(4, size=(8, 8), patch=4, class_token="first"), "front, middle, end"),
        (lambda: PatchEmbedding(4, size=(8, 8), patch=4, mean=[0.5]), "mean must hold 3 numbers"),
        (lambda: ClassTokenHead(4, n_outputs=2, place="first"), "front, middle, end"),
        (lambda: PatchEmbedding(4, size=(8, 8), patch=4)(torch.rand(1, 1, 8, 8)), "3 channels"),
        (lambda: PatchEmbedding(4, size=(8, 8), patch=4)(torch.rand(1, 3, 9, 8)), "no whole number of cells"),
    ],
)
def test_bad_options_are_answered(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        build()
