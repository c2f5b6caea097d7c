"""Metrics in the field's own unit: bits per base."""

import math

from longseq.domains.base import Row


def language_scores(bits: float) -> Row:
    """The metrics of a language model that needs so many bits per base; 2 is a guess among four bases."""
    return {"bits_per_base": bits, "loss": bits * math.log(2), "perplexity": 2.0**bits}
