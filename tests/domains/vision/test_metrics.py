"""The metrics of classification against scikit-learn's, also where a class is absent from the test set."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, matthews_corrcoef, roc_auc_score, top_k_accuracy_score

from longseq.domains.dna.metrics import RecordVote
from longseq.domains.tasks import Regression
from longseq.domains.vision.tasks import ImageClassification


@pytest.mark.parametrize("absent", [None, 6])
def test_classification_scores_are_scikit_learns(absent: int | None) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(140) % 7)
    labels = labels if absent is None else np.where(labels == absent, 0, labels)
    logits = rng.normal(size=(140, 7)) + 1.5 * np.eye(7)[labels]
    task = ImageClassification([str(i) for i in range(7)])
    metrics = task.metrics()
    for part in np.array_split(np.arange(140), 5):
        task.update(metrics, torch.from_numpy(logits[part]), {"labels": torch.from_numpy(labels[part])})
    found = {name: float(value) for name, value in metrics.compute().items()}
    p = torch.from_numpy(logits).float().softmax(-1).numpy()
    said, present = p.argmax(1), np.unique(labels)
    expected = {
        "accuracy": (said == labels).mean(),
        "top5_accuracy": top_k_accuracy_score(labels, p, k=5, labels=np.arange(7)),
        "mcc": matthews_corrcoef(labels, said),
        "f1": f1_score(labels, said, average="macro"),
        "auroc": np.mean([roc_auc_score(labels == c, p[:, c]) for c in present]),
        "auprc": np.mean([average_precision_score(labels == c, p[:, c]) for c in present]),
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_single_row_has_no_coefficient_of_determination() -> None:
    task = Regression(["x", "y"], [0.0, 0.0], [1.0, 1.0])
    found = task.score_predictions(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
    assert np.isnan(found["r2"]) and found["mse"] == 1.0


@pytest.mark.parametrize("n_ones", [1, 30, 59])
@pytest.mark.parametrize("answer", [0, 1])
def test_the_same_answer_for_all_rows_has_no_correlation(n_ones: int, answer: int) -> None:
    labels = (torch.arange(60) < n_ones).long()
    found = ImageClassification(["a", "b"]).score_predictions(torch.eye(2)[answer].expand(60, -1), labels)
    assert found["mcc"] == 0.0 == matthews_corrcoef(labels, torch.full((60,), answer))
    vote = RecordVote("mcc", 2)
    vote.update(torch.eye(2)[answer].expand(60, -1).log(), labels, torch.arange(60))
    assert float(vote.compute()) == 0.0


def test_correlation_of_two_classes_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 200), torch.from_numpy(rng.random((200, 2)))
    found = ImageClassification(["a", "b"]).score_predictions(scores, torch.from_numpy(labels))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(labels, scores.argmax(1)), abs=1e-6)
