"""Pretraining on a task's own images: targets stand where the embedding puts the cells."""

import pytest
import torch

from longseq.domains.vision.datamodule import VisionData
from longseq.embeddings_vision import PixelEmbedding
from longseq.errors import ConfigError
from longseq.registry import create_backbone


def data(**options: object) -> VisionData:
    found = VisionData(task="classification", batch_size=4, **options)  # type: ignore[arg-type]
    found.setup("fit")
    return found


def test_causal_backbones_tell_the_next_cell() -> None:
    inputs = data(patch=2).self_supervised(causal=True)
    batch = next(iter(inputs.loader("val")))
    whole = next(iter(data(patch=2).loader("val")))
    assert torch.equal(batch["inputs"], whole["inputs"]) and batch["inputs"].dtype == torch.uint8
    cells = batch["inputs"].float().unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(2, 3).squeeze(1) / 255
    torch.testing.assert_close(batch["targets"][:, :-1], cells[:, 1:])
    assert batch["hidden"][:, :-1].all() and not batch["hidden"][:, -1].any()


@pytest.mark.parametrize("causal", [False, True])
def test_permuted_pixels_have_permuted_targets(causal: bool) -> None:
    inputs = data(tokenizer="pixel", permutation_seed=3).self_supervised(causal)
    batch = next(iter(inputs.loader("train")))
    embedding = PixelEmbedding(2, size=(8, 8), permutation_seed=3, n_channels=1)
    pixels = batch["inputs"].float().flatten(2).squeeze(1)
    pixels = (pixels / 255 if batch["inputs"].dtype == torch.uint8 else pixels)[:, embedding.permutation]
    if causal:
        torch.testing.assert_close(batch["targets"][:, :-1, 0], pixels[:, 1:])
    else:
        assert torch.equal(pixels.isnan(), batch["hidden"])
        torch.testing.assert_close(batch["targets"][..., 0][~batch["hidden"]], pixels[~batch["hidden"]])


def test_the_embedding_is_the_tasks_but_for_what_pretraining_needs() -> None:
    whole = data(patch=2, class_token="front")
    backbone = create_backbone("cnn", d_model=8, n_layers=1)
    own, pretrained = (part.model_options(backbone)["embedding"] for part in (whole, whole.self_supervised(False)))
    assert pretrained == {**{key: value for key, value in own.items() if key != "class_token"}, "mask_token": True}
    assert whole.self_supervised(False).max_length == whole.max_length == 17


def test_tasks_without_labels_are_refused() -> None:
    found = VisionData(task="masked_patch", batch_size=4)
    found.setup("fit")
    with pytest.raises(ConfigError, match="needs no labels as it is"):
        found.self_supervised(False)
