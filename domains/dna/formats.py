"""Opens sequence files, compressed or not, and reads their records: FASTA, FASTQ, GenBank and plain lines.

Every failure of the file itself (absent, cut off, not what its name says) becomes a DataError that names it.
"""

from __future__ import annotations

import difflib
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.sequences import Sequences
from longseq.domains.dna.tokenizer import invalid_characters
from longseq.errors import DataError

FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".ffn", ".frn", ".fas")
FASTQ_SUFFIXES = (".fq", ".fastq")
GENBANK_SUFFIXES = (".gb", ".gbk", ".gbff", ".genbank")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
BED_SUFFIXES = (".bed", ".narrowpeak", ".broadpeak")
LINE_SUFFIXES = (".txt",)
RECORD_SUFFIXES = (*FASTA_SUFFIXES, *FASTQ_SUFFIXES, *GENBANK_SUFFIXES, *LINE_SUFFIXES)
COMPRESSION_SUFFIXES = (".gz", ".bgz", ".bgzf")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITESPACE = b" \t\r\n\v\f"

ByteReader: TypeAlias = io.BufferedReader | gzip.GzipFile


def file_format(path: Path) -> str:
    """The format suffix of a file, in lower case, without the one of its compression ("a.fa.gz" -> ".fa")."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def class_stem(path: Path) -> str:
    """The file's name without its format and compression: the class of a one-file-per-class layout."""
    name = path.name
    while Path(name).suffix.lower() in COMPRESSION_SUFFIXES:
        name = Path(name).stem
    supported = (*RECORD_SUFFIXES, *TABLE_SUFFIXES, *BED_SUFFIXES)
    return Path(name).stem if Path(name).suffix.lower() in supported else name


@contextmanager
def open_binary(path: Path) -> Iterator[ByteReader]:
    """Opens a file for reading, through gzip where its first bytes say so, whatever its name is.

    Raises:
        DataError: The file is absent, empty, a directory, or compressed data end early or are damaged.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.peek(2)[:2]
            if not magic:
                raise DataError(f"{path}: the file is empty")
            if magic == b"\x1f\x8b":
                with gzip.open(raw) as handle:
                    yield handle
            elif path.suffix.lower() in COMPRESSION_SUFFIXES:
                raise DataError(f"{path}: the name ends in {path.suffix}, but the content is not gzip; rename or compress it")
            else:
                yield raw
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: a directory, where a file was expected") from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the compressed data end early or are damaged ({error}); copy or download the file again"
        ) from error


def missing_file(path: Path) -> DataError:
    """An error for an absent file that lists the nearest names in its folder."""
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    where = "" if folder.is_dir() else f" (the folder {folder} does not exist either)"
    return DataError(f"{path}: no such file{where}{hint}")


def iterate_fasta_pieces(handle: ByteReader, path: Path, block_size: int = 1 << 24) -> Iterator[tuple[str | None, bytes]]:
    """Streams a FASTA file in bounded memory, whatever the length of its lines and records.

    Args:
        handle: The opened file.
        path: Its name, for errors.
        block_size: Bytes read at a time.

    Yields:
        (header, b"") where a record begins, then (None, letters) for pieces of its sequence, without whitespace.

    Raises:
        DataError: Text stands before the first header.
    """
    header = bytearray()
    in_header = seen_header = False
    line_start = first = True
    while data := handle.read(block_size):
        # Some editors begin every text with a mark.
        position = len(BYTE_ORDER_MARK) if first and data.startswith(BYTE_ORDER_MARK) else 0
        first = False
        while position < len(data):
            if in_header:
                end = data.find(b"\n", position)
                header += data[position : end if end >= 0 else len(data)]
                position = end + 1 if end >= 0 else len(data)
                if end >= 0:
                    yield header.decode("utf-8", "replace").strip(), b""
                    header, in_header, line_start = bytearray(), False, True
                continue
            if line_start and data[position] == ord(">"):
                in_header = seen_header = True
                position += 1
                continue
            end = data.find(b"\n>", position)
            stop = end + 1 if end >= 0 else len(data)
            piece = data[position:stop].translate(None, _WHITESPACE)
            if piece and not seen_header:
                found = data[position:stop].strip().split(b"\n")[0][:40].decode("utf-8", "replace")
                raise DataError(f"{path}, line 1: a FASTA file begins with '>' and a name; found {found!r}")
            if piece:
                yield None, piece
            line_start = data[stop - 1] == ord("\n")
            position = stop
    if in_header:
        yield header.decode("utf-8", "replace").strip(), b""


def iterate_records(path: Path) -> Iterator[tuple[str, bytes]]:
    """Reads the records of a FASTA, FASTQ, GenBank or one-sequence-per-line file.

    Args:
        path: The file; its suffix names the format.

    Yields:
        The whole header line (for GenBank: id and description; for plain lines: empty) and the letters.

    Raises:
        DataError: The file cannot be read as that format.
    """
    suffix = file_format(path)
    with open_binary(path) as handle:
        if suffix in FASTA_SUFFIXES:
            yield from _fasta(handle, path)
        elif suffix in FASTQ_SUFFIXES:
            yield from _fastq(handle, path)
        elif suffix in GENBANK_SUFFIXES:
            yield from _genbank(handle, path)
        else:
            yield from _lines(handle, path)


def _fasta(handle: ByteReader, path: Path) -> Iterator[tuple[str, bytes]]:
    header: str | None = None
    pieces: list[bytes] = []
    for found, piece in iterate_fasta_pieces(handle, path):
        if found is None:
            pieces.append(piece)
            continue
        if header is not None:
            yield header, b"".join(pieces)
        header, pieces = found, []
    if header is not None:
        yield header, b"".join(pieces)


def _fastq(handle: ByteReader, path: Path) -> Iterator[tuple[str, bytes]]:
    from Bio.SeqIO.QualityIO import FastqGeneralIterator

    number = 0
    try:
        with io.TextIOWrapper(handle, encoding="latin-1") as text:
            for header, sequence, _ in FastqGeneralIterator(text):
                number += 1
                yield header, sequence.encode("ascii", "replace")
    except ValueError as error:
        raise DataError(f"{path}, record {number + 1}: not a FASTQ record: {error}") from error


def _genbank(handle: ByteReader, path: Path) -> Iterator[tuple[str, bytes]]:
    from Bio import BiopythonWarning, SeqIO
    from Bio.Seq import UndefinedSequenceError

    number = 0
    with warnings.catch_warnings():
        # Biopython warns of unusual LOCUS lines and annotations; only the sequence is used here.
        warnings.simplefilter("ignore", BiopythonWarning)
        try:
            with io.TextIOWrapper(handle, encoding="utf-8", errors="replace") as text:
                for record in SeqIO.parse(text, "genbank"):
                    number += 1
                    yield f"{record.id} {record.description}", bytes(record.seq)
        except UndefinedSequenceError as error:
            raise DataError(
                f"{path}, record {number}: the GenBank record holds no sequence (features only); "
                "download it with its ORIGIN section"
            ) from error
        except ValueError as error:
            raise DataError(f"{path}, record {number + 1}: not a GenBank record: {error}") from error


def _lines(handle: ByteReader, path: Path) -> Iterator[tuple[str, bytes]]:
    if handle.peek(1)[:1] == b">":
        yield from _fasta(handle, path)
        return
    for line in handle:
        if letters := line.strip():
            yield "", letters


def read_records(path: Path, *, invalid: str = "error", bad: BadRows | None = None) -> tuple[Sequences, list[str]]:
    """Reads all records of a file into memory.

    Args:
        path: A FASTA, FASTQ, GenBank or one-sequence-per-line file, compressed or not.
        invalid: "error" refuses characters that are no nucleotide codes, "N" reads them as N.
        bad: Counts records that are empty or no DNA where such rows are skipped; None refuses them.

    Returns:
        The sequences and their whole header lines.

    Raises:
        DataError: The file holds no record, or a record is empty or no DNA.

    Cost: memory of about the uncompressed sequence.
    """
    letters = bytearray()
    headers: list[str] = []
    lengths: list[int] = []
    for number, (header, sequence) in enumerate(iterate_records(path), start=1):
        if bad is not None and bad.skip and (problem := sequence_problem(sequence, invalid)):
            bad.add(f"{path}, record {number} ({record_id(header)!r}): {problem}")
            continue
        letters += sequence
        lengths.append(len(sequence))
        headers.append(header)
    if not headers and bad is not None and bad.count:
        raise DataError(f"{path}: none of its {bad.count} records can be used; the first: {bad.first}")
    if not headers:
        raise DataError(f"{path}: the file holds no record of the format that its name says ({file_format(path) or 'text'})")

    def describe(i: int) -> str:
        return f"{path}, record {i + 1}" + (f" ({record_id(headers[i])!r})" if headers[i] else "")

    return Sequences.from_letters(letters, np.array(lengths, dtype=np.int64), describe, invalid=invalid), headers


def sequence_problem(letters: str | bytes, invalid: str) -> str:
    """Why a sequence cannot be used; empty if it can."""
    if not letters:
        return "the sequence is empty"
    found = invalid_characters(letters) if invalid == "error" else ""
    return f"not DNA: it holds {found}" if found else ""


def record_id(header: str) -> str:
    """The first word of a header line."""
    words = re.split(r"\s", header, maxsplit=1)
    return words[0]
