"""The field's tasks and metrics on small batches with known answers."""

import math

import pytest
import torch

from longseq.domains.audio.labels import Vocabulary, frame_labels, read_vocabulary
from longseq.domains.audio.metrics import EqualErrorRate
from longseq.domains.audio.tasks import CTC, FrameLabels, SoundClassification, SoundTagging
from longseq.domains.tasks import IGNORE
from longseq.errors import ConfigError, DataError

TEXTS = ["ab", "ba a"]
VOCABULARY = ["<blank>", " ", "a", "b"]


def ctc_batch() -> dict[str, torch.Tensor]:
    symbols = Vocabulary(VOCABULARY[1:])
    labels = torch.zeros(2, 5, dtype=torch.long)
    codes = torch.zeros(2, 5, dtype=torch.int32)
    for i, text in enumerate(TEXTS):
        labels[i, : len(text)] = torch.from_numpy(symbols.encode(text))
        codes[i, : len(text)] = torch.tensor([ord(c) for c in text])
    return {
        "labels": labels,
        "label_lengths": torch.tensor([2, 4]),
        "output_lengths": torch.tensor([4, 8]),
        "references": codes,
        "index": torch.arange(2),
    }


def spoken(texts: list[str]) -> torch.Tensor:
    """Logits whose best path spells the texts, a blank behind each symbol."""
    logits = torch.zeros(2, 8, 4)
    for i, text in enumerate(texts):
        path = [s for c in text for s in (VOCABULARY.index(c), 0)]
        for t in range(8):
            logits[i, t, path[t] if t < len(path) else 0] = 9.0
    return logits


@pytest.mark.parametrize("beam_width", [1, 4])
def test_ctc_reads_and_scores_what_was_said(beam_width: int) -> None:
    task, batch = CTC(VOCABULARY, beam_width=beam_width), ctc_batch()
    right = spoken(TEXTS)
    assert task.predictions(right, batch)["prediction"].tolist() == TEXTS
    assert task.predictions(right, batch)["label"].tolist() == TEXTS
    metrics = task.metrics()
    task.update(metrics, spoken(["aa", "ba a"]), batch)
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == pytest.approx({"cer": 1 / 6, "wer": 1 / 3})
    assert task.loss(right, batch) < 0.1 < task.loss(spoken(["b", "a"]), batch)


def test_ctc_loss_ignores_padding_and_impossible_rows() -> None:
    task, batch, outputs = CTC(VOCABULARY), ctc_batch(), torch.randn(2, 8, 4, requires_grad=True)
    changed = outputs.detach().clone()
    changed[0, 4:] = 100.0
    assert torch.allclose(task.loss(changed, batch), task.loss(outputs, batch))
    batch["output_lengths"] = torch.tensor([1, 1])
    loss = task.loss(outputs, batch)
    loss.backward()
    assert outputs.grad is not None and torch.isfinite(loss) and torch.isfinite(outputs.grad).all()


def test_frame_labels_ignore_padding() -> None:
    task = FrameLabels(["none", "dog"])
    labels = torch.tensor([[0, 1, IGNORE], [1, 1, 0]])
    outputs = torch.nn.functional.one_hot(labels.clamp(min=0), 2).float() * 20 - 10
    outputs[0, 1] *= -1
    metrics = task.metrics()
    task.update(metrics, outputs, {"labels": labels})
    found = metrics.compute()
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["f1"] == pytest.approx((0.8 + 0.8) / 2)
    assert found["loss"] == pytest.approx(float(task.loss(outputs, {"labels": labels})), rel=1e-5)


def test_an_events_frames() -> None:
    names = ["none", "a", "b"]
    assert frame_labels([(0.1, 0.2, "a"), (0.3, 0.4, "b")], names, 0.0, 5, 0.1, "x").tolist() == [0, 1, 0, 2, 0]
    assert frame_labels([(0.1, 0.2, "a")], names, 0.1, 2, 0.1, "x").tolist() == [1, 0]
    with pytest.raises(DataError, match=r"x: 'a' and 'b' overlap"):
        frame_labels([(0.0, 0.3, "a"), (0.2, 0.4, "b")], names, 0.0, 5, 0.1, "x")
    with pytest.raises(DataError, match="'c' is absent from train"):
        frame_labels([(0.0, 0.3, "c")], names, 0.0, 5, 0.1, "x")


def test_equal_error_rate() -> None:
    metric = EqualErrorRate()
    scores = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9])
    metric.update(torch.stack([1 - scores, scores], 1), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    assert metric.compute() == pytest.approx(0.25)
    perfect = EqualErrorRate()
    perfect.update(torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert perfect.compute() == pytest.approx(0.0, abs=1e-6)
    single = EqualErrorRate()
    single.update(torch.rand(3, 2), torch.zeros(3, dtype=torch.long))
    assert math.isnan(single.compute())


def test_classes_and_tags_report_the_fields_metrics() -> None:
    task = SoundClassification(["a", "b", "c"])
    metrics = task.metrics()
    task.update(metrics, torch.randn(12, 3), {"labels": torch.arange(12) % 3})
    assert {"accuracy", "f1", "eer"} <= set(metrics.compute())
    mixed = torch.tensor([[0.7, 0.3, 0.0]])
    expected = -(mixed * torch.zeros(1, 3).log_softmax(-1)).sum()
    assert task.loss(torch.zeros(1, 3), {"labels": mixed}) == pytest.approx(float(expected))
    tagging = SoundTagging(["a", "b"])
    metrics = tagging.metrics()
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    tagging.update(metrics, labels * 8 - 4, {"labels": labels})
    found = metrics.compute()
    assert found["map"] == pytest.approx(1.0)
    assert found["eer"] == pytest.approx(0.0, abs=1e-6)


def test_vocabularies(tmp_path: pytest.TempPathFactory) -> None:
    vocabulary = read_vocabulary(["yes", "no"], [])
    assert vocabulary.words and vocabulary.encode("no yes maybe").tolist() == [2, 1]
    assert vocabulary.decode([2, 1]) == "no yes"
    assert vocabulary.unknown("no maybe") == ["maybe"]
    with pytest.raises(ConfigError, match="different symbols"):
        Vocabulary(["a", "a"])
    with pytest.raises(DataError, match="there is no file"):
        read_vocabulary(str(tmp_path) + "/gone.txt", [])
