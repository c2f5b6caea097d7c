"""The report's pictures of sound: players, DET curves, transcripts."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longseq.domains.audio.files import write_wav
from longseq.domains.audio.plots import edit_kinds, error_rates, figures
from longseq.domains.audio.sounds import GENERATED, WORST, save_worst, score_rows
from longseq.domains.plots import to_svg
from longseq.domains.sections import RunFiles, Section
from tests.domains.audio.sounds import wave


def run(folder: Path, task: str, test: dict[str, float], predictions: pd.DataFrame | None = None) -> RunFiles:
    metrics: dict[str, Any] = {"test": test, "backbone": "s4d", "baselines": {"uniform": {"bits_per_sample": 8.0}}}
    return RunFiles(folder, {"task": {"name": task}}, metrics, pd.DataFrame(), predictions)


def titles(sections: list[Section]) -> list[str]:
    for section in sections:
        assert section.html or (section.figure is not None and "<svg" in to_svg(section.figure, section.alt))
    return [section.title for section in sections]


def classes(n: int = 60, n_classes: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    label = rng.integers(n_classes, size=n)
    chances = rng.dirichlet(np.ones(n_classes), n) + 0.8 * np.eye(n_classes)[label]
    chances /= chances.sum(1, keepdims=True)
    names = np.array(list("abcdefghij"))[:n_classes]
    frame = pd.DataFrame({"id": [f"{i}.wav" for i in range(n)], "prediction": names[chances.argmax(1)], "label": names[label]})
    return frame.assign(**{f"p_{name}": chances[:, i] for i, name in enumerate(names)})


@pytest.mark.parametrize("n_classes", [2, 5])
def test_det_curves(tmp_path: Path, n_classes: int) -> None:
    assert titles(figures(run(tmp_path, "classification", {"eer": 0.1}, classes(n_classes=n_classes)))) == ["DET"]


def test_equal_error_rate_of_a_known_curve() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    assert error_rates(truth, np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9]))[2] == pytest.approx(0.25)
    assert error_rates(truth, truth.astype(float))[2] == 0.0


def test_transcripts_are_compared(tmp_path: Path) -> None:
    assert edit_kinds("kitten", "sitting") == (2, 0, 1)
    assert edit_kinds("", "ab") == (0, 0, 2)
    assert edit_kinds("ab", "") == (0, 2, 0)
    frame = pd.DataFrame({"id": ["a.wav", "b.wav"], "prediction": ["<b>", "ab"], "label": ["abc", "ab"]})
    sections = figures(run(tmp_path, "ctc", {"cer": 0.4}, frame))
    assert titles(sections) == ["Transcripts with most errors"]
    assert "&lt;b&gt;" in sections[0].html and "b.wav" not in sections[0].html


def test_bits_beside_uniform_levels(tmp_path: Path) -> None:
    assert titles(figures(run(tmp_path, "lm", {"bits_per_sample": 3.0}))) == ["Bits per sample"]


def test_sounds_can_be_played_and_seen(tmp_path: Path) -> None:
    write_wav(tmp_path / GENERATED / "clip_1.wav", wave(0.3), 8000)
    sections = figures(run(tmp_path, "lm", {}))
    assert titles(sections) == ["Generated clips"]
    assert 'src="data:audio/wav;base64,UklGR' in sections[0].html
    assert "<svg" in sections[0].html


class FakeData:
    """Just enough of a data module to save clips from."""

    sample_rate_hz = 8000

    def __init__(self) -> None:
        frame = pd.DataFrame({"id": [f"<{i}>.wav" for i in range(4)]})
        self.clips = {"test": type("Clips", (), {"frame": frame})()}

    def rows(self, split: str) -> Any:
        return type("Rows", (), {"read": lambda self, row: type("S", (), {"samples": wave(5.0, seed=row)})()})()


def test_the_worst_clips_are_saved_once(tmp_path: Path) -> None:
    columns = {"index": np.arange(4), **{name: values.to_numpy()[:4] for name, values in classes(4).items() if name != "id"}}
    columns["label"] = np.array(["a", "b", "a", "b"])
    columns["prediction"] = np.array(["a", "a", "b", "b"])
    save_worst(tmp_path, FakeData(), [columns], "classification", 5)  # type: ignore[arg-type]
    assert len(list((tmp_path / WORST).glob("*.wav"))) == 2
    sections = figures(run(tmp_path, "classification", {}))
    assert titles(sections) == ["Worst clips"]
    assert "&lt;1&gt;.wav" in sections[0].html and "<1>" not in sections[0].html
    save_worst(tmp_path, FakeData(), [columns], "classification", 1)  # type: ignore[arg-type]
    assert len(list((tmp_path / WORST).glob("*.wav"))) == 2


def test_errors_of_every_task_are_ranked() -> None:
    errors, words = score_rows(
        {"index": np.arange(2), "x": np.array([1.0, 2.0]), "predicted_x": np.array([1.0, 4.0])}, "regression"
    )
    assert errors[0] == 0 < errors[1] and words(1) == {"true": "2", "said": "4"}
    columns = {
        "index": np.arange(2),
        "p_a": np.array([0.9, 0.1]),
        "p_b": np.array([0.2, 0.9]),
        "a": np.array([1.0, 1.0]),
        "b": np.array([0.0, 1.0]),
    }
    errors, words = score_rows(columns, "multilabel")
    assert errors[0] == 0 < errors[1] and words(1) == {"true": "a, b", "said": "b"}
    texts = {
        "index": np.arange(2),
        "prediction": np.array(["ab", "x"], dtype=object),
        "label": np.array(["ab", "yz"], dtype=object),
    }
    assert score_rows(texts, "ctc")[0].tolist() == [0.0, 1.0]
