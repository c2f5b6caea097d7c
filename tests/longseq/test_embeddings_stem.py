"""Feature maps of timm's networks as a front end."""

import pytest
import torch

from longseq.embeddings_stem import StemEmbedding, stem_grid


def test_positions_are_the_feature_maps_cells() -> None:
    torch.manual_seed(0)
    stem = StemEmbedding(8, size=(64, 96), model="convnext_atto", n_channels=1, mean=[0.5], std=[0.25], positions="none").eval()
    assert stem_grid("convnext_atto", (64, 96)) == (2, 3) and stem.grid == (1, 2, 3) and stem.input_size == (1, 64, 96)
    image = torch.rand(2, 1, 64, 96)
    x_BLD, mask_BL = stem(image)
    assert x_BLD.shape == (2, 6, 8) and mask_BL is None
    features = stem.stem.forward_features((image - 0.5) / 0.25)
    expected = stem.projection(features[:, :, 1, 2])
    torch.testing.assert_close(x_BLD[:, 5], expected)


def test_other_sizes_interpolate_positions() -> None:
    stem = StemEmbedding(8, size=(64, 64), model="convnext_atto", class_token="front").eval()
    assert stem(torch.rand(1, 3, 96, 64))[0].shape == (1, 3 * 2 + 1, 8)


def test_networks_without_a_feature_map_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gives no feature map.*backbone=timm:vit_tiny_patch16_224"):
        stem_grid("vit_tiny_patch16_224", (64, 64))
    with pytest.raises(ValueError, match="no model of timm's"):
        stem_grid("resnet1", (64, 64))
