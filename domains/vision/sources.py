"""What `data.train` and its like may name: folders of classes, tables of paths, arrays, MNIST, CIFAR; read into records."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.text_tables import bare_suffix, decode, read_bytes, read_text_table
from longseq.domains.vision.arrays import (
    SPLITS,
    LabelledArrays,
    cifar_folder,
    idx_folder,
    labelled,
    read_cifar,
    read_idx_pair,
    read_npy,
    read_npz,
)
from longseq.domains.vision.stores import ArrayStore, ImageFiles, Store
from longseq.domains.vision.video import IMAGES, VIDEOS, VideoStore, natural_key
from longseq.errors import ConfigError, DataError

Source = str | Mapping[str, str]
TABLES = (".csv", ".tsv", ".txt", ".parquet")


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read.

    Attributes:
        video: whether items are videos.
        path_column: of tables.
        label_column: of tables; several for several labels per row; None for none.
        header: whether tables name their columns; without, the first is the path and the second the label.
        root: folder that relative paths in tables start from; None for the table's.
        image_key: of npz files.
        label_key: of npz files.
        split_column: column of tables with train, val, test.
        group_column: column of tables whose equal values stay in one split.
    """

    video: bool = False
    path_column: str = "path"
    label_column: str | Sequence[str] | None = "label"
    header: bool = True
    root: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    split_column: str | None = None
    group_column: str | None = None


@dataclass(frozen=True)
class Records:
    """Items with what is known of them.

    Attributes:
        store: reads the pixels.
        items: (N,) each record's number in the store.
        labels: (N,) text, or (N, K) values; None if there are none.
        label_names: of K columns.
        groups: (N,) values that stay in one split.
        ignored: files that were passed over, by suffix.
        headers: (N, 4) frames, height, width and channels, once they were read.
    """

    store: Store
    items: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...] = ("label",)
    groups: np.ndarray | None = None
    ignored: Mapping[str, int] | None = None
    headers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items)

    def select(self, rows: np.ndarray) -> "Records":
        """Some of the records."""
        labels, groups, headers = (
            None if column is None else column[rows] for column in (self.labels, self.groups, self.headers)
        )
        return Records(self.store, self.items[rows], labels, self.label_names, groups, self.ignored, headers)

    @property
    def sizes(self) -> np.ndarray:
        """(N, 4) frames, height, width and channels of records whose headers were read."""
        assert self.headers is not None
        return self.headers

    def where(self, row: int) -> str:
        """File and record, for messages."""
        return self.store.where(int(self.items[row]))


def read_source(source: Source, options: ReadOptions) -> dict[str, Records]:
    """The records of a source, by split if it has splits of its own, else as `all`.

    Args:
        source: a folder, a table, an array file, or a mapping with `images` and `labels`, both array files.
        options: see there.

    Raises:
        DataError: if there is nothing, or nothing that is understood.
    """
    if isinstance(source, Mapping):
        return {"all": read_mapping(source, options)}
    if not isinstance(source, (str, Path)):
        raise ConfigError(f"a source must be a path, or a mapping with images and labels; found {source!r}")
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    if path.is_dir():
        return read_folder(path, options)
    if bare_suffix(path) in TABLES:
        return read_table(path, options)
    return {split: from_arrays(found, options) for split, found in read_array_file(path, options).items()}


# -- arrays


def read_array_file(path: Path, options: ReadOptions) -> dict[str, LabelledArrays]:
    """npz, npy, idx and CIFAR's binary files, by their names."""
    bare = path.name.removesuffix(".gz")
    if bare.endswith(".npz"):
        return read_npz(path, options.image_key, options.label_key)
    if bare.endswith(".npy"):
        return {"all": labelled(read_npy(path), str(path), None)}
    if "ubyte" in bare or "idx" in bare:
        return {"all": read_idx_pair(path)}
    if bare.endswith(".bin"):
        fine = "cifar100" if bare in ("train.bin", "test.bin") else "cifar10"
        names = path.with_name("fine_label_names.txt" if fine == "cifar100" else "batches.meta.txt")
        return {"all": read_cifar([path], fine, names)}
    if bare.endswith((".pkl", ".pickle", ".pt", ".pth")):
        raise DataError(f"{path}: pickled files are refused, for unpickling runs any code in them; save the arrays as npz")
    expected = "a folder, csv, tsv, txt, parquet, npz, npy, idx (also .gz) or CIFAR's .bin"
    raise DataError(f"{path}: not a kind of file that is read here; expected {expected}")


def from_arrays(found: LabelledArrays, options: ReadOptions) -> Records:
    """Arrays as records."""
    store = ArrayStore(found.arrays, found.sources, video=options.video)
    labels = found.labels
    if labels is not None:
        labels = np.asarray(labels)
        labels = label_text(labels) if labels.ndim == 1 else labels
    names = tuple(map(str, range(labels.shape[1]))) if labels is not None and labels.ndim == 2 else ("label",)
    return Records(store, np.arange(len(store)), labels, names)


def label_text(labels: np.ndarray) -> np.ndarray:
    """Labels as text; 3.0 is 3, and NaN is no label."""
    if labels.dtype.kind == "f":
        known = np.isfinite(labels)
        whole = np.array_equal(labels[known], np.rint(labels[known]))
        numbers = np.where(known, labels, 0).astype(np.int64) if whole else labels
        return np.where(known, np.array([str(number) for number in numbers.tolist()], dtype=object), "")
    return np.array([label.decode() if isinstance(label, bytes) else str(label) for label in labels.tolist()], dtype=object)


def read_mapping(source: Mapping[str, str], options: ReadOptions) -> Records:
    """Images and labels in files of their own."""
    unknown = set(source) - {"images", "labels"}
    if unknown or "images" not in source:
        raise ConfigError(f"a source with parts must hold images and labels, found {sorted(source)}")
    parts = {}
    for name, file in source.items():
        path = Path(file).expanduser()
        if not path.is_file():
            raise DataError(f"{path}: there is no such file")
        parts[name] = read_npy(path) if path.suffix == ".npy" else next(iter(read_array_file(path, options).values())).arrays[0]
    return from_arrays(labelled(parts["images"], str(source["images"]), parts.get("labels")), options)


# -- tables


def read_table(path: Path, options: ReadOptions) -> dict[str, Records]:
    """A table of paths and labels: csv, tsv, parquet, or txt with `path label` lines.

    Raises:
        DataError: if a column is missing or the table is empty.
    """
    frame, places = load_table(path, options.header)
    columns = [str(name) for name in frame.columns]
    path_column: Any = options.path_column
    label_columns: list[Any] = as_list(options.label_column)
    if not options.header or bare_suffix(path) == ".txt":
        path_column, label_columns = frame.columns[0], list(frame.columns[1:2]) if label_columns else []
    for column in [path_column, *as_list(options.split_column), *as_list(options.group_column)]:
        if column not in frame:
            raise DataError(
                f"{path}: there is no column {column!r}; found {', '.join(columns)} (data.path_column and the like name it)"
            )
    missing = [column for column in label_columns if column not in frame]
    if missing and label_columns != ["label"]:
        raise DataError(f"{path}: there is no column {missing[0]!r}; found {', '.join(columns)} (data.label_column names it)")
    records = table_records(frame, places, path, path_column, [] if missing else label_columns, options)
    if options.split_column is None and "split" not in frame:
        return {"all": records}
    return table_splits(frame[options.split_column or "split"].astype(str), records, path)


def load_table(path: Path, header: bool) -> tuple[pd.DataFrame, list[str]]:
    """A table with text in its cells, and file and line (parquet: row) of each entry."""
    kind = bare_suffix(path)
    if kind == ".parquet":
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a table ({error})") from None
        # What is missing is an empty cell, not a class called nan.
        frame = frame.astype(object).where(frame.notna(), "").astype(str)
        places = [f"{path}, row {row + 1}" for row in range(len(frame))]
    elif kind == ".txt":
        lines = [(i, line) for i, line in enumerate(decode(read_bytes(path)).splitlines(), start=1) if line.strip()]
        # The label is the last word: names of files may hold blanks.
        frame = pd.DataFrame([line.rsplit(maxsplit=1) for _, line in lines], dtype=str).fillna("")
        places = [f"{path}, line {i}" for i, _ in lines]
    else:
        found = read_text_table(path, header=header)
        frame, places = found.frame, [f"{path}, line {line}" for line in found.lines]
    if frame.empty:
        raise DataError(f"{path}: the table has no rows")
    return frame, places


def table_records(
    frame: pd.DataFrame, places: list[str], table: Path, path_column: Any, label_columns: list[Any], options: ReadOptions
) -> Records:
    """A table's rows; whether their files exist is looked at later."""
    root = Path(options.root).expanduser() if options.root else table.parent
    names = [str(cell).strip() for cell in frame[path_column]]
    if "" in names:
        raise DataError(f"{places[names.index('')]}: no path in the column {path_column!r}")
    paths = [root / posix_name(name, root) for name in names]
    store = VideoStore(paths, places) if options.video else ImageFiles(paths, places)
    labels = frame[label_columns].to_numpy(dtype=object) if label_columns else None
    if labels is not None and len(label_columns) == 1:
        labels = labels[:, 0]
    groups = frame[options.group_column].to_numpy(dtype=object) if options.group_column else None
    return Records(store, np.arange(len(frame)), labels, tuple(map(str, label_columns)) or ("label",), groups)


def posix_name(name: str, root: Path) -> str:
    """A path as Windows writes it (photos\\1.png) with the separators of other systems, unless a file has that very name."""
    return name if "\\" not in name or (root / name).exists() else name.replace("\\", "/")


def table_splits(column: Any, records: Records, path: Path) -> dict[str, Records]:
    """Records by the names in a column."""
    names = np.array([SPLITS.get(name.strip().lower(), "") for name in column], dtype=object)
    unknown = np.flatnonzero(names == "")
    if len(unknown):
        row = int(unknown[0])
        raise DataError(f"{records.where(row)}: the split {column.iloc[row]!r} is none of train, val and test")
    return {str(name): records.select(np.flatnonzero(names == name)) for name in np.unique(names)}


def as_list(value: Any) -> list[Any]:
    """None, one or several as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)


# -- folders


def read_folder(folder: Path, options: ReadOptions) -> dict[str, Records]:
    """MNIST's or CIFAR's files, folders train, val and test, or one folder per class."""
    if not options.video:
        arrays = idx_folder(folder) or cifar_folder(folder)
        if arrays:
            return {split: from_arrays(found, options) for split, found in arrays.items()}
    parts = split_folders(folder)
    if parts:
        return {split: class_folders(child, options) for split, child in parts.items()}
    return {"all": class_folders(folder, options)}


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of train, val and test in a folder; none where such a name is a class, as `train` is beside `bus`."""
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    parts = {SPLITS[child.name.lower()]: child for child in children if child.name.lower() in SPLITS}
    # Beside folders of other names, splits are told from classes by the classes that they hold.
    alone = len(parts) == len(children)
    return parts if alone or any(entry.is_dir() for child in parts.values() for entry in child.iterdir()) else {}


def class_folders(folder: Path, options: ReadOptions) -> Records:
    """One folder per class; files that lie in the folder itself have no label, and are passed over if a class is wanted.

    Raises:
        DataError: if there is no file of the expected kinds.
    """
    ignored: Counter[str] = Counter()
    paths, labels = [], []
    children = sorted((child for child in folder.iterdir() if not child.name.startswith(".")), key=natural_key)
    for child in children:
        if options.video and is_frame_folder(child):
            own, label = [child], None
        elif child.is_dir():
            own, label = items_in(child, options.video, ignored), child.name
        else:
            own, label = kept([child], options.video, ignored), None
        paths += own
        labels += [label] * len(own)
    if not paths:
        suffixes = VIDEOS if options.video else IMAGES
        raise DataError(
            f"{folder}: found no {'videos' if options.video else 'images'} ({', '.join(suffixes)}); "
            "expected one folder per class" + (", in it video files, or a folder of frames per video" if options.video else "")
        )
    known = any(label is not None for label in labels)
    if known and options.label_column is not None and None in labels:
        # A contact sheet beside the classes' folders does not take the labels of all others away.
        ignored["outside of the classes' folders"] = labels.count(None)
        paths = [path for path, label in zip(paths, labels, strict=True) if label is not None]
        labels = [label for label in labels if label is not None]
    known = known and None not in labels
    store = VideoStore(paths) if options.video else ImageFiles(paths)
    return Records(store, np.arange(len(paths)), np.array(labels, dtype=object) if known else None, ignored=dict(ignored))


def items_in(folder: Path, video: bool, ignored: Counter[str]) -> list[Path]:
    """The images, or the videos and frame folders, anywhere below a class's folder."""
    if not video:
        return kept(sorted((path for path in folder.rglob("*") if path.is_file()), key=str), video, ignored)
    found = []
    for child in sorted(folder.iterdir(), key=natural_key):
        if child.is_dir():
            found += [child] if is_frame_folder(child) else items_in(child, video, ignored)
        else:
            found += kept([child], video, ignored)
    return found


def kept(paths: Sequence[Path], video: bool, ignored: Counter[str]) -> list[Path]:
    """Files of the expected kinds; the others are counted."""
    suffixes = VIDEOS if video else IMAGES
    found = []
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in suffixes:
            found.append(path)
        else:
            ignored[path.suffix.lower() or "no suffix"] += 1
    return found


def is_frame_folder(path: Path) -> bool:
    """Whether a folder holds images directly, and no videos: then they are a video's frames."""
    if not path.is_dir():
        return False
    suffixes = {child.suffix.lower() for child in path.iterdir() if child.is_file() and not child.name.startswith(".")}
    # A GIF is a video by itself.
    return bool(suffixes & set(IMAGES) - set(VIDEOS)) and not suffixes & set(VIDEOS)
