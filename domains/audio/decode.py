"""From CTC's scores to text: the best symbol of each frame, or a beam search over prefixes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

BLANK_ID = 0


def greedy_decode(log_probs: np.ndarray) -> list[int]:
    """The likeliest symbol of each frame, repetitions merged, blanks dropped.

    Args:
        log_probs: (F, V), V's first entry the blank.
    """
    best = log_probs.argmax(1)
    changed = np.concatenate([[True], best[1:] != best[:-1]])
    return best[changed & (best != BLANK_ID)].tolist()


def beam_decode(log_probs: np.ndarray, width: int = 16, prune: float = -12.0) -> list[int]:
    """The likeliest text over all its alignments, by prefix beam search.

    Every prefix carries the probability of having ended with a blank and with its last symbol, because a repeated symbol
    is a new one only after a blank.

    Args:
        log_probs: (F, V), natural logarithms, V's first entry the blank.
        width: prefixes kept after each frame.
        prune: symbols less likely than this (natural logarithm) extend no prefix in a frame.

    Cost: O(F width V) at most.

    Paper: Graves, Supervised Sequence Labelling with Recurrent Neural Networks, section 7.5.3; in this form
    https://arxiv.org/abs/1408.2873, algorithm 1, without a language model.
    """
    never = -math.inf
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, never)}
    for frame in log_probs:
        symbols = [int(s) for s in np.flatnonzero(frame > prune) if s != BLANK_ID]
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [never, never])
        for prefix, (blank, symbol) in beams.items():
            either = log_add(blank, symbol)
            grown[prefix][0] = log_add(grown[prefix][0], either + float(frame[BLANK_ID]))
            if prefix:
                # The last symbol once more, without a blank between: the same text.
                grown[prefix][1] = log_add(grown[prefix][1], symbol + float(frame[prefix[-1]]))
            for s in symbols:
                came = blank if prefix and s == prefix[-1] else either
                longer = (*prefix, s)
                grown[longer][1] = log_add(grown[longer][1], came + float(frame[s]))
        ranked = sorted(grown.items(), key=lambda item: -log_add(*item[1]))[:width]
        beams = {prefix: (scores[0], scores[1]) for prefix, scores in ranked}
    return list(max(beams, key=lambda prefix: log_add(*beams[prefix])))


def log_add(a: float, b: float) -> float:
    """`log(exp(a) + exp(b))`."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def decode_batch(log_probs: Sequence[np.ndarray], beam_width: int) -> list[list[int]]:
    """Symbols of each row; a beam of 1 takes the best of each frame."""
    return [greedy_decode(row) if beam_width <= 1 else beam_decode(row, beam_width) for row in log_probs]
