"""Tracks: bins against base-by-base means, both formats alike, and what is no track named."""

import gzip
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from longseq.domains.dna.tracks import BedGraphTrack, BigWigTrack, check_chromosomes, open_tracks
from longseq.errors import DataError


def intervals(rng: np.random.Generator, n: int = 60) -> list[tuple[int, int, float]]:
    edges = np.sort(rng.choice(1000, 2 * n, replace=False)).reshape(n, 2)
    return [(int(a), int(b), round(float(v), 2)) for (a, b), v in zip(edges, rng.normal(size=n), strict=True)]


def bases(rows: list[tuple[int, int, float]], length: int = 1200) -> np.ndarray:
    values = np.zeros(length)
    for start, end, value in rows:
        values[start:end] = value
    return values


def write(path: Path, rows: list[tuple[int, int, float]], head: str = "") -> Path:
    path.write_text(head + "".join(f"chr1\t{a}\t{b}\t{v}\n" for a, b, v in rows))
    return path


@pytest.mark.parametrize(
    ("start", "n_bins", "bin_size"), [(0, 10, 100), (37, 13, 7), (-20, 12, 10), (980, 20, 10), (5, 1, 900)]
)
def test_bins_are_means_over_bases(tmp_path: Path, start: int, n_bins: int, bin_size: int) -> None:
    rows = intervals(np.random.default_rng(0))
    track = BedGraphTrack(write(tmp_path / "x.bedGraph", rows[::-1], "track type=bedGraph\n# note\n"), "x")
    padded = np.concatenate([np.zeros(100), bases(rows)])
    expected = padded[100 + start : 100 + start + n_bins * bin_size].reshape(n_bins, bin_size).mean(1)
    np.testing.assert_allclose(track.bins("chr1", start, n_bins, bin_size), expected, atol=1e-6)
    assert not track.bins("chr2", 0, 3, 5).any()


def test_bigwig_and_compressed_bedgraph_say_the_same(tmp_path: Path) -> None:
    big = pytest.importorskip("pyBigWig")
    rows = intervals(np.random.default_rng(1))
    plain = write(tmp_path / "a.bdg", rows)
    (tmp_path / "b.bedgraph.gz").write_bytes(gzip.compress(plain.read_bytes()))
    handle = big.open(str(tmp_path / "c.bw"), "w")
    handle.addHeader([("chr1", 1200)])
    starts, ends, values = (list(column) for column in zip(*rows, strict=True))
    handle.addEntries(["chr1"] * len(rows), starts, ends=ends, values=values)
    handle.close()
    tracks = open_tracks([str(tmp_path / name) for name in ("a.bdg", "b.bedgraph.gz", "c.bw")])
    assert [track.name for track in tracks] == ["a", "b", "c"]
    tracks.append(pickle.loads(pickle.dumps(tracks[2])))
    found = [track.bins("chr1", -10, 30, 50) for track in tracks]
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, atol=1e-6)


def test_without_pybigwig_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    (tmp_path / "x.bw").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"longseq\[tracks\]"):
        BigWigTrack(tmp_path / "x.bw", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("chr1\t0\t10\t1\nchr1\t5\t20\t1\n", r"chr1:0-10 and chr1:5-20 overlap"),
        ("track a\nchr1\t0\t10\t1\nchr1\t10\t20\tx\n", r"line 3: 'chr1 10 20 x'"),
        ("chr1\t10\t10\t1\n", "line 1"),
        ("chr1\t0\t10\t1\ntrack b\nchr1\t0\t10\t1\n", "several tracks"),
        ("chr1\t0\t10\n", "3 columns"),
    ],
)
def test_what_is_no_bedgraph_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.bedgraph").write_text(content)
    with pytest.raises(DataError, match=message):
        open_tracks(str(tmp_path / "x.bedgraph"))


def test_what_is_no_track_is_named(tmp_path: Path) -> None:
    track = BedGraphTrack(write(tmp_path / "x.bedgraph", [(0, 10, 1.0)]), "x")
    assert check_chromosomes(track, ["chr1", "chr2"]) == ["chr2"]
    with pytest.raises(DataError, match="calls it 'chr1'"):
        check_chromosomes(track, ["1"])
    with pytest.raises(DataError, match="two tracks have one name"):
        open_tracks([str(tmp_path / "x.bedgraph"), str(tmp_path / "x.bedgraph")])
    with pytest.raises(DataError, match="unknown track format"):
        open_tracks(str(tmp_path / "x.wig"))
    (tmp_path / "y.bw").write_bytes(b"no bigWig at all")
    if "pyBigWig" in sys.modules or pytest.importorskip("pyBigWig"):
        with pytest.raises(DataError, match="not a bigWig"):
            open_tracks(str(tmp_path / "y.bw"))
