"""The token cache on disk and the windows cut from it."""

import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from longseq.domains.dna.sequences import Sequences
from longseq.domains.dna.token_cache import TokenCache, build_token_cache
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.domains.dna.windows import GenomeWindows, Region
from longseq.errors import DataError

DECODE = NucleotideTokenizer().decode


def _fasta(path: Path, **records: str) -> Path:
    content = "".join(f">{name} x\n{letters}\n" for name, letters in records.items()).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
def test_cache_holds_the_records(tmp_path: Path, name: str) -> None:
    cache = build_token_cache(_fasta(tmp_path / name, a="ACGTN", b="ttu"), tmp_path / "cache")
    assert cache.names == ("a", "b")
    assert isinstance(cache.tokens, np.memmap)
    assert [DECODE(cache[i]) for i in range(2)] == ["ACGTN", "TTT"]
    assert DECODE(cache.record("b")) == "TTT"
    again = pickle.loads(pickle.dumps(cache))
    assert isinstance(again, TokenCache)
    assert isinstance(again.tokens, np.memmap)
    assert DECODE(again[0]) == "ACGTN"


def test_cache_is_reused_and_follows_the_source(tmp_path: Path) -> None:
    path = _fasta(tmp_path / "g.fa", a="ACGT")
    folder = build_token_cache(path, tmp_path / "cache").folder
    before = (folder / "tokens.bin").stat().st_mtime_ns
    assert build_token_cache(path, tmp_path / "cache").folder == folder
    assert (folder / "tokens.bin").stat().st_mtime_ns == before
    os.utime(path, ns=(1, 1))
    assert build_token_cache(path, tmp_path / "cache").folder != folder


def test_half_a_cache_is_built_again_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = _fasta(tmp_path / "g.fa", a="ACGT")
    folder = build_token_cache(path, tmp_path / "cache").folder
    (folder / "tokens.bin").write_bytes(b"\x07")
    assert DECODE(build_token_cache(path, tmp_path / "cache")[0]) == "ACGT"
    bad = _fasta(tmp_path / "bad.fa", a="ACGT", b="MEEPQ")
    with pytest.raises(DataError, match=r"bad.fa, record 2 \('b'\) is not DNA: after 0 bases.*protein"):
        build_token_cache(bad, tmp_path / "cache")
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    assert DECODE(build_token_cache(bad, tmp_path / "cache", invalid="N")[1]) == "NNNNN"


def test_several_files_and_repeated_names(tmp_path: Path) -> None:
    files = [_fasta(tmp_path / "one.fa", chr1="AC", x="G"), _fasta(tmp_path / "two.fa.gz", chr1="TT")]
    cache = build_token_cache(files, tmp_path / "cache")
    assert cache.names == ("one:chr1", "x", "two:chr1")
    assert json.loads((cache.folder / "index.json").read_text(encoding="utf-8"))["lengths"] == [2, 1, 2]
    with pytest.raises(DataError, match="'one:chr1' occurs twice"):
        twice = tmp_path / "one.fa"
        twice.write_text(">chr1\nA\n>chr1\nC\n", encoding="utf-8")
        build_token_cache(twice, tmp_path / "cache")


def test_bad_sources(tmp_path: Path) -> None:
    empty = tmp_path / "e.fa"
    empty.write_text(">a\n>b\nAC\n", encoding="utf-8")
    with pytest.raises(DataError, match="record 'a': the sequence is empty"):
        build_token_cache(empty, tmp_path / "cache")
    with pytest.raises(DataError, match="must be FASTA"):
        build_token_cache(_fasta(tmp_path / "x.txt", a="AC"), tmp_path / "cache")
    cut = tmp_path / "cut.fa.gz"
    cut.write_bytes(gzip.compress(b">a\n" + b"ACGTTGCAAC" * 3000)[:-15])
    with pytest.raises(DataError, match="end early"):
        build_token_cache(cut, tmp_path / "cache")
    with pytest.raises(DataError, match="no FASTA file given"):
        build_token_cache([], tmp_path / "cache")


STORE = Sequences.from_strings(["AAAACCCCGG", "TTT", "GNNNNT"])


def _windows(**options: object) -> list[str]:
    windows = GenomeWindows(STORE, **options)  # type: ignore[arg-type]
    assert windows.lengths.tolist() == [len(windows[i]) for i in range(len(windows))]
    return [DECODE(windows[i]) for i in range(len(windows))]


def test_windows_never_cross_records() -> None:
    assert _windows(length=4) == ["AAAA", "CCCC", "GNNN"]
    assert _windows(length=4, min_length=2) == ["AAAA", "CCCC", "GG", "TTT", "GNNN", "NT"]
    assert _windows(length=4, stride=3) == ["AAAA", "ACCC", "CCGG", "GNNN"]
    assert _windows(length=4, stride=3, min_length=1) == ["AAAA", "ACCC", "CCGG", "TTT", "GNNN", "NNT"]
    assert _windows(length=10) == ["AAAACCCCGG"]


def test_windows_within_regions() -> None:
    assert _windows(length=3, regions=[Region(0, 2, 9), Region(2, 0, 3)]) == ["AAC", "CCC", "GNN"]
    windows = GenomeWindows(STORE, 3, regions=[Region(2, 3, 6), Region(0, 4, 7)])
    assert windows.position(0) == Region(2, 3, 6)
    assert windows.select([1]).position(0) == Region(0, 4, 7)
    with pytest.raises(DataError, match="outside its record of 3 bases"):
        GenomeWindows(STORE, 2, regions=[Region(1, 0, 4)])


def test_windows_of_n_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (1 << 24, 4, 1):
        monkeypatch.setattr("longseq.domains.dna.windows._BLOCK", block)
        assert _windows(length=3, max_n_fraction=0.5) == ["AAA", "ACC", "CCG", "TTT"]
        assert _windows(length=2, stride=1, max_n_fraction=0.5)[-2:] == ["GN", "NT"]
    with pytest.raises(DataError, match="holds more than 0% N"):
        GenomeWindows(STORE, 3, regions=[Region(2, 0, 6)], max_n_fraction=0.0)


def test_windows_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"no window of 11 bases fits: the longest of 3 regions has 10"):
        GenomeWindows(STORE, 11)
    assert GenomeWindows(STORE, 11, min_length=5).lengths.tolist() == [10, 6]
    with pytest.raises(ValueError, match="min_length between 1 and length"):
        GenomeWindows(STORE, 4, min_length=5)
