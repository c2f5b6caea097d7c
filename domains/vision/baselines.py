"""What a trained model must beat: the majority, a linear model on pixels, pixel histograms, and filling in by neighbours."""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.domains.base import Row
from longseq.domains.tasks import Task
from longseq.domains.vision.rows import MaskedRows, PixelModelRows, PixelRows
from longseq.domains.vision.tasks import MaskedPatch
from longseq.domains.vision.tokenizer import CellTokenizer

# Larger images are averaged down until they hold no more numbers than this.
MOST_FEATURES = 1024
MOST_ROWS = 10_000
STRENGTHS = (0.01, 0.1, 1.0)


# -- labelled images


def label_baselines(splits: dict[str, PixelRows], task: Task, seed: int) -> dict[str, Row]:
    """The majority (or the labels' shares, or the mean) and a linear model on pixels, by the task's own metrics."""
    train, test = splits["train"], splits["test"]
    assert train.labels is not None and test.labels is not None
    labels = torch.from_numpy(test.labels)
    constant = constant_prediction(train.labels, len(getattr(task, "labels", [])), task.name)
    names = {"classification": "majority class", "multilabel": "label frequencies", "regression": "mean"}
    found: dict[str, Row] = {names[task.name]: task.score_predictions(constant.expand(len(labels), -1), labels)}
    sample = {name: sample_rows(rows, seed) if name != "test" else np.arange(len(rows)) for name, rows in splits.items()}
    features, what = {}, ""
    for name, rows in splits.items():
        features[name], what = pixel_features(rows, sample[name])
    predicted = linear_predictions(
        features,
        {name: np.asarray(rows.labels)[sample[name]] for name, rows in splits.items()},
        task.name,
        len(getattr(task, "labels", [])),
    )
    if predicted is None:
        return found
    method = "ridge regression" if task.name == "regression" else "logistic regression"
    limit = f", {len(sample['train']):,} rows" if len(sample["train"]) < len(train) else ""
    return found | {f"{method} on {what}{limit}": task.score_predictions(torch.from_numpy(predicted).float(), labels)}


def constant_prediction(labels: np.ndarray, n_classes: int, task: str) -> Tensor:
    """The same answer for every row, (1, O): the classes' or labels' shares in train, or the mean."""
    if task == "classification":
        # Shares, of which the majority is the largest: the five most frequent classes are its top five.
        counts = np.bincount(labels, minlength=n_classes)
        return torch.from_numpy(counts / counts.sum()).float()[None]
    return torch.from_numpy(labels.mean(0, keepdims=True)).float()


def sample_rows(rows: PixelRows, seed: int) -> np.ndarray:
    """At most so many rows that a linear model is fitted within seconds."""
    return np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST_ROWS])


def pixel_features(rows: PixelRows, index: np.ndarray) -> tuple[np.ndarray, str]:
    """Small images (N, features) between 0 and 1, of videos the mean frame, and in words what they are."""
    height, width = rows.tokenizer.size
    factor = max(1, math.ceil(math.sqrt(height * width * rows.channels / MOST_FEATURES)))
    small = (max(1, height // factor), max(1, width // factor))
    # Without augmentation: a copy that shares the store.
    plain = PixelRows(
        rows.records, rows.clips, rows.labels, tokenizer=rows.tokenizer, channels=rows.channels, resize=rows.resize, seed=0
    )
    found = []
    for i in index.tolist():
        mean_frame = torch.from_numpy(plain.pixels(i)).float().mean(0) / 255
        found.append(F.adaptive_avg_pool2d(mean_frame, small).flatten().numpy())
    video = "the mean frame's " if rows.clips.frames > 1 else ""
    return np.stack(found), f"{video}{small[0]} x {small[1]} pixels"


def linear_predictions(
    features: dict[str, np.ndarray], labels: dict[str, np.ndarray], task: str, n_classes: int
) -> np.ndarray | None:
    """Test predictions of a linear model whose strength of regularisation was chosen on val; None where none can be fitted."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    best, best_score = None, -math.inf
    for strength in STRENGTHS:
        model: Any = make_pipeline(StandardScaler(), linear_model(strength, task))
        with warnings.catch_warnings():
            # It stops after a fixed number of steps, and one class of a label may be absent.
            warnings.simplefilter("ignore")
            try:
                model.fit(features["train"], labels["train"])
                score = float(model.score(features["val"], labels["val"]))
            except ValueError:
                return None
        if score > best_score:
            best, best_score = model, score
    assert best is not None
    if task == "regression":
        return np.asarray(best.predict(features["test"])).reshape(len(features["test"]), -1)
    probabilities = best.predict_proba(features["test"])
    if task == "multilabel":
        return np.asarray(probabilities)
    # A class that the sample of train lacks has probability zero.
    full = np.zeros((len(probabilities), n_classes))
    full[:, best[-1].classes_] = probabilities
    return full


def linear_model(strength: float, task: str) -> Any:
    """scikit-learn's model of a task; a larger strength regularises less."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    if task == "regression":
        return Ridge(alpha=1.0 / strength)
    logistic = LogisticRegression(C=strength, max_iter=100)
    return OneVsRestClassifier(logistic) if task == "multilabel" else logistic


# -- pixel models


def pixel_model_baselines(train: PixelModelRows, test: PixelModelRows, seed: int) -> dict[str, Row]:
    """Bits per dimension of equal values, of one histogram, and of a histogram given the pixel to the left."""
    levels = train.values.levels
    index = sample_rows(train, seed)
    seen, held = (
        np.stack([rows[int(i)]["targets"] for i in own]) for rows, own in ((train, index), (test, np.arange(len(test))))
    )
    # Neighbours on the left have the same channel, C values back.
    gap = train.channels
    single = np.bincount(seen.ravel(), minlength=levels) + 1.0
    pairs = np.zeros((levels, levels))
    np.add.at(pairs, (seen[:, :-gap].ravel(), seen[:, gap:].ravel()), 1.0)
    # Backed off to the single values, for most pairs are rare.
    pairs += single / single.sum()
    bits = -np.log2(single / single.sum())[held]
    given = bits.copy()
    given[:, gap:] = -np.log2(pairs / pairs.sum(1, keepdims=True))[held[:, :-gap], held[:, gap:]]
    found = {
        "all values alike": math.log2(levels),
        "histogram of values": bits.mean(),
        "histogram given the last pixel": given.mean(),
    }
    return {name: pixel_scores(float(value)) for name, value in found.items()}


def pixel_scores(bits: float) -> Row:
    """The metrics of a pixel model that needs so many bits per dimension."""
    return {"bits_per_dim": bits, "loss": bits * math.log(2), "perplexity": 2.0**bits}


# -- masked patches


def masked_baselines(test: MaskedRows, task: MaskedPatch) -> dict[str, Row]:
    """Hidden cells filled with the mean pixel of train, and with a weighted mean of the shown cells around them."""
    if task.normalize_cells:
        return {}
    metrics = {"mean pixel": task.metrics(), "mean of neighbours": task.metrics()}
    for i in range(len(test)):
        row = test[i]
        cells, hidden = torch.from_numpy(row["targets"]), torch.from_numpy(row["hidden"])
        batch = {"targets": cells[None], "hidden": hidden[None]}
        filled = neighbour_means(cells, hidden, test.tokenizer)
        for name, guess in (("mean pixel", task.mean.expand_as(cells)), ("mean of neighbours", filled)):
            task.update(metrics[name], ((guess - task.mean) / task.std)[None], batch)
    return {name: {str(key): float(value) for key, value in found.compute().items()} for name, found in metrics.items()}


def neighbour_means(cells: Tensor, hidden: Tensor, tokenizer: CellTokenizer, reach: float = 1.0) -> Tensor:
    """Each cell as the mean colour of shown cells, weighted by a Gaussian of their distance on the grid; (L, P)."""
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in tokenizer.grid), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], dim=1)
    # A little of everything, where no shown cell is near.
    weights = torch.exp(-torch.cdist(places, places).square() / (2 * reach**2)) + 1e-6
    weights = weights * (~hidden)
    channels = cells.shape[1] // (tokenizer.tube * tokenizer.patch**2)
    colour = cells.unflatten(1, (channels, -1)).mean(2)
    filled = weights @ colour / weights.sum(1, keepdim=True)
    return filled.unsqueeze(2).expand(-1, -1, cells.shape[1] // channels).flatten(1)
