"""What a trained model must beat: the majority class, k-mer counts with a linear model, and a Markov model.

All of them are fitted on train alone; their settings (k, strands, strength of regularisation) are chosen on val.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from longseq.domains.dna.sequences import Sequences, SequenceStore, iterate_blocks
from longseq.domains.dna.tokenizer import A_ID, T_ID

_CHUNK = 1 << 22
TASKS = ("classification", "multilabel", "regression")
# With more labels than this they share one fit, of as many rows at most, on at most 4^5 k-mers.
MOST_LABELS, FIT_ROWS, LONGEST_SHARED = 32, 20_000, 5


class Baseline(Protocol):
    """A fitted baseline."""

    name: str
    description: str

    def predict(self, store: SequenceStore) -> NDArray[np.float64]:
        """Class probabilities (N, n_classes), label probabilities (N, K), or quantities shaped like the labels."""
        ...


def iterate_kmers(block: Sequences, k: int, canonical: bool = False) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Number and sequence of every k-mer of A, C, G and T, in order; k-mers that hold N are left out.

    Args:
        block: The sequences.
        k: Bases of a k-mer, 1 to 15.
        canonical: Give a k-mer and its reverse complement the same number, the smaller of the two.

    Yields:
        Numbers in 0..4^k - 1 (first base most significant), and the row of the sequence each lies in.

    Cost: k passes over the bases, in chunks of 4 million.
    """
    for begin in range(0, len(block.tokens), _CHUNK):
        stop = min(begin + _CHUNK + k - 1, len(block.tokens))
        n = stop - begin - k + 1
        if n <= 0:
            continue
        base = block.tokens[begin:stop] - np.uint8(A_ID)
        row = np.repeat(np.arange(len(block)), np.diff(np.clip(block.offsets, begin, stop)))
        known = base <= T_ID - A_ID
        valid = row[:n] == row[k - 1 :]
        code, other = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        for j in range(k):
            valid &= known[j : j + n]
            code = code * 4 + base[j : j + n]
            if canonical:
                other += (3 - base[j : j + n].astype(np.int64)) << (2 * j)
        if canonical:
            code = np.minimum(code, other)
        yield code[valid], row[:n][valid]


def kmer_frequencies(store: SequenceStore, k: int, canonical: bool = True) -> sparse.csr_matrix:
    """Share of each k-mer among the k-mers of each sequence, float32, (N, 4^k), sparse."""
    parts = []
    for _, block in iterate_blocks(store):
        counts = sparse.csr_matrix((len(block), 4**k), dtype=np.float32)
        for code, row in iterate_kmers(block, k, canonical):
            ones = np.ones(len(code), dtype=np.float32)
            counts = counts + sparse.coo_matrix((ones, (row, code)), shape=counts.shape).tocsr()
        totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
        parts.append(sparse.csr_matrix(sparse.diags(1.0 / totals).astype(np.float32) @ counts))
    return sparse.csr_matrix(sparse.vstack(parts)) if parts else sparse.csr_matrix((0, 4**k), dtype=np.float32)


class Constant:
    """The same answer for every sequence: class shares of train (its largest is the majority class), or the mean.

    Args:
        targets: Class numbers (N,), 0/1 (N, K), or quantities (N,) or (N, K), of train.
        task: "classification", "multilabel" or "regression".
        n_classes: Number of classes, for classification.
    """

    def __init__(self, targets: NDArray[Any], task: str, n_classes: int = 0) -> None:
        self.name = "mean" if task == "regression" else "majority"
        self.description = "the mean of train" if task == "regression" else "the shares of the classes in train"
        if task == "classification":
            self.answer = np.bincount(targets, minlength=n_classes) / len(targets)
        else:
            self.answer = np.asarray(targets, dtype=np.float64).mean(axis=0)

    def predict(self, store: SequenceStore) -> NDArray[np.float64]:
        """The answer, once for each sequence."""
        return np.broadcast_to(self.answer, (len(store), *np.shape(self.answer))).copy()


class KmerLinear:
    """Logistic (for quantities: ridge) regression on standardised k-mer frequencies.

    Args:
        train: Training sequences.
        targets: Their class numbers (N,), 0/1 (N, K), or quantities (N,) or (N, K).
        val: Sequences to choose k, strands and regularisation by.
        val_targets: Their targets.
        task: "classification", "multilabel" or "regression".
        n_classes: Number of classes, for classification.
        ks: Values of k to try.

    Cost: two fits for each k and four more; about 5 s for 32,000 sequences of 100 bases.
    """

    def __init__(
        self,
        train: SequenceStore,
        targets: NDArray[Any],
        val: SequenceStore,
        val_targets: NDArray[Any],
        task: str,
        n_classes: int = 0,
        ks: Sequence[int] = (3, 4, 5, 6),
    ) -> None:
        _check_task(task)
        self.task, self.n_classes = task, n_classes
        best: tuple[float, Any] | None = None
        shared = task == "multilabel" and targets.shape[1] > MOST_LABELS
        ridge = task == "regression" or shared
        strengths = (10.0, 1.0, 100.0, 1e3, 1e4) if ridge else (0.01, 0.001, 0.1, 1.0)
        ks = [k for k in ks if k <= LONGEST_SHARED or not shared]
        features: dict[tuple[int, bool], tuple[Any, Any]] = {}
        for k in ks:
            for canonical in (True, False):
                pair = kmer_frequencies(train, k, canonical), kmer_frequencies(val, k, canonical)
                score = self._try(pair, targets, val_targets, strengths[0])
                if best is None or score[0] > best[0]:
                    best, features = (score[0], (k, canonical, strengths[0], score[1])), {(k, canonical): pair}
        if best is None:
            raise ValueError("ks must hold at least one k")
        self.k, self.canonical, self.strength, self._fitted = best[1]
        for strength in strengths[1:]:
            score = self._try(features[self.k, self.canonical], targets, val_targets, strength)
            if score[0] > best[0]:
                best = (score[0], None)
                self.strength, self._fitted = strength, score[1]
        kind = "ridge" if ridge else "logistic"
        self.name = f"k-mer {kind} regression"
        strands = "both strands" if self.canonical else "one strand"
        self.description = f"{kind} regression on {self.k}-mer frequencies ({strands}), chosen on val"

    def _try(
        self, features: tuple[Any, Any], targets: NDArray[Any], val_targets: NDArray[Any], strength: float
    ) -> tuple[float, list[Any]]:
        fitted = _fit(features[0], targets, self.task, strength)
        return _score(self._apply(fitted, features[1]), val_targets, self.task), fitted

    def _apply(self, fitted: list[Any], features: Any) -> NDArray[np.float64]:
        scaler, *models = fitted
        scaled = scaler.transform(features)
        if self.task == "regression":
            return np.asarray(models[0].predict(scaled), dtype=np.float64)
        if self.task == "multilabel" and hasattr(models[0], "coef_") and not hasattr(models[0], "classes_"):
            # One fit for many labels: their shares, linear in the features.
            return np.clip(np.asarray(models[0].predict(scaled), dtype=np.float64).reshape(scaled.shape[0], -1), 0, 1)
        if self.task == "multilabel":
            return np.stack([_positive_share(model, scaled) for model in models], axis=1)
        probabilities = np.zeros((scaled.shape[0], max(self.n_classes, int(models[0].classes_.max()) + 1)))
        probabilities[:, models[0].classes_] = models[0].predict_proba(scaled)
        return probabilities

    def predict(self, store: SequenceStore) -> NDArray[np.float64]:
        """Class probabilities (N, n_classes), label probabilities (N, K), or quantities shaped like the labels."""
        return self._apply(self._fitted, kmer_frequencies(store, self.k, self.canonical))


def _fit(features: Any, targets: NDArray[Any], task: str, strength: float) -> list[Any]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=False).fit(features)
    scaled = scaler.transform(features)
    with warnings.catch_warnings():
        # A baseline that is stopped early is still a baseline; val decides what it is worth.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if task == "regression":
            return [scaler, Ridge(alpha=strength).fit(scaled, targets)]
        if task == "multilabel" and targets.shape[1] > MOST_LABELS:
            rows = np.unique(np.linspace(0, len(targets) - 1, min(FIT_ROWS, len(targets))).astype(np.int64))
            dense: Any = scaled
            return [scaler, Ridge(alpha=strength).fit(dense[rows].toarray(), targets[rows])]
        columns = targets.T if task == "multilabel" else [targets]
        models = []
        for column in columns:
            if len(np.unique(column)) == 1:
                models.append(float(column[0]))
                continue
            models.append(LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(scaled, column))
        return [scaler, *models]


def _positive_share(model: Any, scaled: Any) -> NDArray[np.float64]:
    # A label that all rows of train have, or none, has no model but that constant.
    if isinstance(model, float):
        return np.full(scaled.shape[0], model)
    return model.predict_proba(scaled)[:, 1]


def _score(predicted: NDArray[np.float64], targets: NDArray[Any], task: str) -> float:
    if task == "classification":
        return float((predicted.argmax(axis=1) == targets).mean())
    if task == "multilabel":
        clipped = np.clip(predicted, 1e-6, 1 - 1e-6)
        return float(np.where(targets > 0, np.log(clipped), np.log(1 - clipped)).mean())
    return -float(((predicted - targets) ** 2).mean())


def fit_baselines(
    train: SequenceStore,
    targets: NDArray[Any],
    val: SequenceStore,
    val_targets: NDArray[Any],
    *,
    task: str,
    n_classes: int = 0,
    ks: Sequence[int] = (3, 4, 5, 6),
) -> list[Baseline]:
    """Fits every baseline of a task.

    Args:
        train: Training sequences.
        targets: Class numbers (N,), 0/1 (N, K), or quantities (N,) or (N, K).
        val: Sequences that settings are chosen by.
        val_targets: Their targets.
        task: "classification", "multilabel" or "regression".
        n_classes: Number of classes, for classification.
        ks: Values of k to try; those longer than the shortest sequence are left out.

    Returns:
        The constant answer and the k-mer model.
    """
    _check_task(task)
    shortest = int(train.lengths.min())
    fitting = [k for k in ks if k <= shortest] or [1]
    linear = KmerLinear(train, targets, val, val_targets, task, n_classes, fitting)
    return [Constant(targets, task, n_classes), linear]


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, found {task!r}")


class MarkovModel:
    """The next base given the last `order` bases, from counts in train with add-alpha smoothing.

    `p(b | context) = (count(context, b) + alpha) / (count(context) + 4 alpha)`. All lower orders come from the same
    counts, and every order is scored at the same positions: those with `order` known bases before them.

    Args:
        order: Bases of context, 0 to 11.
        alpha: Added to every count.
    """

    def __init__(self, order: int = 5, alpha: float = 1.0) -> None:
        if not 0 <= order <= 11 or alpha <= 0:
            raise ValueError(f"order must be 0 to 11 and alpha positive; found order={order}, alpha={alpha}")
        self.order, self.alpha = order, alpha
        self.name = f"Markov order {order}"
        self.description = f"next base from the last {order}, counted in train, add-{alpha:g} smoothing"
        self.counts = np.zeros((4**order, 4), dtype=np.int64)

    def fit(self, store: SequenceStore) -> MarkovModel:
        """Adds the counts of these sequences."""
        self.counts += self._count(store)
        return self

    def _count(self, store: SequenceStore) -> NDArray[np.int64]:
        counts = np.zeros(4 ** (self.order + 1), dtype=np.int64)
        for _, block in iterate_blocks(store):
            for code, _ in iterate_kmers(block, self.order + 1):
                counts += np.bincount(code, minlength=len(counts))
        return counts.reshape(-1, 4)

    def bits_per_base(self, store: SequenceStore) -> dict[int, float]:
        """Mean of -log2 p over held-out bases, for every order from 0 to the model's.

        Args:
            store: Held-out sequences.

        Returns:
            Order -> bits per base; 2 is a random guess. NaN if no position has enough context.

        Cost: one count over the sequences.
        """
        held_out = self._count(store)
        n_bases = held_out.sum()
        bits: dict[int, float] = {}
        for order in range(self.order, -1, -1):
            # The oldest base of the context is the most significant digit: summing over it lowers the order by one.
            fitted = self.counts.reshape(-1, 4**order, 4).sum(axis=0)
            tested = held_out.reshape(-1, 4**order, 4).sum(axis=0)
            log_p = np.log2((fitted + self.alpha) / (fitted.sum(axis=1, keepdims=True) + 4 * self.alpha))
            bits[order] = float(-(tested * log_p).sum() / n_bases) if n_bases else float("nan")
        return dict(sorted(bits.items()))
