"""Reads people's own sequence files into one table, whatever their format and wherever the labels stand.

Formats: csv, tsv, parquet; FASTA, FASTQ, GenBank, one sequence per line; BED (and narrowPeak, broadPeak) with a
genome; all of them also gzipped. Labels: a column, one file per class, one folder per class, a pattern on the
header line, or a table of ids and labels.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.bed import has_interval_columns, interval_names, intervals, read_bed, usable_intervals
from longseq.domains.dna.formats import (
    BED_SUFFIXES,
    RECORD_SUFFIXES,
    TABLE_SUFFIXES,
    class_stem,
    file_format,
    missing_file,
    read_records,
    record_id,
    sequence_problem,
)
from longseq.domains.dna.genome import Genome
from longseq.domains.dna.labels import check_labels_present, label_text
from longseq.domains.dna.sequences import Sequences, SequenceStore, SequenceTable, concatenate_tables
from longseq.domains.dna.tables import find_column, read_table, text_column
from longseq.errors import DataError

Source: TypeAlias = str | Path | Sequence[str | Path] | Mapping[str, Any]
SUPPORTED_SUFFIXES = (*TABLE_SUFFIXES, *RECORD_SUFFIXES, *BED_SUFFIXES)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class ReadOptions:
    """How to read sequence files; the keyword arguments of `read_sequences`, which explains them."""

    sequence_column: str | int = "sequence"
    label_column: str | int | Sequence[str | int] | None = "label"
    id_column: str | int | None = None
    header: bool = True
    label_pattern: str | None = None
    label_table: str | Path | None = None
    labels: str = "optional"
    genome: str | Path | Genome | None = None
    length: int | None = None
    cache_dir: str | Path | None = None
    invalid: str = "error"
    bad: BadRows = field(default_factory=BadRows)


def read_sequences(source: Source, **options: Any) -> SequenceTable:
    """Reads sequences, and their labels where there are any, from files of any supported format.

    Args:
        source: A file; a glob pattern; a folder of class folders (also within train/ and test/), of files called
            train, val (dev) and test, or of one file per class; a list of files (tables are joined, of other files
            each is a class); or a dict class -> file(s).
        **options: The fields of `ReadOptions`:
            sequence_column, label_column, id_column: Columns of tables and BED files, by name or by number from 1.
                A list of label columns, a pattern ("tf_*") or a range of numbers ("3-921", "3-") gives labels of shape
                (N, K). label_column=None reads no labels.
            header: Whether csv and tsv files name their columns in the first line.
            label_pattern: Regular expression on the header line whose group (the one called "label", or the
                first) is the label.
            label_table: A csv, tsv or parquet file with a column of record ids (id_column, by default "id") and
                label_column.
            labels: "required" refuses unlabelled data, "optional" takes labels where they are, "none" ignores them.
            genome: The genome FASTA of a BED file or of a table with chrom, start and end columns.
            length: Bases that intervals are resized to around their centre.
            cache_dir: Where the token cache of a compressed genome is kept.
            invalid: "error" refuses characters that are no nucleotide codes, "N" reads them as N.
            bad: What is done about rows that cannot be used; by default the first is an error.

    Returns:
        The sequences in memory (intervals: fetched on demand) with ids, labels as text, and all other columns.

    Raises:
        DataError: A file, line or record cannot be used; names it, what was found and what was expected.
        ValueError: An option has no such value.

    Cost: the uncompressed file once; 32,000 rows of 100 bases take about 0.1 s, 5 million bases of gzipped FASTA 0.05 s.
    """
    settings = ReadOptions(**options)
    if settings.labels not in ("required", "optional", "none"):
        raise ValueError(f"labels must be 'required', 'optional' or 'none', found {settings.labels!r}")
    if settings.genome is not None and not isinstance(settings.genome, Genome):
        settings = replace(settings, genome=Genome(settings.genome, settings.cache_dir))
    if settings.labels == "none":
        settings = replace(settings, label_column=None, label_pattern=None, label_table=None)
    table = _read_any(source, settings)
    if settings.labels == "none":
        return replace(table, labels=None, label_names=())
    if table.labels is None and settings.labels == "required":
        raise _no_labels(table)
    return table


def _read_any(source: Source, settings: ReadOptions) -> SequenceTable:
    if isinstance(source, Mapping):
        if not source:
            raise DataError("the mapping of classes to files is empty")
        plain = _unlabelled(settings)
        return concatenate_tables([_with_class(_read_any(_plain(files), plain), str(name)) for name, files in source.items()])
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_dir():
            return _read_folder(path, settings)
        if not path.exists() and glob.has_magic(str(path)):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
            if not matches:
                raise DataError(f"{path}: no file matches this pattern")
            return _read_files([Path(match) for match in matches], settings)
        return _read_file(path, settings)
    files = [Path(item).expanduser() for item in source]
    if not files:
        raise DataError("the list of files is empty")
    return _read_files(files, settings)


def _plain(files: Any) -> Source:
    return files if isinstance(files, str | Path | Mapping) else [str(file) for file in files]


def _unlabelled(settings: ReadOptions) -> ReadOptions:
    return replace(settings, label_column=None, label_pattern=None, label_table=None, labels="none")


def _with_class(table: SequenceTable, name: str) -> SequenceTable:
    labels = np.full(len(table), name, dtype=object)
    return replace(table, labels=labels, label_names=("label",))


def _read_files(files: list[Path], settings: ReadOptions) -> SequenceTable:
    tables = [file for file in files if file_format(file) in TABLE_SUFFIXES]
    by_header = settings.label_pattern is not None or settings.label_table is not None
    if len(tables) == len(files) or by_header or settings.labels == "none":
        return concatenate_tables([_read_file(file, settings) for file in files])
    if tables:
        raise DataError(
            f"{tables[0]} is a table among files of another kind ({files[0].name}, ...); "
            "give either tables with a label column, or one sequence file per class"
        )
    optional = replace(settings, labels="optional")
    parts = [_read_file(file, optional) for file in files]
    # BED files may have a label column of their own; of files without labels each is a class.
    if len({class_stem(file) for file in files}) > 1 and all(part.labels is None for part in parts):
        parts = [_with_class(part, class_stem(file)) for part, file in zip(parts, files, strict=True)]
    return concatenate_tables(parts)


def _read_folder(folder: Path, settings: ReadOptions) -> SequenceTable:
    """A folder of class folders, of train/ and test/ folders of these, of train and test files, or of a file per class."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry.is_file() and file_format(entry) in SUPPORTED_SUFFIXES]
    if folders and files:
        raise DataError(
            f"{folder}: holds both folders ({folders[0].name}, ...) and sequence files ({files[0].name}, ...); "
            "give a folder per class, or a file per class"
        )
    if files and all(class_stem(file).lower() in SPLIT_NAMES for file in files):
        return concatenate_tables([_with_split(_read_file(file, settings), class_stem(file)) for file in files])
    if files:
        return _read_files(files, settings)
    if not folders:
        raise DataError(f"{folder}: holds no sequence file; supported are {', '.join(SUPPORTED_SUFFIXES)}, also .gz")
    if all(entry.name.lower() in SPLIT_NAMES for entry in folders):
        return concatenate_tables([_with_split(_read_folder(entry, settings), entry.name) for entry in folders])
    parts = []
    for entry in folders:
        inside = sorted(file for file in entry.rglob("*") if file.is_file() and file_format(file) in RECORD_SUFFIXES)
        if not inside:
            raise DataError(f"{entry}: the class folder holds no sequence file ({', '.join(RECORD_SUFFIXES)}, also .gz)")
        parts.append(_with_class(_read_class_folder(inside, settings), entry.name))
    return concatenate_tables(parts)


def _with_split(table: SequenceTable, name: str) -> SequenceTable:
    return replace(table, frame=table.frame.assign(split=SPLIT_NAMES[name.lower()]))


def _read_class_folder(files: list[Path], settings: ReadOptions) -> SequenceTable:
    table = concatenate_tables([_read_record_file(file, _unlabelled(settings)) for file in files])
    if len(files) < len(table):
        return table
    # One record per file: the file's name is a better id than an empty or repeated header.
    return replace(table, ids=np.array([class_stem(file) for file in files], dtype=object))


def _read_file(path: Path, settings: ReadOptions) -> SequenceTable:
    suffix = file_format(path)
    if suffix not in SUPPORTED_SUFFIXES:
        if not path.exists():
            raise missing_file(path)
        raise DataError(
            f"{path}: unknown format {suffix or '(no suffix)'}; supported are {', '.join(SUPPORTED_SUFFIXES)}, also .gz"
        )
    if suffix in TABLE_SUFFIXES:
        return _read_table_file(path, settings)
    if suffix in BED_SUFFIXES:
        return _read_bed_file(path, settings)
    return _read_record_file(path, settings)


def _read_table_file(path: Path, settings: ReadOptions) -> SequenceTable:
    frame, lines, word = read_table(path, header=settings.header)

    def where(i: int) -> str:
        return f"{path}, {word} {lines[i]}"

    in_genome = settings.genome is not None and has_interval_columns(frame)
    named = isinstance(settings.sequence_column, int) or settings.sequence_column in frame.columns
    if settings.bad.skip and (named or not in_genome):
        column = find_column(frame, settings.sequence_column, path, "sequence", "sequence_column")
        problems = [sequence_problem(text, settings.invalid) for text in text_column(frame, column, path)]
        for i, problem in enumerate(problems):
            if problem:
                settings.bad.add(f"{where(i)}: {problem}")
        frame, lines = _chosen(frame, lines, np.array([not problem for problem in problems]), path)
    elif settings.bad.skip:
        usable = usable_intervals(interval_names(frame), where, _genome(path, settings), settings.bad)
        frame, lines = _chosen(frame, lines, usable, path)
    labels, label_names = _label_columns(frame, path, settings, where)
    sequences: SequenceStore
    if not named and in_genome:
        sequences, frame = intervals(interval_names(frame), where, _genome(path, settings), settings.length)
    else:
        column = find_column(frame, settings.sequence_column, path, "sequence", "sequence_column")
        sequences = Sequences.from_strings(text_column(frame, column, path), where, invalid=settings.invalid)
        frame = frame.drop(columns=column)
    ids = np.array([str(line) for line in lines], dtype=object)
    named_ids = "id" if settings.id_column is None and "id" in frame.columns else settings.id_column
    if named_ids is not None:
        ids = frame[find_column(frame, named_ids, path, "id", "id_column")].astype(str).to_numpy(dtype=object)
    return _table(path, sequences, ids, labels, label_names, frame, lines, word)


def _read_bed_file(path: Path, settings: ReadOptions) -> SequenceTable:
    frame, lines = read_bed(path)

    def where(i: int) -> str:
        return f"{path}, line {lines[i]}"

    if settings.bad.skip:
        usable = usable_intervals(interval_names(frame), where, _genome(path, settings), settings.bad)
        frame, lines = _chosen(frame, lines, usable, path)
    labels, label_names = _label_columns(frame, path, settings, where)
    sequences, frame = intervals(interval_names(frame), where, _genome(path, settings), settings.length)
    names = zip(frame["chrom"], frame["start"], frame["end"], strict=True)
    ids = np.array([f"{chrom}:{start}-{end}" for chrom, start, end in names], dtype=object)
    return _table(path, sequences, ids, labels, label_names, frame, lines, "line")


def _chosen(
    frame: pd.DataFrame, lines: NDArray[np.int64], usable: NDArray[np.bool_], path: Path
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    if not usable.any():
        raise DataError(
            f"{path}: none of its {len(frame)} rows can be used; data.on_bad=error says what is wrong with the first"
        )
    return pd.DataFrame(frame[usable]).reset_index(drop=True), lines[usable]


def _genome(path: Path, settings: ReadOptions) -> Genome:
    if not isinstance(settings.genome, Genome):
        raise DataError(f"{path}: intervals need the genome they lie in; set genome to its FASTA file")
    return settings.genome


def _label_columns(
    frame: pd.DataFrame, path: Path, settings: ReadOptions, where: Any
) -> tuple[NDArray[Any] | None, tuple[str, ...]]:
    wanted = settings.label_column
    if wanted is None:
        return None, ()
    try:
        several = _several_columns(frame, wanted)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if several:
        wanted = several
    if isinstance(wanted, str | int):
        # The default name may be absent where labels are not required; any other must be found.
        if wanted == "label" and settings.labels == "optional" and "label" not in frame.columns:
            return None, ()
        column = find_column(frame, wanted, path, "label", "label_column")
        return label_text(frame[column]), (column,)
    columns = tuple(find_column(frame, name, path, "label", "label_column") for name in wanted)
    if not columns:
        return None, ()
    labels = _label_block(frame, columns)
    if not settings.bad.skip:
        check_labels_present(labels, where, columns)
    return labels, columns


def _label_block(frame: pd.DataFrame, columns: tuple[str, ...]) -> NDArray[Any]:
    cells = frame[list(columns)].to_numpy(dtype=object)
    # Hundreds of columns of 0 and 1 need no look at each.
    if set(pd.unique(cells.ravel())) <= {"0", "1"}:
        return cells
    return np.stack([label_text(frame[column]) for column in columns], axis=1)


def _several_columns(frame: pd.DataFrame, wanted: Any) -> list[str]:
    """The columns that a pattern such as tf_* or a range such as 3-921 names; none for anything else."""
    names = [str(column) for column in frame.columns]
    if not isinstance(wanted, str) or wanted in names:
        return []
    if span := re.fullmatch(r"(\d+)-(\d*)", wanted):
        first, last = int(span[1]), int(span[2]) if span[2] else len(names)
        if not 1 <= first <= last <= len(names):
            raise DataError(f"label_column={wanted}, but the table has columns 1 to {len(names)}")
        return names[first - 1 : last]
    return fnmatch.filter(names, wanted) if glob.has_magic(wanted) else []


def _read_record_file(path: Path, settings: ReadOptions) -> SequenceTable:
    sequences, headers = read_records(path, invalid=settings.invalid, bad=settings.bad)
    ids = np.array([record_id(header) for header in headers], dtype=object)
    lines = np.arange(1, len(headers) + 1)
    frame = pd.DataFrame({"header": headers})
    table = _table(path, sequences, ids, None, (), frame, lines, "record")
    if settings.label_pattern is not None:
        labels = _pattern_labels(table, headers, settings.label_pattern)
        return replace(table, labels=labels, label_names=("label",))
    if settings.label_table is not None:
        labels, names = _table_labels(table, Path(settings.label_table).expanduser(), settings)
        return replace(table, labels=labels, label_names=names)
    return table


def _pattern_labels(table: SequenceTable, headers: list[str], pattern: str) -> NDArray[Any]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"label_pattern={pattern!r} is not a regular expression: {error}") from error
    if expression.groups == 0:
        raise ValueError(f"label_pattern={pattern!r} has no group; put the label's part in parentheses, as in r'class=(\\w+)'")
    group: str | int = "label" if "label" in expression.groupindex else 1
    labels = np.empty(len(headers), dtype=object)
    for i, header in enumerate(headers):
        match = expression.search(header)
        if match is None or match.group(group) is None:
            raise DataError(f"{table.where(i)}: label_pattern={pattern!r} does not match the header {header[:100]!r}")
        labels[i] = match.group(group)
    return label_text(labels)


def _table_labels(table: SequenceTable, path: Path, settings: ReadOptions) -> tuple[NDArray[Any], tuple[str, ...]]:
    frame, lines, word = read_table(path, header=settings.header)
    id_column = find_column(frame, "id" if settings.id_column is None else settings.id_column, path, "record id", "id_column")
    keys = frame[id_column].astype(str).str.strip()
    labels, names = _label_columns(frame, path, replace(settings, labels="required"), lambda i: f"{path}, {word} {lines[i]}")
    if labels is None:
        raise DataError(f"{path}: label_column must name the label column of the label table")
    repeated = np.flatnonzero(keys.duplicated())
    if len(repeated):
        raise DataError(f"{path}, {word} {lines[repeated[0]]}: the id {keys.iloc[repeated[0]]!r} stands there twice")
    rows = pd.Index(keys).get_indexer(pd.Index(table.ids))
    absent = np.flatnonzero(rows < 0)
    if len(absent) and (not settings.bad.skip or len(absent) == len(table)):
        raise DataError(
            f"{table.where(int(absent[0]))}: no label in {path}, column {id_column!r}; "
            f"{len(absent)} of {len(table)} records are not listed there. data.on_bad=skip leaves such records out"
        )
    found = labels[rows].copy()
    # Records without a label are left out where labels are checked.
    found[absent] = ""
    return found, names


def _table(
    path: Path,
    sequences: SequenceStore,
    ids: NDArray[Any],
    labels: NDArray[Any] | None,
    label_names: tuple[str, ...],
    frame: pd.DataFrame,
    lines: NDArray[np.int64],
    word: str,
) -> SequenceTable:
    file_index = np.zeros(len(ids), dtype=np.int32)
    return SequenceTable(
        sequences, ids, labels, label_names, frame.reset_index(drop=True), (str(path),), file_index, lines, word
    )


def _no_labels(table: SequenceTable) -> DataError:
    files = ", ".join(table.files[:3])
    if table.place_word != "record":
        return DataError(f"{files}: no labels; set label_column to one of {list(table.frame.columns)}")
    example = str(table.frame["header"].iloc[0])[:80]
    return DataError(
        f"{files}: these files carry no labels of their own. Give one file or folder per class, a label_pattern that "
        f"finds the label in headers such as {example!r}, or a label_table with ids and labels"
    )
