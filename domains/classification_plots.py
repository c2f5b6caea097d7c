"""A report's sections for predicted classes and labels: confusion, curves, calibration and the most confident mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from longseq.domains.plots import GRID, MUTED, SERIES, STYLE, new_figure, styled, thin
from longseq.domains.sections import Html, Section, clip, identity, table

CURVES = len(SERIES)
# A larger confusion matrix is no longer read; its most frequent confusions are.
MATRIX = 25
WORST = 15
# Without a warning where a class is never predicted.
ZERO: dict[str, Any] = {"zero_division": 0}


@dataclass(frozen=True)
class ClassScores:
    """Predictions of a classifier, N rows and C classes.

    Attributes:
        classes: in the order of the model's outputs.
        truth: (N,) indices of the true classes.
        probabilities: (N, C).
        rows: the columns that identify the rows.
    """

    classes: list[str]
    truth: np.ndarray
    probabilities: np.ndarray
    rows: pd.DataFrame

    @property
    def predicted(self) -> np.ndarray:
        """(N,) indices of the likeliest classes."""
        return self.probabilities.argmax(1)


def class_scores(frame: pd.DataFrame) -> ClassScores | None:
    """Reads the columns of a classifier; rows without a known label are left out."""
    first = list(frame.columns).index("prediction")
    # Only behind `prediction`: in front of it stand the user's own columns, which may begin with p_ too.
    scores = [name for name in frame.columns[first + 1 :] if str(name).startswith("p_")]
    classes = [str(name)[2:] for name in scores]
    if len(classes) < 2:
        return None
    truth = np.asarray(pd.Categorical(frame["label"].astype(str), categories=classes).codes, dtype=np.int64)
    known = (truth >= 0) & np.asarray(frame[scores].notna()).all(1)
    if not known.any():
        return None
    rows = frame.iloc[:, :first]
    return ClassScores(classes, truth[known], frame[scores].to_numpy(float)[known], rows[known].reset_index(drop=True))


def classification_sections(scores: ClassScores) -> list[Section]:
    """Confusion, ROC and precision-recall curves, calibration, figures per class and the most confident mistakes."""
    sections = [confusion(scores)]
    if len(scores.classes) > 2:
        sections.append(class_table(scores))
    return [*sections, *curve_sections(scores), reliability(scores), worst_mistakes(scores)]


def confusion(scores: ClassScores) -> Section:
    """The confusion matrix as a table of counts and row shares; of many classes, the most frequent confusions."""
    counts = confusion_matrix(scores.truth, scores.predicted, labels=range(len(scores.classes)))
    totals = counts.sum(1)
    shares = counts / np.maximum(1, totals)[:, None]
    if len(scores.classes) > MATRIX:
        return _frequent_confusions(scores.classes, counts, shares)
    rows = []
    for i, name in enumerate(scores.classes):
        cells = [_confusion_cell(int(counts[i, j]), float(shares[i, j]), i == j) for j in range(len(scores.classes))]
        rows.append([name, *cells, int(totals[i])])
    html = table(["true ↓ predicted →", *scores.classes, "rows"], rows, label="confusion matrix")
    right = int(np.trace(counts))
    caption = f"{right:,} of {int(totals.sum()):,} test rows are right. Shares are of all rows with the same true label."
    html = Html(f'<div class="confusion">{html}</div>')
    return Section("Confusion matrix", html=html, caption=caption, wide=len(scores.classes) > 4)


def _confusion_cell(count: int, share: float, right: bool) -> Html:
    kind = "right" if right else "wrong"
    return Html(f'<span class="{kind}" style="--share:{share:.3f}"><b>{count:,}</b> <small>{share:.1%}</small></span>')


def _frequent_confusions(classes: Sequence[str], counts: np.ndarray, shares: np.ndarray) -> Section:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None)[::-1][:30]
    pairs = [divmod(int(k), len(classes)) for k in order if wrong.flat[k] > 0]
    rows = [[classes[i], classes[j], int(counts[i, j]), f"{shares[i, j]:.1%}"] for i, j in pairs]
    html = table(["true", "predicted", "rows", "of the true label"], rows, label="most frequent confusions", row_heads=2)
    right = f"{int(np.trace(counts)):,} of {int(counts.sum()):,} test rows are right."
    caption = f"The most frequent of the confusions between {len(classes)} classes. {right}"
    return Section("Most frequent confusions", html=html, caption=caption)


def class_table(scores: ClassScores) -> Section:
    """Precision, recall, F1 and one-vs-rest areas of each class."""
    found: Any = precision_recall_fscore_support(scores.truth, scores.predicted, labels=range(len(scores.classes)), **ZERO)
    rows = []
    for i, name in enumerate(scores.classes):
        areas = areas_under_curves(scores.truth == i, scores.probabilities[:, i])
        rows.append([name, int(found[3][i]), *(float(found[k][i]) for k in range(3)), *areas])
    html = table(["class", "rows", "precision", "recall", "F1", "AUROC", "AUPRC"], rows, label="figures per class")
    return Section("Per class", html=html, caption="AUROC and AUPRC are one-vs-rest: this class against all others.", wide=True)


def areas_under_curves(truth: np.ndarray, scores: np.ndarray) -> list[float | None]:
    """AUROC and AUPRC; None where all rows or none are positive, for which they are not defined."""
    if not 0 < truth.sum() < len(truth):
        return [None, None]
    return [float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores))]


def curve_sections(scores: ClassScores) -> list[Section]:
    """ROC and precision-recall curves: of the second of two classes, or of each class against the rest."""
    indices = [1] if len(scores.classes) == 2 else list(range(len(scores.classes)))
    by_size = sorted(indices, key=lambda i: -int((scores.truth == i).sum()))[:CURVES]
    drawn = {scores.classes[i]: (scores.truth == i, scores.probabilities[:, i]) for i in sorted(by_size)}
    if len(indices) == 1:
        caption = f"Positive class: {scores.classes[1]}."
    else:
        caption = "One-vs-rest: each class against all others."
    if len(indices) > CURVES:
        caption += f" The {CURVES} classes with most test rows."
    return binary_curves(drawn, caption)


def binary_curves(scores: dict[str, tuple[np.ndarray, np.ndarray]], caption: str) -> list[Section]:
    """ROC and precision-recall curves.

    Args:
        scores: by name: truth (N,) as bool, and scores (N,). Names of which all rows or none are positive have no curve.
        caption: what is positive.
    """
    drawn = {name: pair for name, pair in scores.items() if 0 < pair[0].sum() < len(pair[0])}
    if not drawn:
        return []
    return [_roc(drawn, caption), _precision_recall(drawn, caption)]


@styled(STYLE)
def _roc(drawn: dict[str, tuple[np.ndarray, np.ndarray]], caption: str) -> Section:
    figure, ax = new_figure()
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
    areas = {name: float(roc_auc_score(truth, score)) for name, (truth, score) in drawn.items()}
    for name, (truth, score) in drawn.items():
        false_rate, true_rate, _ = roc_curve(truth, score)
        ax.plot(thin(false_rate, 250), thin(true_rate, 250), label=f"{clip(name)} {areas[name]:.3f}")
    ax.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(title="AUROC", loc="lower right", title_fontsize=8)
    text = ", ".join(f"{name} {area:.3f}" for name, area in areas.items())
    return Section("ROC", figure=figure, caption=f"{caption} Dotted: chance.", alt=f"ROC curves; AUROC: {text}")


@styled(STYLE)
def _precision_recall(drawn: dict[str, tuple[np.ndarray, np.ndarray]], caption: str) -> Section:
    figure, ax = new_figure()
    areas = {name: float(average_precision_score(truth, score)) for name, (truth, score) in drawn.items()}
    for i, (name, (truth, score)) in enumerate(drawn.items()):
        precision, recall, _ = precision_recall_curve(truth, score)
        ax.plot(thin(recall, 250), thin(precision, 250), color=SERIES[i], label=f"{clip(name)} {areas[name]:.3f}")
        if len(drawn) == 1:
            ax.axhline(float(truth.mean()), color=MUTED, linestyle=":", linewidth=1)
    ax.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(title="AUPRC", loc="lower left", title_fontsize=8)
    text = ", ".join(f"{name} {area:.3f}" for name, area in areas.items())
    caption += " Dotted: the share of positive rows, which is chance." if len(drawn) == 1 else ""
    return Section("Precision and recall", figure=figure, caption=caption, alt=f"precision-recall curves; AUPRC: {text}")


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, share correct and number of rows of each bin of equal width; empty bins are left out."""
    which = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    rows = np.bincount(which, minlength=n_bins)
    filled = rows > 0
    means = np.bincount(which, confidence, n_bins)[filled] / rows[filled]
    shares = np.bincount(which, correct.astype(float), n_bins)[filled] / rows[filled]
    return means, shares, rows[filled]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, n_bins: int = 10) -> float:
    """`sum_b n_b / N |correct_b - confidence_b|` over bins of equal width.

    Args:
        confidence: (N,) probabilities.
        correct: (N,) bool, whether what they are the probability of came true.
        n_bins: between 0 and 1.

    Paper: https://arxiv.org/abs/1706.04599, equation 3.
    """
    means, shares, rows = calibration_bins(confidence, correct, n_bins)
    return float((rows * np.abs(shares - means)).sum() / rows.sum())


@styled(STYLE)
def reliability(scores: ClassScores, n_bins: int = 10) -> Section:
    """Whether a probability of 0.8 comes true in 80 of 100 rows."""
    if len(scores.classes) == 2:
        confidence, correct = scores.probabilities[:, 1], scores.truth == 1
        what = f"the probability of {scores.classes[1]}"
        axes = (f"predicted probability of {clip(scores.classes[1])}", "observed share")
    else:
        confidence, correct = scores.probabilities.max(1), scores.predicted == scores.truth
        what = "the probability of the predicted class"
        axes = ("probability of the predicted class", "share right")
    means, shares, rows = calibration_bins(confidence, correct, n_bins)
    error = expected_calibration_error(confidence, correct, n_bins)
    figure, ax = new_figure()
    below = ax.twinx()
    below.bar(means, rows, width=0.05, color=GRID, zorder=0)
    below.set(ylim=(0, 4 * rows.max()), yticks=[])
    below.grid(visible=False)
    below.spines["right"].set_visible(False)
    # The curve over the bars.
    ax.set_zorder(1)
    ax.patch.set_visible(False)
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
    ax.plot(means, shares, "o-", markersize=5, label=f"ECE {error:.3f}")
    ax.set(xlabel=axes[0], ylabel=axes[1], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    ax.legend(loc="upper left")
    caption = (
        f"On the dotted line {what} is what is observed. Expected calibration error (ECE) over {n_bins} bins; bars: their rows."
    )
    alt = f"reliability diagram, expected calibration error {error:.3f}"
    return Section("Calibration", figure=figure, caption=caption, alt=alt)


def worst_mistakes(scores: ClassScores) -> Section:
    """The wrong rows of which the model was most confident."""
    index = np.arange(len(scores.truth))
    confidence = scores.probabilities[index, scores.predicted]
    wrong = np.flatnonzero(scores.predicted != scores.truth)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:WORST]
    rows = []
    for i in wrong:
        true, guess = int(scores.truth[i]), int(scores.predicted[i])
        probabilities = [float(scores.probabilities[i, guess]), float(scores.probabilities[i, true])]
        rows.append([*identity(scores.rows, int(i)), scores.classes[true], scores.classes[guess], *probabilities])
    if not rows:
        return Section("Most confident mistakes", html="<p>None: every test row is right.</p>")
    header = [*map(str, scores.rows.columns), "true", "predicted", "p(predicted)", "p(true)"]
    html = table(header, rows, label="most confident mistakes", row_heads=min(1, scores.rows.shape[1]))
    caption = "Rows to look at first: mislabelled, ambiguous, or something the model has not learned."
    return Section("Most confident mistakes", html=html, caption=caption, wide=len(header) > 5)


# -- several labels per row


def multilabel_sections(frame: pd.DataFrame, labels: Sequence[str]) -> list[Section]:
    """Figures per label, curves, and the label-row pairs with the largest error."""
    truth = frame[list(labels)].to_numpy(float) > 0.5
    scores = frame[[f"p_{label}" for label in labels]].to_numpy(float)
    rows = []
    for i, label in enumerate(labels):
        f1 = float(f1_score(truth[:, i], scores[:, i] > 0.5, **ZERO))
        rows.append([label, int(truth[:, i].sum()), *areas_under_curves(truth[:, i], scores[:, i]), f1])
    html = table(["label", "positive rows", "AUROC", "AUPRC", "F1 at 0.5"], rows, label="figures per label")
    frequent: list[int] = sorted(np.argsort(-truth.sum(0), kind="stable")[:CURVES].tolist())
    caption = "Each label by itself." + (f" The {CURVES} most frequent labels." if len(labels) > CURVES else "")
    curves = binary_curves({labels[i]: (truth[:, i], scores[:, i]) for i in frequent}, caption)
    return [Section("Per label", html=html), *curves, _worst_labels(frame, labels, truth, scores)]


def _worst_labels(frame: pd.DataFrame, labels: Sequence[str], truth: np.ndarray, scores: np.ndarray) -> Section:
    first = list(frame.columns).index(f"p_{labels[0]}")
    known = frame.iloc[:, :first]
    error = np.abs(scores - truth)
    order = np.argsort(-error, axis=None, kind="stable")[:WORST]
    pairs = [divmod(int(k), len(labels)) for k in order if error.flat[k] > 0.5]
    rows = [[*identity(known, i), labels[j], bool(truth[i, j]), float(scores[i, j])] for i, j in pairs]
    header = [*map(str, known.columns), "label", "true", "probability"]
    if not rows:
        return Section("Most confident mistakes", html="<p>None is wrong at 0.5.</p>")
    html = table(header, rows, label="largest errors", row_heads=min(1, known.shape[1]))
    return Section("Most confident mistakes", html=html, wide=len(header) > 5)
