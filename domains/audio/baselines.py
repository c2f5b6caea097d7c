"""What a trained model must beat: the commonest answer, an SVM on cepstral coefficients, a Markov chain over mu-law levels.

They are fitted on train and val together; nothing is chosen on val. Recordings beyond a limit are thinned out evenly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from longseq.domains.audio.rows import ClipRows
from longseq.domains.audio.targets import Labelled
from longseq.domains.audio.tokenizer import LEVELS, mulaw_encode
from longseq.domains.base import Row
from longseq.domains.tasks import Task
from longseq.embeddings_audio import MFCCEmbedding

N_MFCC, SEGMENTS = 20, 8
# An RBF SVM's cost grows with the square of the rows.
MOST_ROWS = 6000
# Levels are merged for higher orders, whose tables would have 256^order rows.
MARKOV_BINS = {1: 256, 2: 64, 3: 32}


def segment_features(rows: ClipRows, index: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Means of 20 cepstral coefficients (25 ms windows, 10 ms apart) over 8 equal parts of every clip, (N, 160) float32.

    Args:
        rows: the clips.
        index: which of them; None for all.
    """
    rate = rows.tokenizer.sample_rate_hz
    front = MFCCEmbedding(1, sample_rate_hz=rate, n_mfcc=N_MFCC, n_mels=40, f_min=64.0, floor=1e-8)
    found = []
    with torch.no_grad():
        for i in range(len(rows)) if index is None else index:
            samples = torch.from_numpy(rows.read(int(i)).samples)
            found.append(segment_means(front.features(samples.unsqueeze(0))[0].numpy()))
    return np.stack(found)


def segment_means(features_FC: np.ndarray) -> np.ndarray:
    """Means over 8 equal parts, side by side; of fewer frames than parts, the nearest frame of each."""
    if len(features_FC) < SEGMENTS:
        features_FC = features_FC[np.arange(SEGMENTS) * len(features_FC) // SEGMENTS]
    return np.concatenate([part.mean(0) for part in np.array_split(features_FC, SEGMENTS)]).astype(np.float32)


def evenly(n_rows: int, most: int = MOST_ROWS) -> np.ndarray:
    """At most so many row numbers, evenly spread."""
    return np.unique(np.linspace(0, n_rows - 1, min(most, n_rows)).astype(np.int64))


def svm_predictions(task: str, train: Sequence[tuple[ClipRows, np.ndarray]], test: ClipRows, n_classes: int) -> np.ndarray:
    """Scores of test clips by an SVM with an RBF kernel on standardised features.

    Args:
        task: `classification`, `multilabel` or `regression`.
        train: rows with their labels: classes (N,), 0/1 per tag (N, K), or quantities (N, K).
        test: rows to answer for.
        n_classes: of a classification.

    Returns:
        Probabilities (N, C) that rank as the SVM's decisions do, or quantities (N, K).
    """
    chosen = [(rows, labels, evenly(len(rows))) for rows, labels in train]
    features = np.concatenate([segment_features(rows, index) for rows, _, index in chosen])
    labels = np.concatenate([labels[index] for _, labels, index in chosen])
    unseen = segment_features(test)
    if task == "classification":
        model = fit_svc(features, labels)
        scores = model.decision_function(unseen)
        # One column for two classes, and as many as were seen for more.
        full = np.full((len(unseen), n_classes), -1e3)
        full[:, model.classes_] = np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
        return softmax(full)
    columns = [fit_column(task, features, labels[:, k], unseen) for k in range(labels.shape[1])]
    return np.stack(columns, 1)


def fit_svc(features: np.ndarray, labels: np.ndarray) -> Any:
    """The classifier: standardisation, then an SVM with C = 10 and one score per class."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(C=10.0, break_ties=True, decision_function_shape="ovr")).fit(features, labels)


def fit_column(task: str, features: np.ndarray, labels: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """One tag's probabilities, or one quantity."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    if task == "regression":
        mean, scale = float(labels.mean()), float(labels.std()) or 1.0
        model = make_pipeline(StandardScaler(), SVR(C=10.0)).fit(features, (labels - mean) / scale)
        return model.predict(unseen) * scale + mean
    if labels.min() == labels.max():
        return np.full(len(unseen), float(labels[0]))
    return 1.0 / (1.0 + np.exp(-2.0 * fit_svc(features, labels.astype(np.int64)).decision_function(unseen)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Positive numbers that sum to 1 in each row."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def constant_predictions(task: str, labels: np.ndarray, n_rows: int, n_classes: int) -> np.ndarray:
    """The same answer for every clip: shares of the classes, of each tag, or means."""
    answer = np.bincount(labels, minlength=n_classes) / len(labels) if task == "classification" else labels.mean(0)
    return np.broadcast_to(answer, (n_rows, len(answer))).astype(np.float64)


def commonest_text(texts: Sequence[str]) -> str:
    """The transcript that stands most often in train; of equally common ones, that nearest to the median length."""
    counts = Counter(texts)
    most = max(counts.values())
    middle = float(np.median([len(text) for text in texts]))
    return min((text for text, n in counts.items() if n == most), key=lambda text: (abs(len(text) - middle), text))


def markov_bits(train: ClipRows, test: ClipRows, *, most: int = 500) -> dict[str, float]:
    """Bits per sample of mu-law levels under counts of what follows what, with half a count added.

    Higher orders know the levels before only coarsely; mixing in the order below keeps unseen contexts harmless.

    Args:
        train: counted.
        test: measured.
        most: recordings counted and measured, evenly spread.
    """
    trained = [mulaw_encode(train.read(int(i)).samples) for i in evenly(len(train), most)]
    tested = [mulaw_encode(test.read(int(i)).samples) for i in evenly(len(test), most)]
    counts = np.bincount(np.concatenate(trained), minlength=LEVELS)[None]
    tables, bits = [(0, (counts + 0.5) / (counts.sum() + 0.5 * LEVELS))], {"uniform": 8.0}
    for order, bins in MARKOV_BINS.items():
        counted = np.zeros((bins**order, LEVELS), dtype=np.float32)
        for levels in trained:
            np.add.at(counted, (contexts(levels, order, bins), levels[order:]), 1.0)
        tables.append((order, counted))
    for depth in range(len(tables)):
        total, n = 0.0, 0
        for levels in tested:
            chance = chances(levels, tables[: depth + 1])
            total, n = total - float(np.log2(chance).sum()), n + len(chance)
        bits["level frequencies" if depth == 0 else f"Markov order {depth}"] = total / max(1, n)
    return bits


def contexts(levels: np.ndarray, order: int, bins: int) -> np.ndarray:
    """A number for the `order` levels before each level, from the order-th on."""
    coarse = levels.astype(np.int64) * bins // LEVELS
    found = np.zeros(len(levels) - order, dtype=np.int64)
    for back in range(order, 0, -1):
        found = found * bins + coarse[order - back : len(levels) - back]
    return found


def chances(levels: np.ndarray, tables: Sequence[tuple[int, np.ndarray]], weight: float = 8.0) -> np.ndarray:
    """The probability of every level from the second on; each order adds its counts to `weight` times the order below."""
    chance = tables[0][1][0, levels[1:]].astype(np.float64)
    for order, counted in tables[1:]:
        context = contexts(levels, order, MARKOV_BINS[order])
        seen, total = counted[context, levels[order:]], counted.sum(1)[context]
        known = chance[order - 1 :]
        chance[order - 1 :] = (seen + weight * known) / (total + weight)
    return chance


def score_baselines(rows: Mapping[str, ClipRows], labelled: Labelled, task: Task) -> dict[str, Row]:
    """Every baseline that a task has, scored on test by the task's own metrics.

    Args:
        rows: of train, val and test.
        labelled: their labels.
        task: the model's.
    """
    if task.name == "masked_sound":
        return {}
    if task.name == "lm":
        return {name: {**language_scores(bits)} for name, bits in markov_bits(rows["train"], rows["test"]).items()}
    if task.name == "ctc":
        return {"commonest transcript": text_scores(labelled, task)}
    if task.name == "frames":
        return {"majority": {**frame_scores(rows, len(labelled.labels), task)}}
    arrays = labelled.arrays
    known = [(rows[name], arrays[name]) for name in ("train", "val")]
    labels, n = np.concatenate([array for _, array in known]), len(labelled.labels)
    name = "mean" if task.name == "regression" else "majority"
    found = {
        name: constant_predictions(task.name, labels, len(rows["test"]), n),
        "MFCC + SVM": svm_predictions(task.name, known, rows["test"], n),
    }
    truth = torch.from_numpy(arrays["test"])
    return {name: {**task.score_predictions(torch.from_numpy(p).float(), truth)} for name, p in found.items()}


def text_scores(labelled: Labelled, task: Task) -> Row:
    """The commonest transcript of train as the answer to every test clip."""
    metrics = task.metrics()
    metrics.update([commonest_text(labelled.texts["train"])] * len(labelled.texts["test"]), labelled.texts["test"])
    return {name: float(value) for name, value in metrics.compute().items()}


def frame_scores(rows: Mapping[str, ClipRows], n_labels: int, task: Task) -> dict[str, float]:
    """The shares of train as the answer at every frame."""
    frames = {name: [rows[name][i]["frames"] for i in range(len(rows[name]))] for name in ("train", "test")}
    shares = np.bincount(np.concatenate(frames["train"]), minlength=n_labels) + 0.5
    labels = torch.from_numpy(np.concatenate(frames["test"]))
    predicted = torch.from_numpy(np.broadcast_to(shares / shares.sum(), (len(labels), len(shares))).copy())
    return task.score_predictions(predicted.float().log()[None], labels[None])


def language_scores(bits: float) -> dict[str, float]:
    """The metrics of a language model that needs so many bits per sample."""
    return {"bits_per_sample": bits, "loss": bits * math.log(2), "perplexity": 2.0**bits}
