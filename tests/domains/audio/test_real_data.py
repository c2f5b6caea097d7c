"""The figures that real recordings must give: spoken digits and yes/no."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.audio.datamodule import AudioData
from longseq.domains.audio.tasks import CTC, SoundClassification
from longseq.model import build_model

pytestmark = pytest.mark.data
DIGITS = r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\."


def digits(real_data: Path, **options: Any) -> AudioData:
    folder = real_data / "audio" / "fsdd" / "recordings"
    data = AudioData(task="classification", train=str(folder), path_pattern=DIGITS, decode=False, **options)
    data.setup()
    return data


def svm_accuracy(data: AudioData) -> float:
    task = SoundClassification(**{k: v for k, v in data.task_options().items() if k != "_target_"})
    return data.baselines(task)["MFCC + SVM"]["accuracy"]  # type: ignore[return-value]


def test_mfcc_and_svm_on_the_official_split(real_data: Path) -> None:
    data = digits(real_data, test_pattern=r"_[0-4]\.\w+$")
    assert [len(data.clips[name]) for name in ("train", "val", "test")] == [2430, 270, 300]
    assert data.task_options()["labels"] == [str(digit) for digit in range(10)]
    # Every test speaker is also in train, which this split does not hide.
    assert "300 of 300 test clips" in str(data.counts["speaker leaks in test"])
    assert svm_accuracy(data) == pytest.approx(0.993, abs=0.004)


def test_mfcc_and_svm_on_a_new_speaker(real_data: Path) -> None:
    data = digits(real_data, group_column="speaker", test_groups=["theo"])
    assert len(data.clips["test"]) == 500
    assert not any("leak" in key for key in data.counts)
    assert svm_accuracy(data) == pytest.approx(0.88, abs=0.02)


def test_lengths_of_the_digits(real_data: Path) -> None:
    data = digits(real_data, test_pattern=r"_[0-4]\.\w+$")
    counts = np.concatenate([clips.count for clips in data.clips.values()])
    assert (counts.min(), counts.max(), round(float(np.median(counts)))) == (1148, 18262, 3358)
    assert data.sample_rate_hz == 8000


def test_yes_and_no_are_learned_by_heart(real_data: Path) -> None:
    pattern = r"(?P<text>[01](_[01])+)\."
    folder = str(real_data / "audio" / "yesno")
    data = AudioData(
        task="ctc", train=folder, path_pattern=pattern, tokenizer="logmel", frame_hop_s=0.04, n_mels=24, batch_size=4
    )
    data.setup()
    assert data.task_options()["vocabulary"] == ["<blank>", " ", "0", "1"]
    task = CTC(**data.task_options())
    torch.manual_seed(0)
    backbone = {"name": "gru", "d_model": 48, "n_layers": 1}
    model = build_model({**data.model_options(None), "backbone": backbone, "head": task.head()})  # type: ignore[arg-type]
    batch = next(iter(data.loader("train")))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def character_error_rate() -> float:
        with torch.no_grad():
            metrics = task.metrics()
            task.update(metrics, model(batch["inputs"], batch["mask"]), batch)
            return float(metrics.compute()["cer"])

    before = character_error_rate()
    for _ in range(150):
        loss = task.loss(model(batch["inputs"], batch["mask"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 0.9
    assert character_error_rate() < 0.35
