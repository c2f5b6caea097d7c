"""Windows of records, and their votes."""

import numpy as np
import pytest
import torch

from longseq.domains.dna.metrics import RecordVote
from longseq.domains.dna.record_windows import RecordWindows
from longseq.domains.dna.sequences import Sequences
from longseq.domains.dna.tasks import WindowVote
from longseq.errors import ConfigError


def store(*lengths: int) -> Sequences:
    rng = np.random.default_rng(0)
    return Sequences.from_ids([rng.integers(7, 11, n).astype(np.uint8) for n in lengths])


@pytest.mark.parametrize(("window", "stride"), [(10, None), (10, 5), (10, 3), (7, None), (100, None), (1, None), (10, 15)])
def test_windows_lie_in_their_records(window: int, stride: int | None) -> None:
    records = store(35, 10, 3, 14, 15, 100)
    windows = RecordWindows(records, window, stride)
    assert sorted(set(windows.records.tolist())) == list(range(6))
    for i in range(len(windows)):
        record, start = int(windows.records[i]), int(windows.starts[i])
        piece = records[record][start : start + window]
        assert np.array_equal(windows[i], piece)
        assert len(piece) == windows.lengths[i] >= min(window / 2, records.lengths[record])
    for record, length in enumerate(records.lengths.tolist()):
        starts = windows.starts[windows.records == record]
        assert np.array_equal(starts, np.arange(len(starts)) * (stride or window))
        # No window is contained in the one before it, and less than half a window is left over.
        ends = np.minimum(starts + window, length)
        assert len(starts) == 1 or (np.diff(ends) > 0).all()
        if (stride or window) <= window:
            assert length - ends[-1] < (window + 1) // 2


def test_selected_windows_keep_their_records() -> None:
    windows = RecordWindows(store(30, 20), 10)
    chosen = windows.select([1, 4])
    assert chosen.records.tolist() == [0, 1]
    assert np.array_equal(chosen[1], windows[4])
    with pytest.raises(ConfigError, match=r"data\.window"):
        RecordWindows(store(3), 0)


def test_a_record_has_the_class_with_the_largest_mean_log_probability() -> None:
    # Two windows are a little for class 1, one is sure of class 0: the mean decides, not the count.
    probabilities = torch.tensor([[0.4, 0.6], [0.4, 0.6], [0.99, 0.01], [0.2, 0.8]])
    labels, records = torch.tensor([0, 0, 0, 1]), torch.tensor([7, 7, 7, 3])
    vote = RecordVote("accuracy", 2)
    vote.update(probabilities[:2].log(), labels[:2], records[:2])
    vote.update(probabilities[2:].log(), labels[2:], records[2:])
    assert vote.compute() == 1.0
    task = WindowVote(["a", "b"])
    metrics = task.metrics()
    task.update(metrics, probabilities.log(), {"labels": labels, "record": records})
    found = metrics.compute()
    assert found["record_accuracy"] == found["record_mcc"] == found["record_f1"] == 1.0
    assert found["accuracy"] == 0.5
