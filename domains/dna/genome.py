"""Random access into a genome FASTA, and the intervals of BED files as sequences fetched on demand.

An uncompressed FASTA is read in place through its .fai index (built by pyfaidx where absent); a compressed one, or
one whose lines are wrapped unevenly, through the token cache. Either way the genome is never in memory.
"""

from __future__ import annotations

import difflib
import io
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longseq.domains.dna.formats import FASTA_SUFFIXES, file_format, open_binary
from longseq.domains.dna.token_cache import TokenCache, build_token_cache, default_cache_dir
from longseq.domains.dna.tokenizer import ENCODE_TABLE, N_ID, UNK_ID, invalid_characters, reverse_complement_ids
from longseq.errors import DataError


class Genome:
    """A FASTA file whose stretches are read on demand.

    Args:
        path: The FASTA file, compressed or not.
        cache_dir: Where to keep what cannot stand beside the file: the token cache of a compressed genome, the
            index of one in a read-only folder. By default LONGSEQ_CACHE or ~/.cache/longseq.

    Raises:
        DataError: The file is absent, damaged, or no FASTA.
    """

    def __init__(self, path: str | Path, cache_dir: str | Path | None = None) -> None:
        self.path = Path(path)
        self.cache_dir = Path(cache_dir or default_cache_dir()).expanduser()
        self._map: mmap.mmap | None = None
        self._cache: TokenCache | None = None
        # name -> (bases, first byte, bases a line, bytes a line), as in a .fai file
        self._index: dict[str, tuple[int, int, int, int]] = {}
        if file_format(self.path) not in FASTA_SUFFIXES:
            raise DataError(f"{self.path}: a genome must be FASTA ({', '.join(FASTA_SUFFIXES)}, also .gz)")
        with open_binary(self.path) as handle:
            plain = isinstance(handle, io.BufferedReader)
        if not plain or not self._read_index():
            self._cache = build_token_cache(self.path, self.cache_dir)
            self.lengths = dict(zip(self._cache.names, map(int, self._cache.lengths), strict=True))
        else:
            self.lengths = {name: entry[0] for name, entry in self._index.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The records, in the file's order."""
        return tuple(self.lengths)

    def fetch(self, name: str, start: int, end: int, strand: str = "+") -> NDArray[np.uint8]:
        """The token ids of an interval; what lies outside the chromosome is N.

        Args:
            name: The chromosome.
            start: First base, from 0; may be negative.
            end: Behind the last base; may lie beyond the chromosome.
            strand: "-" gives the reverse complement.

        Returns:
            Token ids, uint8, (end - start,).

        Raises:
            DataError: No such chromosome, or the interval holds something else than DNA.
        """
        if name not in self.lengths:
            raise DataError(f"{self.path}: {unknown_chromosome(name, self.names)}")
        inner_start, inner_end = max(start, 0), min(end, self.lengths[name])
        ids = np.full(end - start, N_ID, dtype=np.uint8)
        if inner_start < inner_end:
            ids[inner_start - start : inner_end - start] = self._read(name, inner_start, inner_end)
        return reverse_complement_ids(ids) if strand == "-" else ids

    def _read(self, name: str, start: int, end: int) -> NDArray[np.uint8]:
        if self._cache is not None:
            return self._cache.record(name)[start:end]
        _, offset, line_bases, line_bytes = self._index[name]
        if self._map is None:
            # Unlike a file position, a map is shared safely by the worker processes forked from this one.
            with self.path.open("rb") as handle:
                self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        first = offset + start // line_bases * line_bytes + start % line_bases
        last = offset + (end - 1) // line_bases * line_bytes + (end - 1) % line_bases + 1
        letters = self._map[first:last].translate(None, b"\r\n")
        ids = np.frombuffer(letters.translate(ENCODE_TABLE), dtype=np.uint8)
        if (ids == UNK_ID).any():
            raise DataError(f"{self.path}, {name}:{start}-{end} is not DNA: it holds {invalid_characters(letters)}")
        return ids

    def _read_index(self) -> bool:
        """Reads the .fai index, building it where it is absent or older than the file; False if lines are uneven."""
        beside = self.path.with_name(self.path.name + ".fai")
        newest = self.path.stat().st_mtime_ns
        elsewhere = self.cache_dir / "dna" / f"{self.path.name}-{self.path.stat().st_size}-{newest}.fai"
        for ready in (beside, elsewhere):
            if ready.is_file() and ready.stat().st_mtime_ns >= newest and self._parse_index(ready):
                return True
        target = beside if os.access(self.path.parent, os.W_OK) else elsewhere
        target.parent.mkdir(parents=True, exist_ok=True)
        return self._build_index(target) and self._parse_index(target)

    def _parse_index(self, file: Path) -> bool:
        """Takes an index over; False if it is damaged, cut short, or of another file: then bases would be others' bases."""
        found: dict[str, tuple[int, int, int, int]] = {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, *numbers = line.split("\t")
            if len(numbers) < 4 or not all(number.isdecimal() for number in numbers[:4]):
                return False
            if name in found:
                raise DataError(f"{self.path}: the record name {name!r} occurs twice; names must be unique within a genome")
            bases, offset, line_bases, line_bytes = map(int, numbers[:4])
            found[name] = (bases, offset, max(line_bases, 1), max(line_bytes, 1))
        with self.path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = 0
            for name, (bases, offset, line_bases, line_bytes) in found.items():
                header = content[content.rfind(b"\n", 0, max(offset - 1, 0)) + 1 : offset]
                words = header[1:].split()
                # What stands between two records is the header of the second, and nothing else.
                if header[:1] != b">" or (words or [b""])[0] != name.encode() or content[end : offset - len(header)].strip():
                    return False
                end = offset + max(bases - 1, 0) // line_bases * line_bytes + (bases - 1) % line_bases + 1 if bases else offset
            if not found or content[end:].strip():
                return False
        self._index = found
        return True

    def _build_index(self, target: Path) -> bool:
        from pyfaidx import Faidx, FastaIndexingError

        # pyfaidx writes in place; under another name and renamed, no other process sees half an index.
        with tempfile.TemporaryDirectory(prefix=".faidx-", dir=target.parent) as folder:
            temporary = Path(folder) / "index.fai"
            try:
                Faidx(str(self.path), indexname=str(temporary)).close()
            except FastaIndexingError as error:
                if "not consistent" in str(error):
                    return False
                raise DataError(f"{self.path}: not a FASTA file: {error}") from error
            except ValueError as error:
                raise DataError(f"{self.path}: {error}: record names must be unique within a genome") from error
            temporary.replace(target)
        return True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}


def unknown_chromosome(name: str, known: Sequence[str]) -> str:
    """Says that a chromosome is unknown, and which name was probably meant ("chr1" against "1", "chrM" against "MT")."""
    other = name[3:] if name.lower().startswith("chr") else f"chr{name}"
    other = {"M": "MT", "chrMT": "chrM"}.get(other, other)
    shown = ", ".join(known[:8]) + (f", ... {len(known)} in all" if len(known) > 8 else "")
    if other in known:
        style = "without" if name.lower().startswith("chr") else "with"
        return (
            f"unknown chromosome {name!r}; the genome calls it {other!r}: its names are written {style} 'chr'. "
            "Rename the chromosomes in one of the two files"
        )
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown chromosome {name!r}{hint}; the genome has {shown}"


class IntervalSequences:
    """Genome intervals as sequences, fetched when asked for.

    Args:
        genome: The genome.
        chroms: Chromosome of each interval, (N,).
        starts: First base, from 0, (N,).
        ends: Behind the last base, (N,).
        strands: "+", "-" or ".", (N,); "-" gives the reverse complement.
        length: Resize every interval to this many bases around its centre; None leaves them as they are. What
            reaches over a chromosome's end is N.
    """

    def __init__(
        self,
        genome: Genome,
        chroms: NDArray[Any],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        strands: NDArray[Any],
        length: int | None = None,
    ) -> None:
        if length is not None and length < 1:
            raise ValueError(f"length must be at least 1, found {length}")
        self.genome = genome
        self.chroms, self.strands = chroms, strands
        if length is not None:
            starts = (starts + ends) // 2 - length // 2
            ends = starts + length
        self.starts, self.ends = starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.genome.fetch(self.chroms[index], int(self.starts[index]), int(self.ends[index]), self.strands[index])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bases of each interval, (N,)."""
        return self.ends - self.starts

    def select(self, indices: ArrayLike) -> IntervalSequences:
        """The intervals with these indices, or of this boolean mask."""
        rows = np.asarray(indices)
        return IntervalSequences(self.genome, self.chroms[rows], self.starts[rows], self.ends[rows], self.strands[rows])

    @classmethod
    def join(cls, stores: Sequence[IntervalSequences]) -> IntervalSequences:
        """One store of several over the same genome."""
        first = stores[0]
        if any(store.genome.path != first.genome.path for store in stores):
            raise DataError("intervals of different genomes cannot be joined in one table")
        chroms, starts, ends, strands = (
            np.concatenate([getattr(store, column) for store in stores]) for column in ("chroms", "starts", "ends", "strands")
        )
        return cls(first.genome, chroms, starts, ends, strands)
