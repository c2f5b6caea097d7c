"""Images and labels in arrays: npz, npy, MNIST's idx and CIFAR's binary files, mapped from disk where the format allows it."""

import gzip
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.errors import DataError

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IMAGE_KEYS = ("x", "images", "image", "imgs", "data", "videos", "video", "frames", "clips")
LABEL_KEYS = ("y", "labels", "label", "targets", "target")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
CIFAR = {
    "cifar10": np.dtype([("label", "u1"), ("image", "u1", (3, 32, 32))]),
    "cifar100": np.dtype([("coarse", "u1"), ("label", "u1"), ("image", "u1", (3, 32, 32))]),
}


@dataclass
class LabelledArrays:
    """Images of one split, in one array or several, with where they come from and their labels if there are any."""

    arrays: list[np.ndarray]
    sources: list[str]
    labels: np.ndarray | None


# -- npz and npy


def read_npz(path: Path, image_key: str | None = None, label_key: str | None = None) -> dict[str, LabelledArrays]:
    """The splits of an npz file: `x_train, y_train, x_test, ...`, `train_images, train_labels, ...`, or one `x, y` as `all`.

    Args:
        path: of the file; members that are stored without compression are mapped, the others loaded.
        image_key: the array with the images, where names are others.
        label_key: the array with the labels.

    Raises:
        DataError: if the file is broken, holds pickled objects, or no array is named like images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(info.filename).stem: info for info in archive.infolist() if info.filename.endswith(".npy")}
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: not a readable npz file ({error})") from None
    for key in (image_key, label_key):
        if key is not None and key not in members:
            raise DataError(f"{path}: there is no array {key!r}; found {', '.join(members)}")
    roles = npz_roles(list(members), image_key, label_key)
    found = {}
    for split, role in roles.items():
        if "images" not in role:
            continue
        images = load_member(path, members[role["images"]])
        labels = None if "labels" not in role else load_member(path, members[role["labels"]])
        found[split] = labelled(images, f"{path}:{role['images']}", labels)
    if not found:
        raise DataError(
            f"{path}: no array is named like images ({', '.join(IMAGE_KEYS)}, alone or with train, val, test); "
            f"found {', '.join(members) or 'no arrays'}; name it with data.image_key"
        )
    return found


def npz_roles(names: list[str], image_key: str | None, label_key: str | None) -> dict[str, dict[str, str]]:
    """Per split (or `all`) the names of the arrays with images and with labels."""
    if image_key is not None:
        own = {"images": image_key} | ({"labels": label_key} if label_key else {})
        guessed = npz_roles(names, None, None).get("all", {}).get("labels")
        return {"all": own | ({"labels": guessed} if guessed and not label_key else {})}
    roles: dict[str, dict[str, str]] = {}
    for name in names:
        parts = name.lower().split("_")
        split = next((SPLITS[part] for part in parts if part in SPLITS), "all")
        rest = "_".join(part for part in parts if part not in SPLITS)
        if rest in IMAGE_KEYS or (rest == "" and split != "all"):
            roles.setdefault(split, {})["images"] = name
        elif name == label_key or rest in LABEL_KEYS:
            roles.setdefault(split, {})["labels"] = name
    return roles


def load_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an npz file, mapped from disk if it is stored as it is."""
    try:
        if info.compress_type == zipfile.ZIP_STORED:
            return map_member(path, info)
        with zipfile.ZipFile(path) as archive, archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}:{info.filename}: cannot be read ({error}); arrays of objects are refused, save numbers"
        ) from None


def map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """Maps an uncompressed member: its bytes stand in the archive just as in an npy file."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26xHH", file.read(30))
        file.seek(info.header_offset + 30 + name_length + extra_length)
        version = np.lib.format.read_magic(file)
        read_header: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def read_npy(path: Path) -> np.ndarray:
    """An npy file, mapped from disk.

    Raises:
        DataError: if it is broken or holds pickled objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable npy file ({error}); arrays of objects are refused") from None


def labelled(images: np.ndarray, source: str, labels: np.ndarray | None) -> LabelledArrays:
    """Images with labels of the same number.

    Raises:
        DataError: if the numbers differ, or the labels are no vector or table.
    """
    if labels is not None:
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.ndim not in (1, 2) or len(labels) != len(images):
            raise DataError(f"{source}: {len(images)} images, but labels of shape {labels.shape}; expected one label per image")
    return LabelledArrays([images], [source], labels)


# -- MNIST's idx


def read_idx(path: Path) -> np.ndarray:
    """An idx file, also gzipped; mapped from disk if it is not.

    Raises:
        DataError: if the magic number is not idx's, or the file is shorter than its header says.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or not 1 <= magic[3] <= 5:
                raise DataError(
                    f"{path}: does not begin like an idx file (0 0 type dimensions), found {magic.hex(' ') or 'nothing'}"
                )
            shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
            dtype, offset = np.dtype(IDX_TYPES[magic[2]]), 4 + 4 * magic[3]
            content = file.read() if path.suffix == ".gz" else None
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path}: cannot be read as an idx file ({error})") from None
    expected = int(np.prod(shape)) * dtype.itemsize
    actual = path.stat().st_size - offset if content is None else len(content)
    if actual < expected:
        sizes = " x ".join(map(str, shape))
        raise DataError(
            f"{path}: the header promises {sizes} values in {expected:,} bytes, the file holds {actual:,}: it is truncated"
        )
    if content is not None:
        return np.frombuffer(content[:expected], dtype).reshape(shape)
    return np.memmap(path, dtype, "r", offset, shape)


def read_idx_pair(images: Path) -> LabelledArrays:
    """Images of an idx file with the labels that lie beside it (train-images-idx3-ubyte, train-labels-idx1-ubyte)."""
    bare = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = [images.with_name(bare), images.with_name(bare + ".gz")]
    labels = next((path for path in beside if path.is_file() and path.name != images.name), None)
    return labelled(read_idx(images), str(images), None if labels is None else read_idx(labels))


def idx_folder(folder: Path) -> dict[str, LabelledArrays]:
    """The splits of a folder with MNIST's files; empty if it is none."""
    found = {}
    for split, stem in (("train", "train"), ("test", "t10k"), ("test", "test"), ("val", "val")):
        files = sorted(
            [*folder.glob(f"{stem}-images*ubyte*"), *folder.glob(f"{stem}-images*idx3*")], key=lambda p: p.suffix == ".gz"
        )
        if files and split not in found:
            found[split] = read_idx_pair(files[0])
    return found


# -- CIFAR's binary version


def cifar_folder(folder: Path) -> dict[str, LabelledArrays]:
    """The splits of a folder with CIFAR's binary files; empty if it is none.

    Raises:
        DataError: for the Python version, which is pickled.
    """
    if (folder / "data_batch_1").is_file() or (folder / "meta").is_file():
        raise DataError(
            f"{folder}: this is CIFAR's Python version, whose files are pickles, and unpickling runs any code in them; "
            "download the binary version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)"
        )
    if (folder / "data_batch_1.bin").is_file():
        files = {"train": sorted(folder.glob("data_batch_*.bin")), "test": sorted(folder.glob("test_batch.bin"))}
        kind, names = "cifar10", folder / "batches.meta.txt"
    elif (folder / "train.bin").is_file():
        files = {"train": [folder / "train.bin"], "test": sorted(folder.glob("test.bin"))}
        kind, names = "cifar100", folder / "fine_label_names.txt"
    else:
        return {}
    return {split: read_cifar(paths, kind, names) for split, paths in files.items() if paths}


def read_cifar(paths: list[Path], kind: str, names: Path | None = None) -> LabelledArrays:
    """CIFAR's binary files, mapped from disk: the class (CIFAR-100: coarse, then fine), then planes of R, G and B.

    Raises:
        DataError: if a file's size is no multiple of the record's.
    """
    dtype = CIFAR[kind]
    records = []
    for path in paths:
        size = path.stat().st_size
        if size == 0 or size % dtype.itemsize:
            raise DataError(f"{path}: {size:,} bytes are no whole number of {kind} records of {dtype.itemsize:,} bytes")
        records.append(np.memmap(path, dtype, "r"))
    labels: np.ndarray = np.concatenate([np.asarray(part["label"]) for part in records])
    words = names.read_text().split() if names is not None and names.is_file() else []
    if len(words) > int(labels.max()):
        labels = np.array(words, dtype=object)[labels]
    return LabelledArrays([part["image"] for part in records], [str(path) for path in paths], labels)
