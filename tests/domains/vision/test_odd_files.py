"""People's own files that are a little odd: classes named like splits, loose images, 16 bits, labels that are missing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longseq.domains.vision.datamodule import VisionData
from longseq.domains.vision.sources import ReadOptions, read_folder
from longseq.domains.vision.stores import ArrayStore, as_pixels
from longseq.errors import DataError
from tests.domains.vision.pictures import pictures

Read = Callable[..., VisionData]


def folder_of(*names: str, root: Path, n: int = 4) -> Path:
    for name in names:
        for i in range(n):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(root / name / f"{i}.png")
    return root


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    found = read_folder(folder_of("bus", "car", "train", root=tmp_path / "vehicles"), ReadOptions())
    assert set(found) == {"all"} and set(found["all"].labels.tolist()) == {"bus", "car", "train"}  # type: ignore[union-attr]
    # Folders of other names beside splits hold no records.
    found = read_folder(folder_of("train/a", "train/b", "test/a", "annotations", root=tmp_path / "splits"), ReadOptions())
    assert {name: len(part) for name, part in found.items()} == {"train": 8, "test": 4}


def test_an_image_beside_the_classes_is_passed_over_and_counted(image_folder: Path, read: Read) -> None:
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(image_folder / "overview.png")
    data = read(image_folder)
    assert data.labels == ("left", "right") and sum(len(rows) for rows in data.splits.values()) == 30
    assert data.counts["ignored files in train"] == "1 outside of the classes' folders"
    # Without labels it is an image like all others.
    assert len(read_folder(image_folder, ReadOptions(label_column=None))["all"]) == 31


def test_tables_may_be_called_idx_and_name_paths_as_windows_does(image_folder: Path, read: Read) -> None:
    rows = [f"{path.parent.name}\\{path.name},{path.parent.name}" for path in sorted(image_folder.rglob("*.png"))]
    table = image_folder / "train_idx.csv"
    table.write_text("path,label\r\n" + "\r\n".join(rows) + "\r\n")
    assert read(table).labels == ("left", "right")


@pytest.mark.parametrize("name", ["I;16", "uint16"])
def test_sixteen_bits_have_one_scale_for_all_images(name: str, tmp_path: Path) -> None:
    bright, dark = np.full((2, 4, 4), 60_000, np.uint16), np.full((2, 4, 4), 200, np.uint16)
    expected = [round(60_000 * 255 / 65535), round(200 * 255 / 65535)]
    if name == "uint16":
        store = ArrayStore([np.concatenate([bright, dark])], ["x"])
        assert [int(store.read(i).max()) for i in (0, 2)] == expected
        # An array of bytes in 16 bits is one of bytes.
        assert int(ArrayStore([dark], ["x"]).read(0).max()) == 200
    else:
        assert [int(as_pixels(Image.fromarray(x[0])).max()) for x in (bright, dark)] == expected


def test_of_several_pages_the_first_is_read_and_this_is_said(image_folder: Path, read: Read) -> None:
    pages = [Image.fromarray(np.full((12, 12), value, np.uint8)) for value in (10, 200)]
    pages[0].save(image_folder / "left" / "stack.tif", save_all=True, append_images=pages[1:])
    data = read(image_folder)
    notes = [str(note) for name, note in data.counts.items() if name.startswith("first page alone in")]
    assert len(notes) == 1 and notes[0].startswith("1 of ")
    assert data.rows("train").pixels(0).shape[0] == 1


def test_black_and_white_and_dark_arrays(tmp_path: Path, read: Read) -> None:
    labels = np.arange(40) % 2
    values = np.random.default_rng(0).integers(0, 4096, (40, 8, 8)).astype(np.uint16)
    np.savez(tmp_path / "twelve.npz", x=values, y=labels)
    assert "brightest pixel seen in train is 16 of 255" in str(read(tmp_path / "twelve.npz").counts["dark"])
    np.savez(tmp_path / "two.npz", x=(values > 2000).astype(np.int64), y=labels)
    data = read(tmp_path / "two.npz")
    assert "dark" not in data.counts and set(np.unique(data.rows("train").pixels(0))) == {0, 255}


def test_labels_of_arrays_that_are_missing_or_odd(tmp_path: Path, read: Read) -> None:
    images, labels = pictures(40)
    np.savez(tmp_path / "nan.npz", x=images, y=np.where(np.arange(40) == 3, np.nan, labels))
    with pytest.raises(DataError, match=r"label '' is not among those of train \(0, 1\); 1 of"):
        read(tmp_path / "nan.npz")
    np.savez(tmp_path / "odd.npz", x=images, y=np.array(["²", "3"])[labels])
    assert read(tmp_path / "odd.npz").labels == ("3", "²")
