"""Whole genomes as token ids on disk, read through a memory map: larger than RAM, compressed sources included.

A FASTA file is streamed once into one byte per base; later runs and all processes map the same file. The cache is
keyed by path, size and modification time, so a changed source gets a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longseq.domains.dna.formats import FASTA_SUFFIXES, class_stem, file_format, iterate_fasta_pieces, open_binary, record_id
from longseq.domains.dna.sequences import Sequences
from longseq.domains.dna.tokenizer import N_ID, UNK_ID, encode_bytes, invalid_characters
from longseq.errors import DataError

_FORMAT_VERSION = 1
_TOKENS, _INDEX = "tokens.bin", "index.json"


def default_cache_dir() -> Path:
    """LONGSEQ_CACHE if set, else ~/.cache/longseq."""
    return Path(os.environ.get("LONGSEQ_CACHE", "") or Path.home() / ".cache" / "longseq").expanduser()


class TokenCache(Sequences):
    """The records of FASTA files as one memory-mapped array of token ids.

    Args:
        folder: The cache, as `build_token_cache` wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        self.names: tuple[str, ...] = tuple(index["names"])
        offsets = np.concatenate([[0], np.cumsum(index["lengths"])]).astype(np.int64)
        self._row = {name: i for i, name in enumerate(self.names)}
        super().__init__(np.memmap(folder / _TOKENS, dtype=np.uint8, mode="r", shape=(int(offsets[-1]),)), offsets)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the file again; pickling the map itself would copy the genome.
        return TokenCache, (self.folder,)

    def record(self, name: str) -> NDArray[np.uint8]:
        """The ids of one record, a view of the map."""
        return self[self._row[name]]


def build_token_cache(
    paths: str | Path | Sequence[str | Path], cache_dir: str | Path | None = None, *, invalid: str = "error"
) -> TokenCache:
    """Opens the cache of these FASTA files, building it if it is absent.

    Args:
        paths: One or several FASTA files, compressed or not. A record name that occurs in several files gets its
            file's stem in front ("yeast:chrI").
        cache_dir: Where caches are kept; by default LONGSEQ_CACHE or ~/.cache/longseq.
        invalid: "error" refuses characters that are no nucleotide codes, "N" reads them as N.

    Returns:
        The memory-mapped tokens.

    Raises:
        DataError: A file is absent, damaged, no FASTA, or holds something else than DNA.

    Cost: reads each file once in 16 MiB blocks and writes one byte a base; nothing where the cache stands already.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise DataError("no FASTA file given for the token cache")
    folder = Path(cache_dir or default_cache_dir()).expanduser() / "dna" / f"{class_stem(files[0])}-{_key(files, invalid)}"
    if _is_complete(folder):
        return TokenCache(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name and renamed: a killed run leaves no half cache, and of two processes one wins.
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        _write(files, temporary, invalid)
        if folder.exists() and not _is_complete(folder):
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError:
            if not _is_complete(folder):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return TokenCache(folder)


def _key(files: list[Path], invalid: str) -> str:
    described = [f"{_FORMAT_VERSION} {invalid}"]
    for path in files:
        with open_binary(path):  # its errors name an absent, empty or unreadable file
            stat = path.stat()
        described.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def _is_complete(folder: Path) -> bool:
    try:
        lengths = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["lengths"]
        return (folder / _TOKENS).stat().st_size == sum(lengths)
    except (OSError, ValueError, KeyError):
        return False


def _write(files: list[Path], folder: Path, invalid: str) -> None:
    owners: list[Path] = []
    names: list[str] = []
    lengths: list[int] = []
    with (folder / _TOKENS).open("wb") as output:
        for path in files:
            if file_format(path) not in FASTA_SUFFIXES:
                raise DataError(f"{path}: a genome must be FASTA ({', '.join(FASTA_SUFFIXES)}, also .gz)")
            before = len(names)
            with open_binary(path) as handle:
                for header, piece in iterate_fasta_pieces(handle, path):
                    if header is not None:
                        owners.append(path)
                        names.append(record_id(header) or f"record{len(names) + 1}")
                        lengths.append(0)
                        continue
                    ids = _checked_ids(piece, f"{path}, record {len(names) - before} ({names[-1]!r})", lengths[-1], invalid)
                    lengths[-1] += len(ids)
                    output.write(ids.data)
            if len(names) == before:
                raise DataError(f"{path}: the file holds no FASTA record")
    if 0 in lengths:
        row = lengths.index(0)
        raise DataError(f"{owners[row]}, record {names[row]!r}: the sequence is empty; remove such records")
    index = {"names": _unique(names, owners), "lengths": lengths, "files": [str(path) for path in files]}
    (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def _checked_ids(piece: bytes, place: str, done: int, invalid: str) -> NDArray[np.uint8]:
    ids = encode_bytes(piece)
    unknown = ids == UNK_ID
    if not unknown.any():
        return ids
    if invalid == "N":
        return np.where(unknown, np.uint8(N_ID), ids)
    raise DataError(
        f"{place} is not DNA: after {done} bases it holds {invalid_characters(piece)}. "
        "Expected A, C, G, T, U, N or IUPAC codes; set invalid=N to read other characters as N"
    )


def _unique(names: list[str], owners: list[Path]) -> list[str]:
    if len(set(names)) == len(names):
        return names
    counts = {name: names.count(name) for name in set(names)}
    result = [f"{class_stem(path)}:{name}" if counts[name] > 1 else name for name, path in zip(names, owners, strict=True)]
    if len(set(result)) < len(result):
        twice = next(name for name in result if result.count(name) > 1)
        raise DataError(f"the record name {twice!r} occurs twice; names must be unique within a genome")
    return result
