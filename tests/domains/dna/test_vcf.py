"""Variants: what is read, what REF is checked against, and every kind of line that cannot be scored."""

import gzip
from pathlib import Path

import pytest

from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.genome import Genome
from longseq.domains.dna.vcf import Variant, read_vcf
from longseq.errors import ConfigError, DataError

SEQUENCE = "ACGTACGTTTGACANNNNACGTACGTGGCCAATT"


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    (tmp_path / "g.fa").write_text(f">chr1\n{SEQUENCE.lower()}\n")
    return Genome(tmp_path / "g.fa")


def read(path: Path, genome: Genome, on_bad: str = "error", longest: int = 8) -> tuple[list[Variant], BadRows]:
    bad = BadRows(on_bad)
    return read_vcf(path, genome, longest=longest, bad=bad), bad


@pytest.mark.parametrize("compressed", [False, True])
def test_alleles_of_a_line_are_variants_of_their_own(tmp_path: Path, genome: Genome, compressed: bool) -> None:
    text = (
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\nchr1\t1\trs1\tA\tc,AGG\t.\nchr1\t9\t.\tTTG\tT\t50\tPASS\tX=1\n"
    )
    path = tmp_path / ("v.vcf.gz" if compressed else "v.vcf")
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    found, bad = read(path, genome)
    assert found == [
        Variant("chr1", 1, "rs1", "A", "C"),
        Variant("chr1", 1, "rs1", "A", "AGG"),
        Variant("chr1", 9, ".", "TTG", "T"),
    ]
    assert bad.count == 0


BAD = {
    "chr1\t2\t.\tG\tT": "has 'C' at chr1:2; is it the assembly",
    "chr1\t2\t.\tG\tC": "REF and ALT seem to be exchanged",
    "1\t2\t.\tC\tT": "calls it 'chr1'",
    "chr9\t2\t.\tC\tT": "unknown chromosome 'chr9'",
    "chr1\t34\t.\tTA\tT": "beyond the chromosome's end at 34",
    "chr1\t15\t.\tA\tT": "region of N",
    "chr1\t2\t.\tN\tT": "REF is 'N'",
    "chr1\t2\t.\tC\t<DEL>": "'<DEL>' is no sequence",
    "chr1\t2\t.\tC\t*": r"'\*' is no sequence",
    "chr1\t2\t.\tC\tC[chr2:5[": "is no sequence",
    "chr1\t2\t.\tC\t.": "no alternative allele",
    "chr1\t2\t.\tC\tC": "both 'C'",
    "chr1\tx\t.\tC\tA": "POS is 'x'",
    "chr1\t0\t.\tC\tA": "POS is '0'",
    "chr1\t2\t.\tC\tCAAAAAAAAA": "an allele of 10 bases",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_lines_are_named_or_skipped(tmp_path: Path, genome: Genome, line: str) -> None:
    path = tmp_path / "v.vcf"
    path.write_text(f"#CHROM\tPOS\tID\tREF\tALT\nchr1\t1\t.\tA\tC\n{line}\n")
    with pytest.raises(DataError, match=rf"v\.vcf, line 3: .*{BAD[line]}"):
        read(path, genome)
    found, bad = read(path, genome, "skip")
    assert len(found) == 1 and bad.count == 1
    assert "line 3" in bad.message()


def test_one_bad_allele_does_not_cost_the_others(tmp_path: Path, genome: Genome) -> None:
    (tmp_path / "v.vcf").write_text("chr1\t1\t.\tA\tC,<INS>,G\n")
    found, bad = read(tmp_path / "v.vcf", genome, "skip")
    assert [v.alt for v in found] == ["C", "G"] and bad.count == 1


def test_what_is_no_vcf_is_named(tmp_path: Path, genome: Genome) -> None:
    (tmp_path / "v.vcf").write_text("chr1 1 . A C\n")
    with pytest.raises(DataError, match="line 1: 1 columns between tabs"):
        read(tmp_path / "v.vcf", genome)
    (tmp_path / "v.vcf").write_text("#CHROM\tPOS\n")
    with pytest.raises(DataError, match="no variant to score"):
        read(tmp_path / "v.vcf", genome)
    with pytest.raises(ConfigError, match="on_bad"):
        read(tmp_path / "v.vcf", genome, "drop")
