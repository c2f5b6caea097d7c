"""From files to batches: sizes, channels, bad records, labels, augmentation, targets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longseq.backbone import Backbone
from longseq.domains.vision.augment import Augmentation
from longseq.domains.vision.datamodule import VisionData
from longseq.errors import ConfigError, DataError
from longseq.registry import create_backbone
from tests.domains.vision.pictures import pictures

Read = Callable[..., VisionData]
FIFTHS = {"val_fraction": 0.2, "test_fraction": 0.2}


def backbone(**options: Any) -> Backbone:
    return create_backbone("s4d", d_model=8, n_layers=1, **options)


def test_the_demo_is_real_and_split_in_proportion(read: Read) -> None:
    data = read(None)
    assert "synthetic" not in data.counts and "1,797 real" in str(data.counts["demo"])
    assert sum(len(rows) for rows in data.splits.values()) == 1797
    assert data.labels == tuple("0123456789")
    assert data.grid == (4, 4) and data.max_length == 16
    counts = data.summary()["test"]["labels"]
    assert min(counts.values()) >= 34
    batch = next(iter(data.loader("train")))
    assert batch["inputs"].shape == (8, 1, 8, 8) and batch["inputs"].dtype == torch.uint8 and batch["labels"].shape == (8,)


def test_the_demo_moves_as_video(read: Read) -> None:
    data = read(None, tokenizer="tubelet", frames=4)
    batch = next(iter(data.loader("test")))
    assert batch["inputs"].shape == (8, 4, 1, 16, 16)
    assert not torch.equal(batch["inputs"][:, 0], batch["inputs"][:, 3])


# -- bad records


def spoil(folder: Path, how: str) -> Path:
    path = sorted(folder.rglob("*.png"))[4]
    contents = {"empty": b"", "cut": path.read_bytes()[:60], "text": b"<html>404 not found</html>"}
    path.write_bytes(contents[how])
    return path


@pytest.mark.parametrize(("how", "message"), [("empty", "0 bytes"), ("text", "cannot be decoded as an image")])
def test_a_bad_image_is_named_or_skipped(image_folder: Path, read: Read, how: str, message: str) -> None:
    path = spoil(image_folder, how)
    with pytest.raises(DataError, match=message) as caught:
        read(image_folder)
    assert str(path) in str(caught.value)
    data = read(image_folder, on_bad="skip", **FIFTHS)
    assert sum(len(rows) for rows in data.splits.values()) == 29
    assert str(path) in str(data.counts["skipped in train, unreadable"])


def test_a_truncated_image_is_named_when_it_is_read_or_skipped_before(image_folder: Path, read: Read) -> None:
    path = spoil(image_folder, "cut")
    with pytest.raises(DataError, match=r"60 bytes that cannot be decoded") as caught:
        found = read(image_folder, **FIFTHS)
        for rows in found.splits.values():
            for i in range(len(rows)):
                rows[i]
    assert str(path) in str(caught.value)
    assert sum(len(rows) for rows in read(image_folder, on_bad="skip", **FIFTHS).splits.values()) == 29


def test_a_missing_file_names_the_tables_line(image_folder: Path, tmp_path: Path, read: Read) -> None:
    paths = sorted(image_folder.rglob("*.png"))
    lines = ["path,label", *(f"{p},{p.parent.name}" for p in paths)]
    lines[3] = "gone.png,left"
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"t\.csv, line 4: .*gone\.png: there is no such file"):
        read(tmp_path / "t.csv")
    assert sum(len(rows) for rows in read(tmp_path / "t.csv", on_bad="skip", **FIFTHS).splits.values()) == 29


def test_labels_that_train_lacks(tmp_path: Path, read: Read) -> None:
    train, test = pictures(20), pictures(6)
    np.savez(tmp_path / "a.npz", x_train=train[0], y_train=train[1], x_test=test[0], y_test=[0, 1, 0, 1, 7, 1])
    with pytest.raises(DataError, match=r"a\.npz:x_test, record 4: label '7' is not among those of train \(0, 1\); 1 of 6"):
        read(tmp_path / "a.npz", val_fraction=0.2)
    data = read(tmp_path / "a.npz", val_fraction=0.2, on_bad="skip")
    assert len(data.splits["test"]) == 5
    assert np.asarray(data.rows("test").labels).tolist() == [0, 1, 0, 1, 1]
    assert data.row_names("test", np.array([4]))["id"] == ["a.npz:x_test[5]"]


def test_no_labels_and_one_class(tmp_path: Path, read: Read) -> None:
    images, _ = pictures(20)
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(DataError, match="have no labels"):
        read(tmp_path / "x.npy")
    np.savez(tmp_path / "one.npz", x=images, y=np.zeros(20, int))
    with pytest.raises(DataError, match="all 16 records of train have the label '0'"):
        read(tmp_path / "one.npz")


# -- sizes and channels


def test_mixed_sizes_and_channels_are_brought_together_and_counted(image_folder: Path, read: Read) -> None:
    paths = sorted(image_folder.rglob("*.png"))
    Image.new("RGB", (24, 12), (255, 0, 0)).save(paths[0])
    Image.new("RGBA", (12, 12), (0, 255, 0, 255)).save(paths[1])
    data = read(image_folder, size=12, **FIFTHS)
    assert data.channels == 3
    for name, rows in data.splits.items():
        assert all(rows[i]["inputs"].shape == (3, 12, 12) for i in range(len(rows))), name
    resized = sum(int(str(text).split()[0]) for key, text in data.counts.items() if key.startswith("resized"))
    converted = sum(int(str(text).split()[0]) for key, text in data.counts.items() if key.startswith("converted"))
    assert (resized, converted) == (1, 28)
    assert read(image_folder, channels=1, size=[12, 8], **FIFTHS).splits["train"][0]["inputs"].shape == (1, 12, 8)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_resizing(tmp_path: Path, read: Read, resize: str) -> None:
    images = np.zeros((20, 8, 16), np.uint8)
    images[:, :, 4:12] = 200
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(20) % 2)
    row = read(tmp_path / "a.npz", size=8, resize=resize, **FIFTHS).splits["train"][0]["inputs"][0]
    # The middle alone; everything, narrower; everything, smaller, on black.
    share = {"crop": 1.0, "squash": 0.5, "pad": 0.25}[resize]
    assert row.shape == (8, 8) and row.mean() == pytest.approx(200 * share, rel=0.05)


def test_a_patch_that_does_not_fit_is_answered_with_those_that_do(image_npz: Path, read: Read) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.patch=5 does not divide images of 12 x 12 pixels; patches that do: 1, 2, 3, 4, 6, 12"
    ):
        read(image_npz, patch=5, size=12)
    assert read(image_npz, patch=5).tokenizer.size == (10, 10)
    assert read(image_npz, patch=3).grid == (4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "pixels"}, r"data\.tokenizer must be one of pixel, patch, tubelet; found 'pixels'"),
        ({"task": "lm"}, r"data\.tokenizer=pixel"),
        ({"task": "forecasting"}, "it has classification"),
        ({"permutation_seed": 1}, "permutation_seed"),
        ({"class_token": "first"}, r"null, front, middle, end; found 'first'"),
        ({"task": "masked_patch", "class_token": "middle"}, "set it to null"),
        ({"hflip": 2.0}, r"data\.hflip is a probability"),
        ({"auto_augment": "rand-m99x-foo1"}, r"data\.auto_augment"),
        ({"levels": 1}, r"data\.levels"),
    ],
)
def test_options_out_of_range(image_npz: Path, read: Read, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(image_npz, **options)


# -- what the model gets


def test_statistics_are_of_train(image_npz: Path, read: Read) -> None:
    data = read(image_npz)
    rows = data.splits["train"]
    pixels = np.stack([rows[i]["inputs"] for i in range(len(rows))]) / 255
    assert data.mean[0] == pytest.approx(pixels.mean(), abs=1e-5) and data.std[0] == pytest.approx(pixels.std(), abs=1e-5)
    embedding = data.model_options(backbone())["embedding"]
    assert embedding["mean"] == data.mean and embedding["name"] == "patch" and embedding["positions"] == "learned"


def test_class_tokens_need_to_see_something(image_npz: Path, read: Read) -> None:
    data = read(image_npz, class_token="middle")
    assert data.max_length == 37
    with pytest.raises(ConfigError, match="sees only what stands before it"):
        data.model_options(backbone())
    both = backbone(bidirectional=True)
    assert data.model_options(both)["embedding"]["class_token"] == "middle"
    head = data.head_options(both, {"name": "pool", "n_outputs": 3, "pool": "mean", "dropout": 0.1})
    assert head == {"name": "class_token", "place": "middle", "n_outputs": 3, "dropout": 0.1}


def test_augmentation_follows_seed_epoch_and_row_and_leaves_the_global_state(image_npz: Path, read: Read) -> None:
    options: dict[str, Any] = {"hflip": 0.5, "shift": 2, "auto_augment": "rand-m5-n1", "erase": 0.3, "scale": [0.5, 1.0]}
    data = read(image_npz, **options)
    rows = data.splits["train"]
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first = rows[5]["inputs"]
    assert torch.equal(state[0], torch.get_rng_state()) and np.array_equal(state[1], np.random.get_state()[1])  # type: ignore[index]
    np.random.seed(7)
    torch.manual_seed(7)
    np.testing.assert_array_equal(rows[5]["inputs"], first)
    assert first.shape == (1, 12, 12) and first.dtype == np.uint8
    rows.epoch = 1
    assert not np.array_equal(rows[5]["inputs"], first)
    plain = read(image_npz).splits["test"]
    np.testing.assert_array_equal(plain[3]["inputs"], data.splits["test"][3]["inputs"])


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m0", "original"])
def test_the_strongest_policies_keep_a_picture(policy: str) -> None:
    augmentation = Augmentation((8, 8), auto_augment=policy)
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    for seed in range(150):
        changed = augmentation(image, np.random.default_rng(seed))
        assert changed.shape == image.shape and changed.dtype == np.uint8


def test_all_frames_of_a_clip_are_augmented_alike(tmp_path: Path, read: Read) -> None:
    still = np.repeat(pictures(20, size=16)[0][:, None], 4, axis=1)
    np.savez(tmp_path / "v.npz", videos=still, labels=np.arange(20) % 2)
    data = read(tmp_path / "v.npz", tokenizer="tubelet", frames=4, hflip=0.5, shift=3, erase=0.9, color_jitter=0.4, **FIFTHS)
    clips = [data.splits["train"][i]["inputs"] for i in range(len(data.splits["train"]))]
    assert all(np.array_equal(clip[0], clip[t]) for clip in clips for t in range(4))
    assert any(not np.array_equal(clip[0, 0], still[j, 0]) for clip in clips for j in [0])


def test_pixel_models_predict_every_value_from_those_before(tmp_path: Path, read: Read) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", rgb)
    data = read(tmp_path / "x.npy", task="lm", tokenizer="pixel", **FIFTHS)
    batch = next(iter(data.loader("test")))
    assert batch["inputs"].shape == batch["labels"].shape == (4, 48)
    assert (batch["inputs"][:, 0] == 256).all() and torch.equal(batch["inputs"][:, 1:], batch["labels"][:, :-1])
    image = data.rows("test").pixels(0)[0]
    np.testing.assert_array_equal(data.values.decode(batch["labels"][0].numpy(), (4, 4), 3), image)
    assert data.task_options() == {"vocab_size": 264, "unit": "dim"}


def test_masked_cells_are_nan_and_targets_whole(image_npz: Path, read: Read) -> None:
    data = read(image_npz, task="masked_patch", mask_fraction=0.25, patch=3)
    row = data.splits["train"][2]
    assert row["hidden"].sum() == 4 and row["targets"].shape == (16, 9)
    shown = data.tokenizer.cells(row["inputs"][None])
    np.testing.assert_array_equal(np.isnan(shown).all(1), row["hidden"])
    np.testing.assert_array_equal(shown[~row["hidden"]], row["targets"][~row["hidden"]])
    whole = data.tokenizer.assemble(row["targets"], 1)
    np.testing.assert_allclose(whole[0] * 255, data.rows("train").pixels(2)[0], atol=1e-4)
    fixed, moving = data.splits["val"], data.splits["train"]
    before = fixed[0]["hidden"], moving[2]["hidden"]
    fixed.epoch = moving.epoch = 3
    np.testing.assert_array_equal(fixed[0]["hidden"], before[0])
    assert not np.array_equal(moving[2]["hidden"], before[1])
    with pytest.raises(ConfigError, match=r"backbone\.bidirectional=true"):
        data.model_options(backbone())


def test_several_labels_and_quantities(image_folder: Path, tmp_path: Path, read: Read) -> None:
    paths = sorted(image_folder.rglob("*.png"))
    lines = ["path,tags,dark,age", *(f"{p},{'a;b' if i % 2 else 'b'},{i % 2},{i / 2}" for i, p in enumerate(paths))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    tags = read(tmp_path / "t.csv", task="multilabel", label_column="tags", **FIFTHS)
    assert tags.labels == ("a", "b") and tags.splits["train"][0]["label"].tolist() in ([0, 1], [1, 1])
    ages = read(tmp_path / "t.csv", task="regression", label_column=["age", "dark"], **FIFTHS)
    assert ages.task_options()["labels"] == ["age", "dark"] and len(ages.task_options()["mean"]) == 2
    (tmp_path / "t.csv").write_text("\n".join([*lines[:5], f"{paths[4]},b,1,old", *lines[6:]]) + "\n")
    with pytest.raises(DataError, match=r"line 6.*'old'"):
        read(tmp_path / "t.csv", task="regression", label_column="age", **FIFTHS)


def test_predict_needs_no_labels(image_npz: Path, tmp_path: Path, read: Read) -> None:
    np.save(tmp_path / "new.npy", pictures(5)[0])
    data = read(image_npz, predict=str(tmp_path / "new.npy"))
    batch = next(iter(data.loader("predict")))
    assert "labels" not in batch and len(batch["inputs"]) == 5
