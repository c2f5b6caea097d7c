"""Folders, tables, arrays, MNIST's and CIFAR's files: what is read, and the answers to broken ones."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from longseq.domains.vision.arrays import read_idx, read_npz
from longseq.domains.vision.datamodule import VisionData
from longseq.domains.vision.sources import ReadOptions, read_source
from longseq.domains.vision.stores import ArrayStore, ImageFiles, as_pixels
from longseq.errors import DataError
from tests.domains.vision.pictures import pictures

Read = Callable[..., VisionData]


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_a_folder_per_class(image_folder: Path, read: Read) -> None:
    (image_folder / "left" / "notes.txt").write_text("not a picture")
    (image_folder / "left" / ".hidden.png").write_bytes(b"")
    data = read(image_folder, val_fraction=0.2, test_fraction=0.2)
    assert data.labels == ("left", "right")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 18, "val": 6, "test": 6}
    assert data.counts["ignored files in train"] == "1 .txt"
    row = data.splits["train"][0]
    expected = np.asarray(Image.open(data.row_names("train", np.array([0]))["id"][0]))
    np.testing.assert_array_equal(row["inputs"], expected[None])
    assert ("left" in str(data.row_names("train", np.array([0]))["id"][0])) == (row["label"] == 0)


def test_folders_train_and_test_are_splits(tmp_path: Path, read: Read) -> None:
    for split, n in (("train", 20), ("valid", 4), ("test", 6)):
        images, labels = pictures(n)
        for i, image in enumerate(images):
            folder = tmp_path / split / f"class{labels[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    data = read(tmp_path)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 20, "val": 4, "test": 6}
    assert "split" not in data.counts


def test_a_table_of_paths(image_folder: Path, tmp_path: Path, read: Read) -> None:
    paths = sorted(image_folder.rglob("*.png"))
    frame = pd.DataFrame({"file": [str(p.relative_to(tmp_path)) for p in paths], "side": [p.parent.name for p in paths]})
    frame["patient"] = [f"p{i // 3}" for i in range(len(frame))]
    frame.to_csv(tmp_path / "table.csv", index=False)
    data = read(
        tmp_path / "table.csv",
        path_column="file",
        label_column="side",
        group_column="patient",
        val_fraction=0.2,
        test_fraction=0.2,
    )
    groups = [set(np.asarray(data.rows(name).records.groups)) for name in ("train", "val", "test")]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert sum(len(rows) for rows in data.splits.values()) == 30


def test_a_table_names_the_splits(image_folder: Path, tmp_path: Path, read: Read) -> None:
    paths = sorted(image_folder.rglob("*.png"))
    split = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
    order = np.random.default_rng(0).permutation(30)
    frame = pd.DataFrame(
        {"path": [str(paths[i]) for i in order], "label": [paths[i].parent.name for i in order], "split": split}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert [len(rows) for rows in read(tmp_path / "t.csv").splits.values()] == [20, 5, 5]


def test_a_list_of_paths_and_labels(image_folder: Path, tmp_path: Path, read: Read) -> None:
    paths = sorted(image_folder.rglob("*.png"))
    (tmp_path / "list.txt").write_text("".join(f"{p.relative_to(tmp_path)} {p.parent.name}\n" for p in paths))
    assert read(tmp_path / "list.txt", val_fraction=0.2, test_fraction=0.2).labels == ("left", "right")


def test_npz_members_and_their_splits(image_npz: Path, tmp_path: Path, read: Read) -> None:
    data = read(image_npz)
    assert len(data.splits["test"]) == 21
    assert len(data.splits["train"]) + len(data.splits["val"]) == 60
    store = data.rows("train").records.store
    assert isinstance(store, ArrayStore) and isinstance(store.arrays[0], np.memmap)
    with np.load(image_npz) as arrays:
        np.savez_compressed(tmp_path / "other.npz", train_images=arrays["x_train"], train_labels=arrays["y_train"][:, None])
        np.testing.assert_array_equal(read_npz(image_npz)["train"].arrays[0], arrays["x_train"])
    found = read_npz(tmp_path / "other.npz")
    assert list(found) == ["train"] and found["train"].labels is not None and found["train"].labels.shape == (60,)


def test_npz_with_names_of_its_own(tmp_path: Path, read: Read) -> None:
    images, labels = pictures(30)
    np.savez(tmp_path / "a.npz", scans=images, diagnosis=labels)
    with pytest.raises(DataError, match=r"scans, diagnosis.*data\.image_key"):
        read(tmp_path / "a.npz")
    data = read(tmp_path / "a.npz", image_key="scans", label_key="diagnosis", val_fraction=0.2, test_fraction=0.2)
    assert data.labels == ("0", "1")
    with pytest.raises(DataError, match="no array 'scan'; found scans"):
        read(tmp_path / "a.npz", image_key="scan")


def test_pickles_are_refused(tmp_path: Path, read: Read) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object), y=np.array([0]))
    with pytest.raises(DataError, match="objects"):
        read(tmp_path / "objects.npz")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x02")
    with pytest.raises(DataError, match=r"pickles.*binary version"):
        read(tmp_path / "cifar-10-batches-py")
    (tmp_path / "train.pkl").write_bytes(b"\x80\x02")
    with pytest.raises(DataError, match="pickled files are refused"):
        read(tmp_path / "train.pkl")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files(tmp_path: Path, read: Read, suffix: str) -> None:
    train, test = pictures(30), pictures(10)
    for name, (images, labels) in (("train", train), ("t10k", test)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))
    data = read(tmp_path)
    assert len(data.splits["test"]) == 10 and data.labels == ("0", "1")
    np.testing.assert_array_equal(data.splits["test"][3]["inputs"][0], test[0][3])
    alone = read(tmp_path / f"train-images-idx3-ubyte{suffix}", val_fraction=0.2, test_fraction=0.2)
    assert alone.labels == ("0", "1")


def test_broken_idx_files(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", pictures(4)[0])
    whole = (tmp_path / "train-images-idx3-ubyte").read_bytes()
    (tmp_path / "cut-idx3-ubyte").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"4 x 12 x 12 values in 576 bytes, the file holds 575"):
        read_idx(tmp_path / "cut-idx3-ubyte")
    (tmp_path / "other-idx3-ubyte").write_bytes(b"GIF89a..........")
    with pytest.raises(DataError, match="does not begin like an idx file"):
        read_idx(tmp_path / "other-idx3-ubyte")
    (tmp_path / "x-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(DataError, match=r"x-idx3-ubyte.gz"):
        read_idx(tmp_path / "x-idx3-ubyte.gz")


def test_cifar_binary_files(tmp_path: Path, read: Read) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = (np.arange(20) % 2).astype(np.uint8)
    content = b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\n")
    data = read(tmp_path)
    assert data.labels == ("airplane", "automobile")
    assert len(data.splits["train"]) + len(data.splits["val"]) == 40
    np.testing.assert_array_equal(data.splits["test"][7]["inputs"], images[7])
    (tmp_path / "test_batch.bin").write_bytes(content[:-5])
    with pytest.raises(DataError, match=r"test_batch.bin: 61,455 bytes are no whole number of cifar10 records of 3,073"):
        read(tmp_path)


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    image = np.zeros((3, 32, 32), np.uint8).tobytes()
    (tmp_path / "train.bin").write_bytes(b"".join(bytes([1, label]) + image for label in (5, 6)))
    labels = read_source(str(tmp_path / "train.bin"), ReadOptions())["all"].labels
    assert labels is not None and labels.tolist() == ["5", "6"]


def test_images_and_labels_in_files_of_their_own(tmp_path: Path, read: Read) -> None:
    images, labels = pictures(30)
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "y.npy", labels)
    source = {"images": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy")}
    assert read(source, val_fraction=0.2, test_fraction=0.2).labels == ("0", "1")
    np.save(tmp_path / "y.npy", labels[:-1])
    with pytest.raises(DataError, match="30 images, but labels of shape"):
        read(source)


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_channels_stand_first_or_last(layout: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    array = rgb if layout == "HWC" else np.moveaxis(rgb, -1, 1)
    store = ArrayStore([array], ["x"])
    np.testing.assert_array_equal(store.read(1)[0], rgb[1])
    assert store.header(0).height == 6 and store.header(0).channels == 3


def test_floats_are_shares_or_bytes(tmp_path: Path) -> None:
    shares = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 4, 4)
    expected = np.rint(shares * 255).astype(np.uint8)
    np.testing.assert_array_equal(ArrayStore([shares], ["x"]).read(1)[0, ..., 0], expected[1])
    np.testing.assert_array_equal(ArrayStore([shares * 255], ["x"]).read(1)[0, ..., 0], expected[1])
    with pytest.raises(DataError, match=r"from -0.5 to 0.5.*undo a normalisation"):
        ArrayStore([shares - 0.5], ["x"])
    with pytest.raises(DataError, match=r"shape \(2, 4\).*expected \(N, H, W\)"):
        ArrayStore([shares[:, 0]], ["x"])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_of_pil_becomes_bytes(mode: str) -> None:
    image = (
        Image.fromarray(np.full((4, 4), 40_000, np.uint16))
        if mode == "I;16"
        else Image.new(mode, (4, 4), 1 if mode == "1" else None)
    )
    pixels = as_pixels(image)
    assert pixels.dtype == np.uint8 and pixels.shape in ((4, 4, 1), (4, 4, 3))
    if mode == "I;16":
        assert pixels[0, 0, 0] == round(40_000 * 255 / 65535)
    if mode == "1":
        assert pixels[0, 0, 0] == 255


def test_a_turned_photo_is_turned_back(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "p.jpg", exif=exif)
    store = ImageFiles([tmp_path / "p.jpg"])
    header = store.header(0)
    assert (header.height, header.width) == (8, 4)
    assert store.read(0).shape == (1, 8, 4, 3)


def test_missing_and_unknown_sources(tmp_path: Path, read: Read) -> None:
    with pytest.raises(DataError, match=r"nowhere.npz: there is no such file"):
        read(tmp_path / "nowhere.npz")
    (tmp_path / "model.xyz").write_text("x")
    with pytest.raises(DataError, match=r"model.xyz: not a kind of file"):
        read(tmp_path / "model.xyz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"found no images.*one folder per class"):
        read(tmp_path / "empty")
    (tmp_path / "t.csv").write_text("file,label\na.png,1\n")
    with pytest.raises(DataError, match="no column 'path'; found file, label"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(("encoding", "separator"), [("cp1252", ","), ("utf-8", ";"), ("utf-16", "\t")])
def test_tables_of_other_programs(image_folder: Path, read: Read, encoding: str, separator: str) -> None:
    rows = [f"{path.relative_to(image_folder)}{separator}{path.parent.name}ß" for path in sorted(image_folder.rglob("*.png"))]
    (image_folder / "t.csv").write_bytes("\n".join([f"path{separator}label", *rows]).encode(encoding))
    assert read(image_folder / "t.csv").labels == ("leftß", "rightß")


def test_missing_labels_of_parquet_are_no_class(image_folder: Path, read: Read) -> None:
    paths = sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.png"))
    table = pd.DataFrame({"path": paths, "label": [None, *(Path(path).parent.name for path in paths[1:])]})
    table.to_parquet(image_folder / "t.parquet")
    with pytest.raises(DataError, match=r"row 1: .*label '' is not among"):
        read(image_folder / "t.parquet")
    table.assign(path=[None, *paths[1:]]).to_parquet(image_folder / "t.parquet")
    with pytest.raises(DataError, match="row 1: no path"):
        read(image_folder / "t.parquet")


def test_few_groups_still_make_three_splits(image_folder: Path, read: Read) -> None:
    paths = sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.png"))
    table = pd.DataFrame({"path": paths, "label": [Path(path).parent.name for path in paths]})
    table.assign(patient=np.arange(len(paths)) % 3).to_csv(image_folder / "t.csv", index=False)
    data = read(image_folder / "t.csv", group_column="patient")
    assert {name: len(rows) for name, rows in data.splits.items()} == {name: len(paths) // 3 for name in data.splits}


def test_a_cut_image_is_found_before_training(image_folder: Path, read: Read) -> None:
    path = next((image_folder / "left").glob("*.png"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=f"{path.name}.*cannot be decoded"):
        read(image_folder)


def test_quantities_that_are_no_numbers(image_folder: Path, read: Read) -> None:
    paths = sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.png"))
    pd.DataFrame({"path": paths, "age": ["old", *range(1, len(paths))]}).to_csv(image_folder / "t.csv", index=False)
    with pytest.raises(DataError, match=r"line 2: .*'old' is no finite number"):
        read(image_folder / "t.csv", task="regression", label_column="age", val_fraction=0.2)
