"""The field's own tasks and metrics, against plain computations."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from longseq.domains.dna.metrics import SiteScore, TrackScore
from longseq.domains.dna.module import DNAModule
from longseq.domains.dna.tasks import BaseLabels, Profile
from longseq.domains.tasks import IGNORE, MultiLabel
from longseq.errors import ConfigError
from longseq.model import build_model


def profile(loss: str = "poisson", **options: object) -> Profile:
    return Profile(["a", "b"], [2.0, 0.5], [1.0, 3.0], bin_size=4, loss=loss, **options)  # type: ignore[arg-type]


def test_track_scores_leave_nan_out() -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.normal(size=(2, 6, 5, 2)).astype(np.float32)
    guess = guess + truth
    truth[0, :2] = np.nan
    metrics = {which: TrackScore(which, 2) for which in ("pearson", "mse")}
    for part in (slice(0, 3), slice(3, 6)):
        for metric in metrics.values():
            metric.update(torch.from_numpy(guess[part]), torch.from_numpy(truth[part]))
    known = ~np.isnan(truth[..., 0])
    expected: Any = [pearsonr(guess[known][:, t], truth[known][:, t])[0] for t in range(2)]
    assert float(metrics["pearson"].compute()) == pytest.approx(np.mean(expected), abs=1e-5)
    assert float(metrics["mse"].compute()) == pytest.approx(float(((guess - truth)[known] ** 2).mean()), rel=1e-5)
    constant = TrackScore("pearson", 1)
    constant.update(torch.ones(1, 4, 1), torch.randn(1, 4, 1))
    assert constant.compute().isnan()


def test_site_scores_are_average_precision() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy((rng.random(3000) < 0.02).astype(np.int64))
    logits = torch.from_numpy(np.stack([np.zeros(3000), rng.normal(size=3000) * 2 - 3 + 2 * labels.numpy()], 1))
    metric = SiteScore("auprc", [1], 2)
    topk = SiteScore("topk", [1], 2)
    for part in (slice(0, 1000), slice(1000, 3000)):
        for score in (metric, topk):
            score.update(logits[part].log_softmax(-1), labels[part])
    expected = average_precision_score(labels.numpy(), logits[:, 1].numpy())
    assert float(metric.compute()) == pytest.approx(expected, abs=2e-3)
    n = int(labels.sum())
    best = labels[logits[:, 1].argsort(descending=True)[:n]].sum() / n
    assert float(topk.compute()) == pytest.approx(float(best), abs=1 / n)
    nowhere = SiteScore("auprc", [1], 2)
    nowhere.update(logits.log_softmax(-1), torch.zeros_like(labels))
    assert nowhere.compute().isnan()


def test_f1_of_sites_leaves_the_background_out() -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice(4, 3000, p=[0.9, 0.06, 0.04, 0.0])
    said = np.where(rng.random(3000) < 0.6, labels, 0)
    task = BaseLabels(["none", "acceptor", "donor", "never"], background="none")
    expected = {"found": f1_score(labels, said, labels=[1, 2], average="macro"), "nothing found": 0.0}
    for answer, score in zip((said, np.zeros_like(said)), expected.values(), strict=True):
        metrics = task.metrics()
        outputs = 9.0 * torch.eye(4)[torch.from_numpy(answer)]
        task.update(metrics, outputs[None], {"labels": torch.from_numpy(labels)[None]})
        assert float(metrics.compute()["f1"]) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("loss", ["poisson", "mse"])
def test_profile_outputs_and_values_are_each_others_inverse(loss: str) -> None:
    task = profile(loss)
    values = torch.rand(3, 5, 2) * 60 + 0.01
    torch.testing.assert_close(task.values(task.outputs_from(values)), values, rtol=1e-4, atol=1e-4)
    combined = task.combine([task.outputs_from(values), task.outputs_from(3 * values)])
    torch.testing.assert_close(task.values(combined), 2 * values, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("loss", ["poisson", "mse"])
def test_profile_loss_is_smallest_at_the_truth(loss: str) -> None:
    task = profile(loss)
    truth = torch.rand(2, 5, 2) * 4 + 0.1
    truth[0, 0, 0] = torch.nan
    known = truth.nan_to_num(1.0)
    best = task.loss(task.outputs_from(known), {"labels": truth})
    for factor in (0.7, 1.4):
        assert best < task.loss(task.outputs_from(known * factor), {"labels": truth})
    outputs = task.outputs_from(known).requires_grad_()
    task.loss(outputs, {"labels": truth}).backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all() and outputs.grad[0, 0, 0] == 0


def test_profile_options() -> None:
    with pytest.raises(ConfigError, match="poisson or mse"):
        profile("gauss")
    with pytest.raises(ConfigError, match=r"task\.loss=mse"):
        profile(smallest=-1.0)
    turned = profile(other_strand=[1, 0]).turn(torch.arange(8.0).view(1, 4, 2), {})
    assert turned.tolist() == [[[7, 6], [5, 4], [3, 2], [1, 0]]]


def test_base_labels_turn_rows_of_different_lengths_and_leave_padding_out() -> None:
    task = BaseLabels(["none", "x"], background="none")
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    outputs = torch.arange(8.0).view(2, 4, 1)
    assert task.turn(outputs, {"mask": mask})[..., 0].tolist() == [[3, 2, 1, 0], [5, 4, 4, 4]]
    labels = torch.tensor([[0, 1, 0, 0], [1, 0, IGNORE, IGNORE]])
    logits = torch.stack([-5.0 * labels, 5.0 * labels], -1)
    logits[1, 2:] = 100.0
    metrics = task.metrics()
    task.update(metrics, logits, {"labels": labels})
    found = metrics.compute()
    assert found["auprc"] == found["topk_accuracy"] == found["accuracy"] == found["f1"] == 1.0
    assert task.loss(logits, {"labels": labels}) == pytest.approx(float(found["loss"]))
    with pytest.raises(ConfigError, match="2 numbers"):
        BaseLabels(["none", "x"], class_weights=[1.0])


def test_profiles_predict_the_mean_of_each_row() -> None:
    task = profile("mse")
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    found = task.predictions(task.outputs_from(values), {})
    assert found["predicted_a"].tolist() == [2.0] and found["predicted_b"].tolist() == [3.0]
    assert set(task.predictions(task.outputs_from(values), {"labels": values})) == {"predicted_a", "predicted_b", "a", "b"}


@pytest.mark.parametrize("task_name", ["profile", "base_labels"])
def test_strand_averages_are_equivariant(task_name: str) -> None:
    task = profile(other_strand=[1, 0]) if task_name == "profile" else BaseLabels(["none", "x"])
    config = {
        "embedding": {"name": "token", "vocab_size": 16},
        "backbone": {"name": "cnn", "d_model": 8, "n_layers": 1},
        "head": task.head(),
        **task.config(),
    }
    module = DNAModule(task=task, model=build_model(config).eval(), rc_average=True)
    ids = torch.randint(7, 11, (2, 16))
    mask = torch.ones(2, 16, dtype=torch.bool)
    with torch.no_grad():
        there = module.evaluate_batch({"inputs": ids, "mask": mask})
        back = module.evaluate_batch({"inputs": (17 - ids).flip(1), "mask": mask})
    torch.testing.assert_close(task.turn(back, {"mask": mask}), there, atol=1e-5, rtol=1e-5)  # type: ignore[operator]


def test_labels_that_all_rows_have_or_none_are_left_out_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.stack([rng.integers(0, 2, 50), np.zeros(50), rng.integers(0, 2, 50), np.ones(50)], 1)).long()
    outputs = torch.randn(50, 4)
    task = MultiLabel(["a", "b", "c", "d"])
    metrics = task.metrics()
    for part in (slice(0, 20), slice(20, 50)):
        task.update(metrics, outputs[part], {"labels": labels[part]})
    found = metrics.compute()
    for name, score in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        expected = np.mean([score(labels[:, k].numpy(), outputs[:, k].numpy()) for k in (0, 2)])
        assert float(found[name]) == pytest.approx(float(expected), abs=1e-6)
