"""Baselines on sounds whose answer is known."""

import math

import numpy as np
import pytest

from longseq.domains.audio.baselines import commonest_text, markov_bits, segment_features, segment_means
from longseq.domains.audio.datamodule import AudioData
from longseq.domains.audio.tasks import CTC, FrameLabels, SoundClassification, SoundTagging
from longseq.domains.tasks import LanguageModel, Regression, Task


def demo(task: str, **options: object) -> AudioData:
    data = AudioData(task=task, **{"demo_rows": 60, "tokenizer": "logmel", **options})
    data.setup()
    return data


def scores(data: AudioData, task: type[Task]) -> dict[str, dict[str, float]]:
    options = {key: value for key, value in data.task_options().items() if key != "_target_"}
    return data.baselines(task(**options))  # type: ignore[return-value]


def test_the_order_of_short_tones_escapes_the_svm() -> None:
    found = scores(demo("classification", demo_rows=200), SoundClassification)
    assert found["majority"]["accuracy"] == pytest.approx(0.5, abs=0.02)
    assert found["MFCC + SVM"]["accuracy"] < 0.75
    assert set(found["MFCC + SVM"]) >= {"accuracy", "mcc", "f1", "eer"}


@pytest.mark.filterwarnings("ignore:Metric `Spearman", "ignore:The variance of predictions")
def test_tags_and_pitches_are_easy_for_the_svm() -> None:
    found = scores(demo("multilabel"), SoundTagging)
    assert found["MFCC + SVM"]["map"] > 0.95 > found["majority"]["map"]
    found = scores(demo("regression"), Regression)
    assert found["MFCC + SVM"]["mse"] < 0.2 * found["mean"]["mse"]


def test_transcripts_and_frames() -> None:
    assert commonest_text(["a", "b", "b", "abc"]) == "b"
    assert commonest_text(["a", "abcd", "ab"]) == "ab"
    found = scores(demo("ctc"), CTC)
    assert 0.3 < found["commonest transcript"]["cer"] <= 1.0
    found = scores(demo("frames"), FrameLabels)
    assert 0.4 < found["majority"]["accuracy"] < 0.8
    assert found["majority"]["loss"] < math.log(5)


def test_markov_chains_over_levels() -> None:
    data = demo("lm", demo_rows=12)
    bits = markov_bits(data.rows("train"), data.rows("test"))
    assert bits["uniform"] == 8.0
    assert bits["Markov order 1"] < bits["level frequencies"] < 8.0
    found = scores(data, LanguageModel)
    assert found["uniform"]["loss"] == pytest.approx(8 * math.log(2))


def test_segments_of_any_length() -> None:
    assert segment_means(np.arange(16.0)[:, None]).tolist() == [0.5 + 2 * i for i in range(8)]
    assert segment_means(np.arange(3.0)[:, None]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert segment_features(demo("classification").rows("test")).shape == (32, 160)
