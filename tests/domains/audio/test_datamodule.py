"""From files and from the demo to batches: lengths, rates, labels, windows, augmentation, and what is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.audio.datamodule import AudioData
from longseq.domains.audio.files import read_samples
from longseq.domains.tasks import IGNORE
from longseq.errors import ConfigError, DataError
from tests.domains.audio.sounds import wave, write


def data(task: str = "classification", **options: Any) -> AudioData:
    made = AudioData(task=task, batch_size=4, **{"val_fraction": 0.2, "test_fraction": 0.2, **options})
    made.setup()
    return made


def rows(made: AudioData, split: str = "train", epoch: int = 0) -> list[dict[str, Any]]:
    split_rows = made.rows(split)
    split_rows.epoch = epoch
    return [split_rows[i] for i in range(len(split_rows))]


def test_a_batch_from_class_folders(folders: Path) -> None:
    made = data(train=str(folders))
    assert made.task_options()["labels"] == ["high", "low"]
    assert made.task_options()["class_counts"] == [4, 4]
    batch = next(iter(made.loader("train", shuffle=True)))
    assert batch["inputs"].shape == batch["mask"].shape
    lengths = batch["mask"].sum(1)
    assert lengths.max() == batch["inputs"].shape[1]
    assert (batch["inputs"][~batch["mask"]] == 0).all()
    for index, length, label in zip(batch["index"], lengths, batch["labels"], strict=True):
        clips = made.clips["train"]
        assert np.array_equal(read_samples(clips.frame["path"].iloc[int(index)]), made.rows("train")[int(index)]["inputs"])
        assert length == clips.count[int(index)]
        assert clips.frame["label"].iloc[int(index)] == ["high", "low"][int(label)]


def test_other_rates_are_resampled_with_one_warning(folders: Path) -> None:
    write(folders / "low" / "9.wav", wave(0.5, rate_hz=16000), rate_hz=16000)
    with pytest.warns(UserWarning, match=r"resampling to 8000 Hz: 1 of 13 clips \(16,000 Hz: 1\)"):
        made = data(train=str(folders))
    assert made.max_length == 4000 // 16
    row = next(i for split in ("train", "val", "test") for i in rows(made, split) if len(i["inputs"]) == 4000)
    assert np.abs(np.fft.rfft(row["inputs"])).argmax() == 220


def test_stereo_is_mixed_and_counted(folders: Path) -> None:
    write(folders / "low" / "9.wav", np.stack([wave(), wave(seed=1)], 1))
    assert data(train=str(folders)).counts["mixed down to mono in data.train"] == "1 files"


def test_long_clips_are_cropped_cut_or_refused(folders: Path) -> None:
    write(folders / "low" / "9.wav", wave(1.0))
    made = data(train=str(folders), clip_s=0.25)
    assert max(len(row["inputs"]) for row in rows(made)) <= 2000
    assert sum("cropped to 0.25 s" in key for key in made.counts) == 1
    made = data(train=str(folders), clip_s=0.25, on_long="window")
    assert sum(len(made.clips[name]) for name in made.clips) == 12 + 4
    with pytest.raises(DataError, match=r"9.wav: 1.00 s, more than data.clip_s=0.25"):
        data(train=str(folders), clip_s=0.25, on_long="error")


def test_random_crops_change_with_the_epoch_and_repeat_with_the_seed(folders: Path) -> None:
    write(folders / "low" / "9.wav", wave(1.0))
    made, again = (data(train=str(folders), clip_s=0.1, val_fraction=0.1, test_fraction=0.1) for _ in range(2))
    first, second = rows(made, epoch=0), rows(made, epoch=1)
    assert all(np.array_equal(a["inputs"], b["inputs"]) for a, b in zip(first, rows(again, epoch=0), strict=True))
    assert any(not np.array_equal(a["inputs"], b["inputs"]) for a, b in zip(first, second, strict=True))
    assert all(
        np.array_equal(a["inputs"], b["inputs"]) for a, b in zip(rows(made, "val", 0), rows(made, "val", 1), strict=True)
    )


def test_noise_has_the_ratio_that_was_asked_for(folders: Path) -> None:
    clean = data(train=str(folders))
    noisy = data(train=str(folders), noise_snr_db=[10, 10])
    for a, b in zip(rows(clean), rows(noisy), strict=True):
        noise = b["inputs"] - a["inputs"]
        assert 10 * np.log10(np.mean(a["inputs"] ** 2) / np.mean(noise**2)) == pytest.approx(10, abs=1e-3)
    recorded = data(train=str(folders), noise_snr_db=[5, 5], noise_files=str(folders / "low"))
    noise = rows(recorded)[0]["inputs"] - rows(clean)[0]["inputs"]
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) > 0.5


def test_speed_changes_the_length_and_not_the_validation(folders: Path) -> None:
    made = data(train=str(folders), speeds=[2.0])
    expected = [-(-int(n) // 2) for n in made.clips["train"].count]
    assert [len(row["inputs"]) for row in rows(made)] == expected
    assert [len(row["inputs"]) for row in rows(made, "val")] == made.clips["val"].count.tolist()


def test_mixup_mixes_labels_as_it_mixes_sounds(folders: Path) -> None:
    made = data(train=str(folders), mixup=1.0)
    labels = np.stack([row["label"] for row in rows(made)])
    assert labels.shape == (8, 2) and labels.dtype == np.float32
    assert np.allclose(labels.sum(1), 1.0)
    assert ((labels > 0.02) & (labels < 0.98)).any()
    assert next(iter(made.loader("val")))["labels"].dtype == torch.int64
    for task in ("regression", "lm"):
        with pytest.raises(ConfigError, match="mixup"):
            AudioData(task=task, mixup=0.2)


def test_spectrum_masks_need_a_spectrum(folders: Path) -> None:
    made = data(train=str(folders), tokenizer="logmel", time_masks=2, freq_masks=1)
    assert next(iter(made.loader("train")))["spectrum_masks"].shape == (4, 3, 4)
    assert "spectrum_masks" not in next(iter(made.loader("val")))
    with pytest.raises(ConfigError, match="tokenizer=logmel"):
        AudioData(task="classification", tokenizer="waveform", time_masks=1)


def test_features_are_standardised_by_the_training_clips(folders: Path) -> None:
    made = data(train=str(folders), tokenizer="mfcc", n_mfcc=13)
    embedding = made.model_options(None)["embedding"]  # type: ignore[arg-type]
    assert len(embedding["mean"]) == len(embedding["std"]) == 13
    from longseq.embeddings_audio import MFCCEmbedding

    front = MFCCEmbedding(4, **{key: value for key, value in embedding.items() if key != "name"})
    features = torch.cat([front.features(torch.from_numpy(row["inputs"])[None])[0] for row in rows(made)])
    assert features.mean(0).abs().max() < 1e-2
    assert (features.std(0) - 1).abs().max() < 2e-2


def test_labels_that_train_lacks_are_refused(folders: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other / "strange" / "0.wav")
    write(other / "low" / "0.wav")
    with pytest.raises(DataError, match=r"strange.0.wav: label 'strange' is absent from train, which has high, low"):
        data(train=str(folders), test=str(other))


def test_speaker_leaks_are_counted(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i % 2}_{'ab'[i // 2 % 2]}_{i}.wav")
    pattern = r"(?P<label>\d)_(?P<speaker>\w)_\d+\."
    made = data(train=str(tmp_path), path_pattern=pattern)
    assert "by a speaker who is in train too" in str(made.counts["speaker leaks in test"])
    assert made.summary()["train"]["speakers"] == 2


def test_tags_numbers_and_transcripts(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / f"{i}.wav", wave(0.2 + 0.01 * i))
    lines = [f"{i}.wav,{'cat;dog' if i % 2 else ''},{i / 2},{'ab ba' if i % 2 else 'Ba'}" for i in range(10)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,size,text", *lines]))
    source = str(tmp_path / "list.csv")
    tags = data("multilabel", train=source)
    assert tags.task_options()["labels"] == ["cat", "dog"]
    assert {tuple(row["label"]) for row in rows(tags)} == {(0.0, 0.0), (1.0, 1.0)}
    numbers = data("regression", train=source, label_column="size")
    options = numbers.task_options()
    assert options["labels"] == ["size"] and options["std"][0] > 0
    texts = data("ctc", train=source, lowercase=True)
    assert texts.task_options()["vocabulary"] == ["<blank>", " ", "a", "b"]
    batch = next(iter(texts.loader("train")))
    assert batch["labels"].shape[0] == batch["references"].shape[0] == 4
    assert (batch["output_lengths"] == -(-batch["mask"].sum(1) // 16)).all()
    words = data("ctc", train=source, vocabulary=["ab", "ba", "Ba"])
    assert words.task_options()["vocabulary"] == ["<blank>", "ab", "ba", "Ba"]
    with pytest.raises(DataError, match=r"line \d+: 'B' in the transcript, absent from the vocabulary of data.vocabulary"):
        data("ctc", train=source, vocabulary=["a", "b", " "])
    short = data("ctc", train=source, stem_strides=[16, 16, 16])
    assert any("longer than their clips" in key for key in short.counts)


def test_events_become_frame_labels(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"{i}.wav", wave(1.0))
    events = tmp_path / "events.tsv"
    lines = ["filename\tonset\toffset\tevent_label", *(f"{i}.wav\t0.25\t0.5\tdog" for i in range(6))]
    events.write_text("\n".join(lines))
    made = data("frames", train=str(tmp_path), events=str(events), tokenizer="logmel")
    assert made.task_options()["labels"] == ["none", "dog"]
    frames = rows(made)[0]["frames"]
    assert np.flatnonzero(frames).tolist() == list(range(25, 50))
    # Train holds the second label too, whichever of its files these are.
    events.write_text("\n".join([*lines, *(f"{i}.wav\t0.4\t0.6\tcat" for i in range(6))]))
    with pytest.raises(DataError, match=r"'cat' and 'dog' overlap|'dog' and 'cat' overlap"):
        rows(data("frames", train=str(tmp_path), events=str(events), tokenizer="logmel"))
    events.write_text("\n".join([*lines, "gone.wav\t0\t1\tdog"]))
    with pytest.raises(DataError, match=r"line 8: 'gone.wav' is none of the recordings"):
        data("frames", train=str(tmp_path), events=str(events))


def test_a_language_model_predicts_the_next_level(folders: Path) -> None:
    made = data("lm", train=str(folders), clip_s=0.05, hop_s=0.02)
    batch = next(iter(made.loader("train")))
    assert batch["inputs"].dtype == torch.int64
    real = batch["mask"].clone()
    real[:, -1] = False
    real[:, :-1] &= batch["mask"][:, 1:]
    shifted = batch["inputs"].roll(-1, 1)
    assert (batch["labels"][real] == shifted[real]).all()
    assert (batch["labels"][~batch["mask"]] == IGNORE).all()
    assert made.task_options() == {"vocab_size": 256, "unit": "sample"}
    assert len(made.clips["train"]) > sum(len(made.clips[n]) for n in ("val", "test"))


def test_predict_needs_no_labels(folders: Path, tmp_path: Path) -> None:
    write(tmp_path / "new" / "a.wav")
    made = data(train=str(folders), predict=str(tmp_path / "new"))
    batch = next(iter(made.loader("predict")))
    assert "labels" not in batch
    assert made.row_names("predict", np.array([0])) == {"id": ["a.wav"], "start_s": [0.0], "duration_s": [0.2]}


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "ctc", "frames", "lm"])
def test_the_demo_is_synthetic_seeded_and_says_so(task: str) -> None:
    first, again = data(task, demo_rows=8), data(task, demo_rows=8)
    assert first.counts["synthetic"]
    assert all(np.array_equal(a["inputs"], b["inputs"]) for a, b in zip(rows(first), rows(again), strict=True))
    other = data(task, demo_rows=8, seed=2)
    assert not np.array_equal(rows(first, "test")[0]["inputs"], rows(other, "test")[0]["inputs"])


def test_mistakes_are_answered(folders: Path) -> None:
    with pytest.raises(ConfigError, match="no task=mlm"):
        AudioData(task="mlm")
    with pytest.raises(ConfigError, match="on_bad"):
        AudioData(task="lm", on_bad="ignore")
    with pytest.raises(ConfigError, match="clip_s"):
        AudioData(task="lm", clip_s=0.0)
    with pytest.raises(TypeError, match="no option 'mixupp'"):
        AudioData(task="classification", mixupp=1.0)
    with pytest.raises(DataError, match="no column 'text'"):
        data("ctc", train=str(folders))
    with pytest.raises(ConfigError, match=r"needs data.events"):
        data("frames", train=str(folders))
    with pytest.raises(DataError, match="no clips are left for test"):
        data(train=str(folders), test_fraction=0.0)
