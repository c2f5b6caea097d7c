"""A report's sections from predictions.csv: curves, confusion, calibration and the worst rows, whatever the domain."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from longseq.domains.plots import GRID, MUTED, SERIES, STYLE, Html, RunFiles, Section, new_figure, short, styled, table, thin

CURVES = len(SERIES)
# A larger confusion matrix is no longer read; its most frequent confusions are.
MATRIX = 25
WORST = 15


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


def prediction_sections(run: RunFiles) -> list[Section]:
    """What can be drawn from the predictions of the test rows, by the columns that are there."""
    frame = run.predictions
    if frame is None or frame.empty:
        return []
    columns = [str(name) for name in frame.columns]
    if "prediction" in columns and "label" in columns:
        scores = class_scores(frame)
        return classification_sections(scores) if scores is not None else []
    targets = [name.removeprefix("predicted_") for name in columns if name.startswith("predicted_")]
    targets = [name for name in targets if name in columns]
    if targets:
        return regression_sections(frame, targets)
    labels = [name[2:] for name in columns if name.startswith("p_") and name[2:] in columns]
    return multilabel_sections(frame, labels) if labels else []


# -- classification


def class_scores(frame: pd.DataFrame) -> ClassScores | None:
    """Reads the columns of a classifier; rows without a known label are left out."""
    first = list(frame.columns).index("prediction")
    # Only behind `prediction`: in front of it stand the user's own columns, which may begin with p_ too.
    scores = [name for name in frame.columns[first + 1 :] if str(name).startswith("p_")]
    classes = [str(name)[2:] for name in scores]
    truth = np.asarray(pd.Categorical(frame["label"].astype(str), categories=classes).codes, dtype=np.int64)
    known = (truth >= 0) & frame[scores].notna().all(axis=1).to_numpy()
    if len(classes) < 2 or not known.any():
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
    caption = f"{right:,} of {int(totals.sum()):,} test rows are right. Shares are of the row: of all rows with that true label."
    return Section("Confusion matrix", html=f'<div class="confusion">{html}</div>', caption=caption, wide=len(scores.classes) > 4)


def _confusion_cell(count: int, share: float, right: bool) -> Html:
    kind = "right" if right else "wrong"
    return Html(f'<span class="{kind}" style="--share:{share:.3f}"><b>{count:,}</b> <small>{share:.1%}</small></span>')


def _frequent_confusions(classes: Sequence[str], counts: np.ndarray, shares: np.ndarray) -> Section:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None)[::-1][:30]
    pairs = [divmod(int(k), len(classes)) for k in order if wrong.flat[k] > 0]
    rows = [[classes[i], classes[j], int(counts[i, j]), f"{shares[i, j]:.1%}"] for i, j in pairs]
    html = table(["true", "predicted", "rows", "of the true label"], rows, label="most frequent confusions", row_heads=2)
    caption = f"The most frequent of the confusions between {len(classes)} classes. {int(np.trace(counts)):,} of {int(counts.sum()):,} test rows are right."
    return Section("Most frequent confusions", html=html, caption=caption)


def class_table(scores: ClassScores) -> Section:
    """Precision, recall, F1 and one-vs-rest areas of each class."""
    found = precision_recall_fscore_support(scores.truth, scores.predicted, labels=range(len(scores.classes)), zero_division=0)
    rows = []
    for i, name in enumerate(scores.classes):
        positive, score = scores.truth == i, scores.probabilities[:, i]
        both = 0 < positive.sum() < len(positive)
        areas = [roc_auc_score(positive, score), average_precision_score(positive, score)] if both else [None, None]
        rows.append([name, int(found[3][i]), *(float(found[k][i]) for k in range(3)), *areas])
    html = table(["class", "rows", "precision", "recall", "F1", "AUROC", "AUPRC"], rows, label="figures per class")
    return Section("Per class", html=html, caption="AUROC and AUPRC are one-vs-rest: this class against all others.")


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
        ax.plot(thin(false_rate, 250), thin(true_rate, 250), label=f"{_clip(name)} {areas[name]:.3f}")
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
        ax.plot(thin(recall, 250), thin(precision, 250), color=SERIES[i], label=f"{_clip(name)} {areas[name]:.3f}")
        ax.axhline(float(truth.mean()), color=SERIES[i], linestyle=":", linewidth=1)
    ax.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.legend(title="AUPRC", loc="lower left", title_fontsize=8)
    text = ", ".join(f"{name} {area:.3f}" for name, area in areas.items())
    note = "Dotted: the share of positive rows, which is chance."
    return Section("Precision and recall", figure=figure, caption=f"{caption} {note}", alt=f"precision-recall curves; AUPRC: {text}")


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
        axes = (f"predicted probability of {_clip(scores.classes[1])}", "observed share")
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
    caption = f"On the dotted line {what} is what is observed. Expected calibration error over {n_bins} bins of equal width; bars: rows per bin."
    return Section("Calibration", figure=figure, caption=caption, alt=f"reliability diagram, expected calibration error {error:.3f}")


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
    return Section("Most confident mistakes", html=html, caption=caption, wide=True)


def identity(rows: pd.DataFrame, i: int) -> list[object]:
    """What names a row; numbers without thousands separators, for they are looked up elsewhere."""
    return [str(value) for value in rows.iloc[i].tolist()] if rows.shape[1] else []


def _clip(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


# -- several labels per row


def multilabel_sections(frame: pd.DataFrame, labels: Sequence[str]) -> list[Section]:
    """Figures per label, curves, and the label-row pairs with the largest error."""
    truth = frame[list(labels)].to_numpy(float) > 0.5
    scores = frame[[f"p_{label}" for label in labels]].to_numpy(float)
    rows = []
    for i, label in enumerate(labels):
        both = 0 < truth[:, i].sum() < len(truth)
        areas = [roc_auc_score(truth[:, i], scores[:, i]), average_precision_score(truth[:, i], scores[:, i])] if both else [None, None]
        rows.append([label, int(truth[:, i].sum()), *areas, float(f1_score(truth[:, i], scores[:, i] > 0.5, zero_division=0))])
    html = table(["label", "positive rows", "AUROC", "AUPRC", "F1 at 0.5"], rows, label="figures per label")
    frequent = sorted(np.argsort(-truth.sum(0), kind="stable")[:CURVES])
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
    html = table(header, rows, label="largest errors", row_heads=min(1, known.shape[1])) if rows else "<p>None is wrong at 0.5.</p>"
    return Section("Most confident mistakes", html=html, wide=True)


# -- regression


def regression_sections(frame: pd.DataFrame, targets: Sequence[str], most: int = 3) -> list[Section]:
    """Predicted against true values, residuals and the largest errors; pictures of the first few targets."""
    first = min(list(frame.columns).index(f"predicted_{name}") for name in targets)
    sections = [target_table(frame, targets)] if len(targets) > 1 else []
    for name in targets[:most]:
        pair = frame[[name, f"predicted_{name}"]].apply(pd.to_numeric, errors="coerce").dropna()
        if len(pair):
            truth, predicted = pair[name].to_numpy(float), pair[f"predicted_{name}"].to_numpy(float)
            rows = frame.iloc[:, :first].loc[pair.index].reset_index(drop=True)
            sections += [_scatter(name, truth, predicted), _residuals(name, truth, predicted), _worst_values(name, truth, predicted, rows)]
    # Tables last: the pictures then stand beside each other.
    return sorted(sections, key=lambda section: section.wide)


def target_table(frame: pd.DataFrame, targets: Sequence[str]) -> Section:
    """Errors of each target, in its own unit."""
    rows = []
    for name in targets:
        truth, predicted = frame[name].to_numpy(float), frame[f"predicted_{name}"].to_numpy(float)
        error, spread = predicted - truth, float(np.var(truth))
        r2 = 1 - float(np.mean(error**2)) / spread if spread > 0 else None
        rows.append([name, float(np.sqrt(np.mean(error**2))), float(np.abs(error).mean()), r2])
    return Section("Per target", html=table(["target", "RMSE", "MAE", "R²"], rows, label="errors per target"))


def _sample(n: int, most: int = 1200) -> np.ndarray:
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _cloud(x: np.ndarray, y: np.ndarray, labels: tuple[str, str]) -> Figure:
    figure, ax = new_figure()
    ax.plot(x, y, "o", markersize=3, alpha=0.5, markeredgewidth=0)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    return figure


@styled(STYLE)
def _scatter(name: str, truth: np.ndarray, predicted: np.ndarray) -> Section:
    drawn = _sample(len(truth))
    figure = _cloud(truth[drawn], predicted[drawn], (f"true {_clip(name)}", f"predicted {_clip(name)}"))
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    figure.axes[0].plot(ends, ends, color=MUTED, linestyle=":", linewidth=1)
    both_vary = np.std(truth) > 0 and np.std(predicted) > 0
    text = f"Pearson r {np.corrcoef(truth, predicted)[0, 1]:.3f} over {len(truth):,} rows" if both_vary else "one of the two is constant"
    caption = f"{text}. On the dotted line both are equal.{_drawn_note(len(drawn), len(truth))}"
    return Section(f"{name}: predicted against true", figure=figure, caption=caption, alt=f"predicted against true {name}: {text}")


@styled(STYLE)
def _residuals(name: str, truth: np.ndarray, predicted: np.ndarray) -> Section:
    error, drawn = predicted - truth, _sample(len(truth))
    figure = _cloud(predicted[drawn], error[drawn], (f"predicted {_clip(name)}", "residual"))
    figure.axes[0].axhline(0, color=MUTED, linestyle=":", linewidth=1)
    text = f"predicted minus true: mean {short(float(error.mean()))}, standard deviation {short(float(error.std()))}"
    caption = f"{text[0].upper()}{text[1:]}.{_drawn_note(len(drawn), len(truth))}"
    return Section(f"{name}: residuals", figure=figure, caption=caption, alt=f"residuals of {name}, {text}")


def _drawn_note(drawn: int, n: int) -> str:
    return f" {drawn:,} of {n:,} rows are drawn, at random." if drawn < n else ""


def _worst_values(name: str, truth: np.ndarray, predicted: np.ndarray, known: pd.DataFrame) -> Section:
    order = np.argsort(-np.abs(predicted - truth), kind="stable")[:WORST]
    rows = [[*identity(known, int(i)), float(truth[i]), float(predicted[i]), float(predicted[i] - truth[i])] for i in order]
    header = [*map(str, known.columns), "true", "predicted", "residual"]
    html = table(header, rows, label=f"largest errors of {name}", row_heads=min(1, known.shape[1]))
    return Section(f"{name}: largest errors", html=html, wide=True)
