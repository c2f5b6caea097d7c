"""CTC decoding against sums over all alignments."""

import itertools
from collections import defaultdict

import numpy as np
import pytest

from longseq.domains.audio.decode import beam_decode, decode_batch, greedy_decode


def log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def best_text(log_probs: np.ndarray) -> list[int]:
    """The likeliest text by counting every alignment."""
    totals: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = tuple(s for s, _ in itertools.groupby(path) if s != 0)
        totals[text] += float(np.exp(sum(log_probs[i, s] for i, s in enumerate(path))))
    return list(max(totals, key=lambda text: totals[text]))


@pytest.mark.parametrize("seed", range(8))
def test_the_beam_finds_the_likeliest_text(seed: int) -> None:
    log_probs = log_softmax(np.random.default_rng(seed).normal(0, 1.5, (6, 3)))
    assert beam_decode(log_probs, width=64, prune=-100.0) == best_text(log_probs)


def test_greedy_merges_repetitions_and_drops_blanks() -> None:
    path = [0, 1, 1, 0, 1, 2, 2, 0]
    log_probs = np.log(np.full((8, 3), 0.05) + 0.85 * np.eye(3)[path])
    assert greedy_decode(log_probs) == [1, 1, 2]
    assert decode_batch([log_probs, log_probs[:0].reshape(0, 3)], 8) == [[1, 1, 2], []]


def test_the_beam_beats_the_best_path() -> None:
    # The best path is blank blank (0.36), but "a" has three alignments (0.64).
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert greedy_decode(log_probs) == []
    assert beam_decode(log_probs) == [1]
