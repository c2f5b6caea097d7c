"""Variants of a VCF file, checked against the genome: one for each alternative allele."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.formats import open_binary
from longseq.domains.dna.genome import Genome, unknown_chromosome
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.errors import DataError

_LETTERS = re.compile(r"[ACGT]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Variant:
    """One alternative allele.

    Attributes:
        chrom: As the genome calls it.
        pos: First base of the reference allele, from 1, as in the file.
        id: The file's name for it, or ".".
        ref: The reference allele, upper case.
        alt: The alternative allele, upper case.
    """

    chrom: str
    pos: int
    id: str
    ref: str
    alt: str


def read_vcf(path: str | Path, genome: Genome, *, longest: int, bad: BadRows) -> list[Variant]:
    """Reads all variants.

    Args:
        path: A VCF file, also gzipped (bgzip); a header is not needed. Columns behind ALT are not read.
        genome: Against which REF is checked.
        longest: Bases of an allele at most.
        bad: What is done about lines and alleles that cannot be scored: REF is not what the genome has, an unknown
            chromosome, a symbolic allele (<DEL>, breakends, *), N, a longer allele.

    Raises:
        DataError: The file is no VCF, or a line cannot be scored and bad ones are not skipped.
    """
    file = Path(path).expanduser()
    variants = []
    for number, fields in _lines(file):
        where = f"{file}, line {number}"
        problem = _line_problem(fields, genome)
        if problem:
            bad.add(f"{where}: {problem}")
            continue
        chrom, pos, name, ref = fields[0], int(fields[1]), fields[2], fields[3].upper()
        for alt in fields[4].split(","):
            problem = _allele_problem(ref, alt.upper(), longest)
            if problem:
                bad.add(f"{where}: {problem}")
            else:
                variants.append(Variant(chrom, pos, name, ref, alt.upper()))
    if not variants:
        why = f"; {bad.message()}" if bad.count else ""
        raise DataError(f"{file}: no variant to score{why}")
    return variants


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    with open_binary(path) as handle, io.TextIOWrapper(handle, encoding="utf-8", errors="replace") as text:
        for number, line in enumerate(text, start=1):
            if line.startswith("#") or not line.strip():
                continue
            fields = line.rstrip("\r\n").split("\t", 5)
            if len(fields) < 5:
                raise DataError(
                    f"{path}, line {number}: {len(fields)} columns between tabs, where VCF has CHROM, POS, ID, REF, ALT first"
                )
            yield number, fields


def _line_problem(fields: list[str], genome: Genome) -> str:
    """Why a line cannot be scored; empty if it can."""
    chrom, pos, _, ref, alts = fields[:5]
    if not pos.isdigit() or int(pos) < 1:
        return f"POS is {pos!r}, where a whole number from 1 was expected"
    if chrom not in genome.lengths:
        return f"{unknown_chromosome(chrom, genome.names)} ({genome.path})"
    if not _LETTERS.fullmatch(ref):
        return f"REF is {ref!r}, where A, C, G and T were expected"
    start = int(pos) - 1
    if start + len(ref) > genome.lengths[chrom]:
        return f"{chrom}:{pos} lies beyond the chromosome's end at {genome.lengths[chrom]}"
    found = NucleotideTokenizer().decode(genome.fetch(chrom, start, start + len(ref)))
    if found == ref.upper():
        return ""
    if "N" in found:
        return f"{chrom}:{pos} lies in a region of N ({found[:20]}) in {genome.path}"
    if found in alts.upper().split(","):
        return (
            f"REF is {ref[:20]!r}, but {genome.path} has ALT {found[:20]!r} at {chrom}:{pos}: REF and ALT seem to be exchanged"
        )
    return f"REF is {ref[:20]!r}, but {genome.path} has {found[:20]!r} at {chrom}:{pos}; is it the assembly of these variants?"


def _allele_problem(ref: str, alt: str, longest: int) -> str:
    if not _LETTERS.fullmatch(alt):
        kind = "no alternative allele" if alt in (".", "") else f"the allele {alt[:20]!r} is no sequence"
        return f"{kind}; only A, C, G and T can be scored"
    if alt == ref:
        return f"REF and ALT are both {ref[:20]!r}"
    if max(len(ref), len(alt)) > longest:
        return f"an allele of {max(len(ref), len(alt))} bases, more than half of the model's window ({longest})"
    return ""
