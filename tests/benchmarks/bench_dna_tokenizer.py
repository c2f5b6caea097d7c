"""How many bases a second the DNA tokenizer encodes on one core, beside a loop over characters.

Run as a script: python tests/benchmarks/bench_dna_tokenizer.py [--megabases 64]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from longseq.domains.dna.tokenizer import TOKENS, NucleotideTokenizer, reverse_complement_ids


def character_loop(sequence: str) -> list[int]:
    """What the usual character tokenizer does: one dictionary look-up per base."""
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    return [vocabulary.get(character, 6) for character in sequence.upper()]


def bases_per_second(function: Callable[[Any], Any], argument: Any, n_bases: int, repeats: int = 5) -> float:
    """The best of several runs, so that other work on the machine counts least."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function(argument)
        best = min(best, time.perf_counter() - start)
    return n_bases / best


def measure(megabases: float = 64.0) -> dict[str, float]:
    """Million bases per second of each way to encode the same random sequence."""
    n_bases = int(megabases * 1_000_000)
    letters = np.frombuffer(b"ACGTacgtN", dtype=np.uint8)
    data = letters[np.random.default_rng(0).integers(0, len(letters), n_bases, dtype=np.uint8)].tobytes()
    text, tokenizer = data.decode("ascii"), NucleotideTokenizer()
    short = text[: min(n_bases, 2_000_000)]
    ids = tokenizer.encode(data)
    rates = {
        "NucleotideTokenizer.encode, bytes": bases_per_second(tokenizer.encode, data, n_bases),
        "NucleotideTokenizer.encode, str": bases_per_second(tokenizer.encode, text, n_bases),
        "reverse_complement_ids": bases_per_second(reverse_complement_ids, ids, n_bases),
        "character loop": bases_per_second(character_loop, short, len(short), repeats=2),
    }
    return {name: rate / 1e6 for name, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabases", type=float, default=64.0)
    for name, rate in measure(parser.parse_args().megabases).items():
        print(f"{name:36s} {rate:9.1f} million bases/s")


if __name__ == "__main__":
    main()
