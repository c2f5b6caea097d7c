"""Signal along a genome from bedGraph and bigWig files, as means over bins; bases without a value count as 0."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.formats import class_stem, file_format, missing_file, open_binary
from longseq.domains.dna.genome import unknown_chromosome
from longseq.errors import DataError

BEDGRAPH_SUFFIXES = (".bedgraph", ".bdg", ".bg")
BIGWIG_SUFFIXES = (".bw", ".bigwig")


class Track(Protocol):
    """One signal along a genome."""

    name: str
    path: str

    @property
    def chroms(self) -> Sequence[str]:
        """The chromosomes that the file has values for."""
        ...

    def end(self, chrom: str) -> int:
        """Behind the last base of a chromosome that the file knows of."""
        ...

    def bins(self, chrom: str, start: int, n_bins: int, bin_size: int) -> NDArray[np.float32]:
        """Means over `n_bins` bins from `start` on, (n_bins,); bases without a value count as 0."""
        ...


class BedGraphTrack:
    """A bedGraph file (chrom, start, end, value; also gzipped), in memory: 24 bytes a line.

    Args:
        path: The file.
        name: What to call the track.

    Raises:
        DataError: The file is no bedGraph, holds several tracks, or intervals that overlap.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = str(path), name
        frame = _read_bedgraph(path)
        self._parts: dict[str, tuple[NDArray[Any], ...]] = {}
        for chrom, part in frame.groupby("chrom", sort=False):
            ordered = part.sort_values("start", kind="stable")
            starts, ends, values = (ordered[column].to_numpy() for column in ("start", "end", "value"))
            clash = np.flatnonzero(starts[1:] < ends[:-1])
            if len(clash):
                first = int(clash[0])
                raise DataError(
                    f"{path}: {chrom}:{starts[first]}-{ends[first]} and {chrom}:{starts[first + 1]}-{ends[first + 1]} overlap; "
                    "a bedGraph has one value for each base. Merge them, e.g. with bedtools merge -c 4 -o mean"
                )
            sums = np.concatenate([[0.0], np.cumsum(values * (ends - starts))])
            self._parts[str(chrom)] = (starts, ends, values, sums)

    @property
    def chroms(self) -> Sequence[str]:
        """The chromosomes of the file."""
        return tuple(self._parts)

    def end(self, chrom: str) -> int:
        """End of the chromosome's last interval."""
        return int(self._parts[chrom][1][-1])

    def bins(self, chrom: str, start: int, n_bins: int, bin_size: int) -> NDArray[np.float32]:
        """Means over bins."""
        edges = start + bin_size * np.arange(n_bins + 1, dtype=np.int64)
        if chrom not in self._parts:
            return np.zeros(n_bins, dtype=np.float32)
        starts, ends, values, sums = self._parts[chrom]
        # The integral up to each edge: whole intervals before it, and a part of the one it lies in.
        last = np.searchsorted(starts, edges, side="right") - 1
        inside = np.clip(np.minimum(edges, ends[last]) - starts[last], 0, None)
        integral = np.where(last >= 0, sums[last] + values[last] * inside, 0.0)
        return (np.diff(integral) / bin_size).astype(np.float32)


def _read_bedgraph(path: Path) -> pd.DataFrame:
    with open_binary(path) as handle:
        content = handle.read()
    skipped = 0
    while content.startswith((b"track", b"browser", b"#")):
        skipped += 1
        content = content[content.find(b"\n") + 1 :] if b"\n" in content else b""
    if b"\ntrack" in content:
        raise DataError(f"{path}: holds several tracks; write each into a file of its own")
    try:
        # Only the form of the lines here; numbers are read below, so that a bad one can be named.
        frame = pd.read_csv(io.BytesIO(content), sep=r"\s+", header=None, dtype=str, comment="#", keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a bedGraph file (chrom, start, end, value): {error}") from error
    if frame.shape[1] != 4:
        raise DataError(f"{path}: {frame.shape[1]} columns, where bedGraph has four: chrom, start, end, value")
    numbers: Any = frame[[1, 2, 3]].apply(pd.to_numeric, errors="coerce")
    bad = ~np.isfinite(numbers.to_numpy(dtype=np.float64)).all(1) | (numbers[1] < 0).to_numpy()
    bad |= (numbers[2] <= numbers[1]).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{path}, line {row + 1 + skipped}: {' '.join(frame.iloc[row].tolist())!r}, where chrom, start, a larger end and "
            "a finite value were expected"
        )
    columns = {"chrom": frame[0], "start": numbers[1].astype(np.int64), "end": numbers[2].astype(np.int64)}
    return pd.DataFrame({**columns, "value": numbers[3].astype(np.float64)})


class BigWigTrack:
    """A bigWig file, read where it stands through its index.

    Args:
        path: The file.
        name: What to call the track.

    Raises:
        DataError: The file is absent or no bigWig.
        ImportError: pyBigWig is not installed.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = str(path), name
        self._handle: Any = None
        if not path.is_file():
            raise missing_file(path)
        self._sizes: dict[str, int] = dict(self._open().chroms())

    def _open(self) -> Any:
        # Opened once in each process: a handle does not survive a fork or a pickle.
        if self._handle is None:
            try:
                import pyBigWig
            except ImportError as error:
                raise ImportError(f"{self.path}: bigWig files need pyBigWig: pip install 'longseq[tracks]'") from error
            try:
                self._handle = pyBigWig.open(self.path)
                readable = self._handle is not None and self._handle.isBigWig()
            except RuntimeError:
                readable = False
            if not readable:
                raise DataError(f"{self.path}: not a bigWig file, or a damaged one; copy or download it again")
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    @property
    def chroms(self) -> Sequence[str]:
        """The chromosomes of the file."""
        return tuple(self._sizes)

    def end(self, chrom: str) -> int:
        """The chromosome's length in the file's header."""
        return self._sizes[chrom]

    def bins(self, chrom: str, start: int, n_bins: int, bin_size: int) -> NDArray[np.float32]:
        """Means over bins."""
        values = np.zeros(n_bins * bin_size, dtype=np.float32)
        first, last = max(start, 0), min(start + len(values), self._sizes.get(chrom, 0))
        if first < last:
            found = np.asarray(self._open().values(chrom, first, last, numpy=True), dtype=np.float32)
            values[first - start : last - start] = np.nan_to_num(found, nan=0.0)
        return values.reshape(n_bins, bin_size).mean(1, dtype=np.float64).astype(np.float32)


def open_tracks(source: str | Path | Sequence[str] | Mapping[str, str]) -> list[Track]:
    """Opens the tracks that `data.tracks` names.

    Args:
        source: A file, a list of files (called by their names), or a mapping of names to files.

    Raises:
        DataError: A file cannot be read, has no such format, or two tracks have one name.
    """
    if isinstance(source, Mapping):
        named = [(str(name), Path(path).expanduser()) for name, path in source.items()]
    else:
        paths = [Path(path).expanduser() for path in ([source] if isinstance(source, str | Path) else source)]
        named = [(_stem(path), path) for path in paths]
    if not named:
        raise DataError("data.tracks names no file")
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise DataError(f"data.tracks: two tracks have one name in {names}; give a mapping such as {{a: x.bw, b: y/x.bw}}")
    return [_open_track(path, name) for name, path in named]


def _stem(path: Path) -> str:
    name = class_stem(path)
    while Path(name).suffix.lower() in (*BEDGRAPH_SUFFIXES, *BIGWIG_SUFFIXES, ".gz"):
        name = Path(name).stem
    return name


def _open_track(path: Path, name: str) -> Track:
    suffix = file_format(path)
    if suffix in BEDGRAPH_SUFFIXES:
        return BedGraphTrack(path, name)
    if suffix in BIGWIG_SUFFIXES:
        return BigWigTrack(path, name)
    known = ", ".join((*BEDGRAPH_SUFFIXES, *BIGWIG_SUFFIXES))
    raise DataError(f"{path}: unknown track format {suffix or '(no suffix)'}; supported are {known}, bedGraph also .gz")


def check_lengths(track: Track, lengths: Mapping[str, int], genome: str) -> None:
    """Raises DataError if a track goes on behind the end of a chromosome: it is another assembly's."""
    for chrom in track.chroms:
        if chrom in lengths and track.end(chrom) > lengths[chrom]:
            raise DataError(
                f"{track.path}: {chrom} has {track.end(chrom):,} bases there, but {lengths[chrom]:,} in {genome}; is the track "
                "of the same assembly?"
            )


def check_chromosomes(track: Track, wanted: Iterable[str]) -> list[str]:
    """Chromosomes of the rows that a track has no values for.

    Raises:
        DataError: It has none of them: the file is another assembly's, or its names are written otherwise.
    """
    wanted = list(dict.fromkeys(wanted))
    absent = [name for name in wanted if name not in track.chroms]
    if len(absent) == len(wanted):
        raise DataError(f"{track.path}: no values on any chromosome of the rows: {unknown_chromosome(wanted[0], track.chroms)}")
    return absent
