"""Cells of the data and cells of the embeddings are the same; sizes and values that are chosen."""

import numpy as np
import pytest
import torch

from longseq.domains.vision.tokenizer import CellTokenizer, PixelValues, default_patch
from longseq.embeddings_vision import PatchEmbedding, TubeletEmbedding


@pytest.mark.parametrize(
    ("tokenizer", "shape"),
    [
        (CellTokenizer("patch", (8, 12), patch=4), (1, 3, 8, 12)),
        (CellTokenizer("pixel", (5, 3)), (1, 3, 5, 3)),
        (CellTokenizer("tubelet", (8, 4), frames=6, patch=2, tube=3), (6, 3, 8, 4)),
    ],
)
def test_cells_are_the_embeddings_and_can_be_put_together_again(tokenizer: CellTokenizer, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).random(shape, dtype=np.float32)
    cells = tokenizer.cells(pixels)
    assert len(cells) == tokenizer.length == np.prod(tokenizer.grid)
    np.testing.assert_array_equal(tokenizer.assemble(cells, 3), pixels)
    options = tokenizer.embedding()
    if options.pop("name") == "pixel":
        return
    build = TubeletEmbedding if tokenizer.kind == "tubelet" else PatchEmbedding
    found, _ = build(4, **options).cells(torch.from_numpy(pixels)[None])
    np.testing.assert_array_equal(found[0].numpy(), cells)


@pytest.mark.parametrize(
    ("side", "patch"), [(224, 16), (112, 16), (96, 8), (64, 8), (32, 4), (28, 4), (16, 2), (8, 2), (4, 2), (3, 1), (27, 1)]
)
def test_default_patches(side: int, patch: int) -> None:
    assert default_patch((side, side)) == patch


@pytest.mark.parametrize("levels", [2, 16, 255, 256])
def test_pixel_values(levels: int) -> None:
    values = PixelValues(levels)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    ids = values.encode(pixels)
    assert ids.min() == 0 and ids.max() == levels - 1 and values.begin == levels < values.vocab_size
    decoded = values.decode(ids, (16, 16), 1)
    assert np.abs(decoded.astype(int) - pixels).max() <= -(-128 // levels)
    np.testing.assert_array_equal(values.encode(decoded), ids)


def test_channels_of_a_pixel_are_neighbours() -> None:
    pixels = np.stack([np.full((2, 2), c, np.uint8) for c in (1, 2, 3)])
    assert PixelValues().encode(pixels).tolist() == [1, 2, 3] * 4
