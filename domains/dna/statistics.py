"""What a split holds, for the console and the report."""

from typing import Any

import numpy as np

from longseq.domains.dna.sequences import SequenceStore
from longseq.domains.dna.tokenizer import NucleotideTokenizer

SAMPLE = 2000


def describe(store: SequenceStore) -> dict[str, Any]:
    """Rows, lengths in bases, GC content and share of N; the last two from up to 2,000 rows, evenly spread."""
    lengths = np.asarray(store.lengths)
    rows = np.unique(np.linspace(0, len(lengths) - 1, min(SAMPLE, len(lengths))).astype(np.int64))
    counts = np.zeros(256, dtype=np.int64)
    for row in rows:
        counts += np.bincount(store[int(row)], minlength=256)
    a, c, g, t = (int(counts[i]) for i in NucleotideTokenizer.base_ids)
    n = int(counts[NucleotideTokenizer.n_id])
    return {
        "rows": len(lengths),
        "bases": int(lengths.sum()),
        "shortest": int(lengths.min()),
        "median length": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "GC": (c + g) / max(1, a + c + g + t),
        "N": n / max(1, int(counts.sum())),
    }
