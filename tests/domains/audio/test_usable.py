"""Clips without a usable label: an error with file and line, or left out and counted."""

from pathlib import Path
from typing import Any

import pytest

from longseq.domains.audio.datamodule import AudioData
from longseq.errors import ConfigError, DataError
from tests.domains.audio.sounds import wave, write


def manifest(folder: Path, column: str, cells: dict[int, str], good: tuple[str, str]) -> str:
    """18 clips, every third of val and of test; some cells as given."""
    lines = [f"path,{column},split"]
    for i in range(18):
        write(folder / f"{i}.wav", wave(0.1, frequency_hz=300.0 * (i % 2 + 1), seed=i))
        lines.append(f"{i}.wav,{cells.get(i, good[i // 3 % 2])},{('train', 'val', 'test')[i % 3]}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "list.csv")


def data(source: str, task: str, **options: Any) -> AudioData:
    made = AudioData(task=task, train=source, batch_size=4, **options)
    made.setup()
    return made


CASES = {
    "classification": ("label", ("a", "b"), {0: "", 2: "rare"}, "line 2: no label"),
    "multilabel": ("label", ("a", "a;b"), {2: "a;rare"}, "line 4: label 'rare' is absent from train"),
    "regression": ("label", ("1.5", "2"), {0: "", 1: "much", 2: "inf"}, "line 2: no label"),
    "ctc": ("text", ("ab", "ba"), {0: ""}, "line 2: no text"),
}


@pytest.mark.parametrize("task", CASES)
def test_bad_labels(task: str, tmp_path: Path) -> None:
    column, good, cells, message = CASES[task]
    source = manifest(tmp_path, column, cells, good)
    with pytest.raises(DataError, match=message) as caught:
        data(source, task)
    assert "data.on_bad=skip" in str(caught.value) or task == "multilabel"
    made = data(source, task, on_bad="skip")
    assert sum(len(rows) for rows in made.splits.values()) == 18 - len(cells)
    assert sum(key.endswith(", label") for key in made.counts) == len({i % 3 for i in cells})
    assert len(next(iter(made.loader("train")))["index"]) == 4


def test_a_split_without_any_usable_label(tmp_path: Path) -> None:
    source = manifest(tmp_path, "label", dict.fromkeys(range(2, 18, 3), "rare"), ("a", "b"))
    with pytest.raises(DataError, match=r"no clip of test has a label that can be used.*rare"):
        data(source, "classification", on_bad="skip")


def test_recordings_of_train_that_are_tested_on_are_told(tmp_path: Path) -> None:
    source = manifest(tmp_path, "label", {}, ("a", "b"))
    Path(source).write_text(Path(source).read_text() + "0.wav,a,test\n")
    assert "1 of 7 test clips" in str(data(source, "classification").counts["recordings of train in test"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_snr_db": 5}, r"noise_snr_db must be a list such as \[5, 30\]"),
        ({"noise_files": "x"}, "noise_files needs data.noise_snr_db"),
        ({"mixup": -1.0}, "mixup must not be negative"),
    ],
)
def test_augmentation_that_says_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AudioData(task="classification", **options)
