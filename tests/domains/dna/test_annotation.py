"""Labels of bases: splice sites of both strands, nested features, strands, and what is no annotation."""

from pathlib import Path

import pytest

from longseq.domains.dna.annotation import Annotation, read_annotation
from longseq.errors import ConfigError, DataError

GTF = """##description
chr1\tx\tgene\t11\t60\t.\t+\t.\tgene_id "g";
chr1\tx\texon\t11\t20\t.\t+\t.\tgene_id "g"; transcript_id "t1";
chr1\tx\texon\t31\t40\t.\t+\t.\tgene_id "g"; transcript_id "t1";
chr1\tx\texon\t51\t60\t.\t+\t.\tgene_id "g"; transcript_id "t1";
chr1\tx\texon\t71\t75\t.\t-\t.\tgene_id "h"; transcript_id "t2";
chr1\tx\texon\t81\t90\t.\t-\t.\tgene_id "h"; transcript_id "t2";
"""


def labels(annotation: Annotation, start: int, end: int, strand: str = ".") -> dict[int, str]:
    codes = annotation.codes("chr1", start, end, strand)
    return {start + i: annotation.names[code] for i, code in enumerate(codes.tolist()) if code}


@pytest.mark.parametrize("gff3", [False, True])
def test_splice_sites_of_both_strands(tmp_path: Path, gff3: bool) -> None:
    text = GTF.replace('gene_id "g"; transcript_id "t1";', "ID=e;Parent=t1").replace(
        'gene_id "h"; transcript_id "t2";', "Parent=t2"
    )
    path = tmp_path / ("x.gff3" if gff3 else "x.gtf")
    path.write_text(text if gff3 else GTF)
    annotation = Annotation(read_annotation(path, "splice_sites", None))
    assert annotation.names == ("none", "acceptor", "donor")
    plus = {19: "donor", 30: "acceptor", 39: "donor", 50: "acceptor"}
    # On the minus strand the right exon comes first.
    minus = {80: "donor", 74: "acceptor"}
    assert labels(annotation, 0, 100) == plus | minus
    assert labels(annotation, 0, 100, "+") == plus
    assert labels(annotation, 0, 100, "-") == minus
    assert labels(annotation, 35, 45) == {39: "donor"}


def test_the_shorter_feature_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.gtf"
    path.write_text(GTF)
    annotation = Annotation(read_annotation(path, ["gene", "exon"], None))
    found = labels(annotation, 0, 65)
    assert {found[i] for i in (10, 19, 30)} == {"exon"}
    assert found[25] == "gene"
    assert 9 not in found and 60 not in found
    # A window inside a long feature whose start lies before it.
    assert labels(annotation, 22, 24) == {22: "gene", 23: "gene"}


def test_bed_and_bedgraph_labels(tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("chr1\t5\t7\tpromoter\t0\t-\nchr1\t9\t10\tTATA\t0\t+\n")
    annotation = Annotation(read_annotation(tmp_path / "x.bed", None, None))
    assert labels(annotation, 0, 20) == {5: "promoter", 6: "promoter", 9: "TATA"}
    assert labels(annotation, 0, 20, "+") == {9: "TATA"}
    (tmp_path / "x.bedgraph").write_text("chr1\t5\t7\t2\nchr1\t7\t8\t1.0\n")
    assert labels(Annotation(read_annotation(tmp_path / "x.bedgraph", None, None)), 0, 9) == {5: "2", 6: "2", 7: "1"}


def test_what_is_no_annotation_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gtf").write_text(GTF)
    with pytest.raises(DataError, match="'CDS', but it holds"):
        read_annotation(tmp_path / "x.gtf", ["CDS"], None)
    (tmp_path / "y.gff").write_text("chr1\tx\texon\t11\t5\t.\t+\t.\tParent=t\n")
    # In the file's own counting, from 1.
    with pytest.raises(DataError, match=r"line 1: from 11 to 5 is not an interval"):
        read_annotation(tmp_path / "y.gff", None, None)
    (tmp_path / "y.gff").write_text("chr1\tx\texon\t1\t5\t.\t+\t.\tID=a\n")
    with pytest.raises(DataError, match="line 1: the exon names no transcript"):
        read_annotation(tmp_path / "y.gff", "splice_sites", None)
    (tmp_path / "x.bed").write_text("chr1\t5\t7\ta\n")
    with pytest.raises(ConfigError, match="needs the exons"):
        read_annotation(tmp_path / "x.bed", "splice_sites", None)
    with pytest.raises(DataError, match="unknown annotation format"):
        read_annotation(tmp_path / "x.txt", None, None)
