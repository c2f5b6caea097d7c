"""Collections as people have them: lists of tags, one table of events for all splits, and options that would have no effect."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longseq.domains.audio.datamodule import AudioData
from longseq.domains.audio.labels import read_vocabulary
from longseq.errors import ConfigError, DataError
from tests.domains.audio.sounds import class_folders, wave, write


def data(task: str = "classification", **options: Any) -> AudioData:
    made = AudioData(task=task, batch_size=4, **{"val_fraction": 0.2, "test_fraction": 0.2, **options})
    made.setup()
    return made


def manifest(folder: Path, n: int = 12, **columns: Any) -> pd.DataFrame:
    paths = [write(folder / f"{i}.wav", wave(0.1 + 0.01 * i, seed=i)).name for i in range(n)]
    return pd.DataFrame({"path": paths, **columns})


def test_lists_of_tags(tmp_path: Path) -> None:
    frame = manifest(tmp_path, label=[["dog"], ["dog", "cat"], [], ["cat"]] * 3)
    frame.to_parquet(tmp_path / "m.parquet")
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
    for name in ("m.parquet", "m.jsonl"):
        made = data("multilabel", train=str(tmp_path / name))
        assert made.task_options()["labels"] == ["cat", "dog"]
        assert made.labelled is not None
        for clips, found in ((made.clips[n], made.labelled.arrays[n]) for n in ("train", "val", "test")):
            rows = [int(Path(path).stem) % 4 for path in clips.frame["path"]]
            np.testing.assert_array_equal(found, np.array([[0, 1], [1, 1], [0, 0], [1, 0]])[rows])
        with pytest.raises(DataError, match=r"(row|line) 1: a list in 'label', \['dog'\]; task=multilabel takes several"):
            data(train=str(tmp_path / name))


def test_one_table_of_events_for_recordings_in_several_folders(tmp_path: Path) -> None:
    lines = ["filename\tonset\toffset\tevent_label"]
    for part, label in (("x", "dog"), ("y", "cat")):
        for i in range(6):
            write(tmp_path / part / f"{i}.wav", wave(0.5))
            lines.append(f"{part}/{i}.wav\t0.1\t0.3\t{label if i else 'dog'}")
    events = tmp_path / "events.tsv"
    events.write_text("\n".join([*lines[:2], *lines[3:], "x/1.wav\t\t\t"]))
    made = data("frames", train=[str(tmp_path / "x"), str(tmp_path / "y")], events=str(events), tokenizer="logmel")
    found = {path.parent.name + path.stem: list for path, list in zip(*every(made, "path", "events"), strict=True)}
    assert found["x2"] == [(0.1, 0.3, "dog")] and found["y2"] == [(0.1, 0.3, "cat")] and found["x1"] == []
    # Val and test may be folders of their own.
    apart = data("frames", train=str(tmp_path / "y"), test=str(tmp_path / "x"), events=str(events), tokenizer="logmel")
    assert len(apart.rows("test")) == 6 and apart.task_options()["labels"] == ["none", "cat", "dog"]
    events.write_text("\n".join([*lines, "3.wav\t0.1\t0.2\tdog"]))
    both = [str(tmp_path / "x"), str(tmp_path / "y")]
    with pytest.raises(DataError, match=r"line 14: '3.wav' names 2 recordings, .*x/3.wav and .*y/3.wav; write the folder"):
        data("frames", train=both, events=str(events))
    skipped = data("frames", train=both, events=str(events), on_bad="skip")
    assert str(skipped.counts["skipped in data.events"]).startswith("1 rows; the first: ")


def every(made: AudioData, *columns: str) -> list[list[Any]]:
    return [[value for name in ("train", "val", "test") for value in made.clips[name].frame[column]] for column in columns]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("classification", {"on_long": "window"}, "needs data.clip_s"),
        ("classification", {"clip_s": 0.1, "hop_s": 0.05}, "data.hop_s .* needs data.on_long=window"),
        ("classification", {"events": "e.tsv"}, "data.events is for task=frames"),
        ("classification", {"vocabulary": ["a"]}, "data.vocabulary is for task=ctc"),
        ("regression", {"lowercase": True}, "data.lowercase is for task=ctc"),
        ("lm", {"tokenizer": "logmel"}, "task=lm tells mu-law levels"),
    ],
)
def test_options_without_effect_are_refused(tmp_path: Path, task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AudioData(task=task, train=str(tmp_path), **options)


def test_a_column_of_begins_that_is_not_there(tmp_path: Path) -> None:
    manifest(tmp_path, label=["a", "b"] * 6, begin=0.05).to_csv(tmp_path / "m.csv", index=False)
    source = str(tmp_path / "m.csv")
    assert set(every(data(train=source, start_column="begin"), "start_s")[0]) == {0.05}
    with pytest.raises(DataError, match=r"no column 'begins'.*did you mean data.start_column=begin\?"):
        data(train=source, start_column="begins")


def test_clips_without_a_speaker(tmp_path: Path) -> None:
    speakers = [None if i % 3 == 0 else f"s{i}" for i in range(12)]
    manifest(tmp_path, label=["a", "b"] * 6, speaker=speakers).to_csv(tmp_path / "m.csv", index=False)
    assert not [key for key in data(train=str(tmp_path / "m.csv")).counts if "leak" in key]
    with pytest.raises(DataError, match=r"line 2: no speaker, by which data.group_column splits; 4 of 12 rows lack one"):
        data(train=str(tmp_path / "m.csv"), group_column="speaker")


def test_whole_numbers_in_a_float_file(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write(tmp_path / "low" / "loud.wav", 32768 * wave(), subtype="FLOAT")
    with pytest.raises(DataError, match=r"loud.wav: samples reach \d+.*, where -1 to 1 was expected"):
        data(train=str(tmp_path))
    skipped = data(train=str(tmp_path), on_bad="skip")
    assert str(skipped.counts["skipped in data.train"]).startswith("1 of 13 rows")


def test_what_a_mac_lays_beside_files_is_no_sound(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "low" / "._0.wav").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert sum(len(clips) for clips in data(train=str(tmp_path)).clips.values()) == 12


def test_no_sample_of_a_test_counts_twice_in_bits_per_sample(tmp_path: Path) -> None:
    class_folders(tmp_path)
    made = data("lm", train=str(tmp_path), clip_s=0.03)
    for name in ("val", "test"):
        clips = made.clips[name]
        for _, part in clips.frame.assign(first=clips.first, stop=clips.first + clips.count).groupby("path"):
            assert (part["first"].to_numpy()[1:] == part["stop"].to_numpy()[:-1]).all()
    # Windows to train on keep their length.
    assert set(made.clips["train"].count) == {240}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_file_of_symbols_in_any_usual_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "symbols.txt"
    path.write_bytes("Ü\r\nn\r\n \r\n".encode(encoding))
    found = read_vocabulary(str(path), [])
    assert found.symbols[1:] == ["Ü", "n", " "] and not found.words
