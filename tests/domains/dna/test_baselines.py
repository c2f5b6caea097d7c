"""k-mer counts, linear models over them, and Markov models, against plain Python and known answers."""

from collections import Counter
from math import log2

import numpy as np
import pytest

from longseq.domains.dna.baselines import Constant, KmerLinear, MarkovModel, fit_baselines, kmer_frequencies
from longseq.domains.dna.sequences import Sequences
from longseq.domains.dna.tokenizer import reverse_complement_text

RNG = np.random.default_rng(0)


def _random(n: int, length: int, letters: str = "ACGT") -> list[str]:
    return ["".join(RNG.choice(list(letters), length)) for _ in range(n)]


def _number(kmer: str) -> int:
    return int("".join(str("ACGT".index(base)) for base in kmer), 4)


@pytest.mark.parametrize("chunk", [1 << 22, 5])
@pytest.mark.parametrize("canonical", [False, True])
def test_kmer_frequencies_against_plain_counting(monkeypatch: pytest.MonkeyPatch, chunk: int, canonical: bool) -> None:
    monkeypatch.setattr("longseq.domains.dna.baselines._CHUNK", chunk)
    texts = [*_random(3, 17, "ACGTN"), "AC", "ACG", "NNNN"]
    found = kmer_frequencies(Sequences.from_strings(texts), 3, canonical).toarray()
    expected = np.zeros((len(texts), 64))
    for row, text in enumerate(texts):
        kmers = [text[i : i + 3] for i in range(len(text) - 2) if "N" not in text[i : i + 3]]
        if canonical:
            kmers = [min(kmer, reverse_complement_text(kmer)) for kmer in kmers]
        for kmer, count in Counter(kmers).items():
            expected[row, _number(kmer)] = count / len(kmers)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def _motif_task(n: int) -> tuple[Sequences, np.ndarray]:
    texts, targets = _random(n, 60), np.arange(n) % 3
    for i, motif in enumerate(("GATTACA", "CCCGGGA", "")):
        for row in np.flatnonzero(targets == i):
            texts[row] = texts[row][:20] + motif + texts[row][20:]
    return Sequences.from_strings(texts), targets


def test_classification() -> None:
    (train, y), (val, y_val), (test, y_test) = _motif_task(300), _motif_task(90), _motif_task(150)
    constant, linear = fit_baselines(train, y, val, y_val, task="classification", n_classes=3)
    np.testing.assert_allclose(constant.predict(test), np.full((150, 3), 1 / 3))
    predicted = linear.predict(test)
    assert predicted.shape == (150, 3)
    np.testing.assert_allclose(predicted.sum(axis=1), 1.0)
    assert (predicted.argmax(axis=1) == y_test).mean() > 0.8
    assert "chosen on val" in linear.description


def test_a_class_that_train_lacks_has_probability_zero() -> None:
    train, y = _motif_task(60)
    linear = KmerLinear(train, np.where(y == 1, 0, y), train, y, "classification", 3, ks=(2,))
    assert linear.predict(train).shape == (60, 3)
    assert (linear.predict(train)[:, 1] == 0).all()


def test_multilabel() -> None:
    (train, y), (test, y_test) = _motif_task(300), _motif_task(90)
    one_hot = np.stack([y == 0, y == 1, y >= 0], axis=1).astype(np.float32)
    constant, linear = fit_baselines(train, one_hot, test, np.eye(3)[y_test], task="multilabel")
    np.testing.assert_allclose(constant.predict(test)[0], [1 / 3, 1 / 3, 1.0], atol=1e-6)
    predicted = linear.predict(test)
    assert ((predicted[:, 0] > 0.5) == (y_test == 0)).mean() > 0.8
    assert (predicted[:, 2] == 1.0).all()


@pytest.mark.parametrize("n_targets", [None, 2])
def test_regression(n_targets: int | None) -> None:
    texts = _random(300, 80)
    gc = np.array([(text.count("G") + text.count("C")) / 80 for text in texts], dtype=np.float32)
    targets = gc if n_targets is None else np.stack([gc, 1 - gc], axis=1)
    store = Sequences.from_strings(texts)
    rows = np.arange(300)
    train, val, test = (store.select(part) for part in (rows[:200], rows[200:250], rows[250:]))
    mean, ridge = fit_baselines(train, targets[:200], val, targets[200:250], task="regression")
    errors = [((baseline.predict(test) - targets[250:]) ** 2).mean() for baseline in (mean, ridge)]
    assert mean.name == "mean"
    assert ridge.predict(test).shape == targets[250:].shape
    assert errors[1] < 0.05 * errors[0]


def test_short_sequences_limit_k() -> None:
    store = Sequences.from_strings(["ACG", "TTT"] * 10)
    _, linear = fit_baselines(store, np.arange(20) % 2, store, np.arange(20) % 2, task="classification", n_classes=2)
    assert "3-mer" in linear.description


def test_unknown_task() -> None:
    with pytest.raises(ValueError, match="classification, multilabel, regression"):
        fit_baselines(Sequences.from_strings(["A"]), np.zeros(1), Sequences.from_strings(["A"]), np.zeros(1), task="ranking")
    assert Constant(np.array([1, 1, 0]), "classification", 2).answer.tolist() == [1 / 3, 2 / 3]


@pytest.mark.parametrize("order", [0, 1, 3])
def test_markov_against_plain_counting(order: int) -> None:
    train, test = _random(4, 40, "AACGTN"), _random(3, 30, "ACGTN")
    bits = MarkovModel(order, alpha=0.5).fit(Sequences.from_strings(train)).bits_per_base(Sequences.from_strings(test))
    assert list(bits) == list(range(order + 1))
    counts: Counter[str] = Counter()
    for text in train:
        counts.update(text[i : i + order + 1] for i in range(len(text) - order))
    total, n = 0.0, 0
    for text in test:
        for i in range(len(text) - order):
            kmer = text[i : i + order + 1]
            if "N" not in kmer:
                context = sum(counts[kmer[:-1] + base] for base in "ACGT")
                total -= log2((counts[kmer] + 0.5) / (context + 2.0))
                n += 1
    assert bits[order] == pytest.approx(total / n)


def test_markov_knows_random_and_periodic_sequences() -> None:
    noise = Sequences.from_strings(_random(2, 20_000))
    bits = MarkovModel(5).fit(noise.select([0])).bits_per_base(noise.select([1]))
    assert all(1.99 < value < 2.25 for value in bits.values())
    periodic = Sequences.from_strings(["ACGGT" * 400])
    assert MarkovModel(5).fit(periodic).bits_per_base(periodic)[5] < 0.02
    assert np.isnan(MarkovModel(5).fit(periodic).bits_per_base(Sequences.from_strings(["ACG"]))[5])
    with pytest.raises(ValueError, match="order must be 0 to 11"):
        MarkovModel(12)


def test_many_labels_share_one_fit() -> None:
    rng = np.random.default_rng(0)
    store = Sequences.from_ids([rng.integers(7, 11, 60).astype(np.uint8) for _ in range(300)])
    gc = np.array([((store[i] == 8) | (store[i] == 9)).mean() for i in range(300)])
    targets = (gc[:, None] > np.linspace(0.4, 0.6, 40)).astype(np.float32)
    train, val = store.select(np.arange(200)), store.select(np.arange(200, 300))
    _, linear = fit_baselines(train, targets[:200], val, targets[200:], task="multilabel", ks=(1, 2, 6))
    predicted = linear.predict(val)
    assert predicted.shape == (100, 40) and predicted.min() >= 0 and predicted.max() <= 1
    assert "6-mer" not in linear.description and "ridge" in linear.name
    assert ((predicted[:, 20] > 0.5) == targets[200:, 20]).mean() > 0.85
