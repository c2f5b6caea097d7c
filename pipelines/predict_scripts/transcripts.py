"""From CTC's log-probabilities to text: the part of the audio predict.py that decodes."""

import numpy as np

# -- behind this line goes into predict.py


NEVER = float("-inf")
# Symbols less likely than exp(-12) in a frame extend no text.
LEAST = -12.0


def transcript(log_probabilities: np.ndarray, vocabulary: list[str], beams: int = 1) -> str:
    """The text of a sound.

    Args:
        log_probabilities: (F, V), V's first entry the blank.
        vocabulary: symbols, the blank first.
        beams: texts kept from frame to frame; 1 takes the best symbol of each frame.
    """
    ids = best_symbols(log_probabilities) if beams <= 1 else likeliest_text(log_probabilities, beams)
    words = any(len(symbol) > 1 for symbol in vocabulary[1:])
    return (" " if words else "").join(vocabulary[i] for i in ids)


def best_symbols(log_probabilities: np.ndarray) -> list[int]:
    """The best symbol of each frame, repetitions merged, blanks dropped."""
    best = log_probabilities.argmax(1)
    return best[np.concatenate([[True], best[1:] != best[:-1]]) & (best != 0)].tolist()


def likeliest_text(log_probabilities: np.ndarray, beams: int) -> list[int]:
    """The likeliest text over all its alignments, by a search over prefixes (Graves 2012, section 7.5.3).

    Each prefix carries how likely it is to have just ended in a blank, and in its last symbol: said again without a blank
    between, a symbol is still the same one.
    """
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}
    for frame in log_probabilities.astype(np.float64):
        likely = [s for s in np.flatnonzero(frame > LEAST).tolist() if s]
        paths: dict[tuple[int, ...], list[list[float]]] = {}
        for prefix, (blank, symbol) in kept.items():
            either = np.logaddexp(blank, symbol)
            after_blank, after_symbol = paths.setdefault(prefix, [[], []])
            after_blank.append(either + frame[0])
            if prefix:
                after_symbol.append(symbol + frame[prefix[-1]])
            for s in likely:
                before = blank if prefix[-1:] == (s,) else either
                paths.setdefault((*prefix, s), [[], []])[1].append(before + frame[s])
        sums = {prefix: (log_sum(blank), log_sum(symbol)) for prefix, (blank, symbol) in paths.items()}
        kept = dict(sorted(sums.items(), key=lambda item: -np.logaddexp(*item[1]))[:beams])
    return list(next(iter(kept)))


def log_sum(values: list[float]) -> float:
    """The logarithm of the sum of numbers given by their logarithms."""
    return float(np.logaddexp.reduce(values)) if values else NEVER
