"""People's collections as tables: folders, names that tell, manifests, windows, and bad rows."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longseq.domains.audio.clips import Clips, cut_windows, open_clips
from longseq.domains.audio.sources import ReadOptions, read_source
from longseq.domains.audio.splits import make_split, speaker_leaks
from longseq.errors import ConfigError, DataError
from tests.domains.audio.sounds import class_folders, wave, write


def opened(source: Path | str, on_bad: str = "error", **options: str) -> Clips:
    return open_clips(read_source(source, ReadOptions(**options)), on_bad=on_bad, decode=None, decode_limit_s=100.0).clips


def test_class_folders_and_split_folders(tmp_path: Path) -> None:
    frame = read_source(class_folders(tmp_path / "a", 2), ReadOptions())
    assert frame["label"].tolist() == ["high", "high", "low", "low"]
    for part in ("train", "test"):
        class_folders(tmp_path / "b" / part, 1)
    frame = read_source(tmp_path / "b", ReadOptions())
    assert frame["split"].tolist() == ["test", "test", "train", "train"]
    assert frame["label"].tolist() == ["high", "low", "high", "low"]


def test_names_that_tell(tmp_path: Path) -> None:
    for name in ("3_anna_0.wav", "7_bert_1.wav"):
        write(tmp_path / name)
    frame = read_source(tmp_path, ReadOptions(path_pattern=r"(?P<label>\d)_(?P<speaker>\w+)_(?P<index>\d+)\."))
    assert frame[["label", "speaker", "index"]].to_numpy().tolist() == [["3", "anna", "0"], ["7", "bert", "1"]]
    frame = read_source(tmp_path, ReadOptions(path_pattern=r"(?P<text>\d_\w+)_\d\."))
    assert frame["text"].tolist() == ["3 anna", "7 bert"]
    with pytest.raises(DataError, match=r"3_anna_0.wav.*does not match"):
        read_source(tmp_path, ReadOptions(path_pattern=r"(?P<label>x+)"))
    with pytest.raises(ConfigError, match="no named group"):
        read_source(tmp_path, ReadOptions(path_pattern=r"\d"))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_manifests(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "sub" / "a.wav", wave(1.0))
    rows = [{"path": "sub/a.wav", "label": "x", "start": "0.25", "duration": "0.5"}, {"path": "sub/a.wav", "label": "y"}]
    frame, path = pd.DataFrame(rows), tmp_path / f"list.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    clips = opened(path)
    assert clips.first.tolist() == [2000, 0]
    assert clips.count.tolist() == [4000, 8000]
    assert clips.frame["label"].tolist() == ["x", "y"]


def test_manifest_mistakes_name_the_line(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", wave(1.0))
    bad = tmp_path / "bad.csv"
    for text, message in (
        ("path,label\na.wav,x\ngone.wav,y\n", r"bad.csv, line 3: .*gone.wav: there is no such file"),
        ("path,label,start\na.wav,x,soon\n", r"line 2: 'soon' in 'start' is no number"),
        ("path,label,start\na.wav,x,3.0\n", r"line 2: start 3 s does not lie"),
        ("path,label\n,x\n", r"line 2: no path"),
        ("sound,label\na.wav,x\n", r"no column of paths"),
        ("", r"no table"),
    ):
        bad.write_text(text)
        with pytest.raises(DataError, match=message):
            opened(bad)
    bad.write_text("wavfile,label\na.wav,x\n")
    with pytest.raises(DataError, match=r"did you mean data.path_column=wavfile"):
        read_source(bad, ReadOptions(path_column="wav_file"))
    jsonl = tmp_path / "bad.jsonl"
    jsonl.write_text('{"path": "a.wav"}\n{"path": \n')
    with pytest.raises(DataError, match=r"bad.jsonl, line 2: not valid JSON"):
        read_source(jsonl, ReadOptions())


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, 3)
    (folder / "low" / "1.wav").write_bytes(b"")
    write(folder / "low" / "2.wav", np.zeros(800, dtype=np.float32))
    nan = wave()
    nan[5] = np.nan
    write(folder / "high" / "0.wav", nan, subtype="FLOAT")
    frame = read_source(folder, ReadOptions())
    with pytest.raises(DataError, match=r"1.wav: the file is empty.*on_bad=skip"):
        open_clips(frame, on_bad="error", decode=None, decode_limit_s=100.0)
    checked = open_clips(frame, on_bad="skip", decode=None, decode_limit_s=0.0)
    assert len(checked.clips) == 3
    assert len(checked.skipped) == 3
    assert any("silent" in text for text in checked.skipped) and any("NaN" in text for text in checked.skipped)
    (folder / "low" / "1.wav").unlink()
    with pytest.raises(DataError, match=r"high/0.wav: sample 5 is NaN.*2 of 5 clips"):
        open_clips(read_source(folder, ReadOptions()), on_bad="error", decode=None, decode_limit_s=100.0)
    # Headers alone cannot tell.
    assert len(open_clips(read_source(folder, ReadOptions()), on_bad="error", decode=False, decode_limit_s=100.0).clips) == 5


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_source(tmp_path / "nowhere", ReadOptions())
    with pytest.raises(DataError, match="holds no sound file"):
        read_source(tmp_path, ReadOptions())
    with pytest.raises(DataError, match="no file matches"):
        read_source(str(tmp_path / "*.wav"), ReadOptions())
    class_folders(tmp_path, 1)
    write(tmp_path / "loose.wav")
    with pytest.raises(DataError, match=r"loose.wav"):
        read_source(tmp_path, ReadOptions())


def test_windows_cover_a_clip(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.wav", wave(1.05))
    write(tmp_path / "y" / "b.wav", wave(0.2))
    cut = cut_windows(opened(tmp_path), clip_s=0.3, hop_s=0.3)
    assert cut.first.tolist() == [0, 2400, 4800, 6000, 0]
    assert cut.count.tolist() == [2400] * 4 + [1600]
    assert cut.frame["label"].tolist() == ["x"] * 4 + ["y"]


def table(n: int = 40) -> Clips:
    paths = [Path(f"/c/{i % 4}_{'abcde'[i % 5]}_{i}.wav") for i in range(n)]
    frame = pd.DataFrame({"path": paths, "where": [str(p) for p in paths], "id": [p.name for p in paths]})
    frame = frame.assign(label=[str(i % 4) for i in range(n)], speaker=["abcde"[i % 5] for i in range(n)])
    return Clips(frame, np.full(n, 8000), np.zeros(n, dtype=np.int64), np.full(n, 800))


def names(clips: Clips, rows: np.ndarray, column: str) -> set[str]:
    return set(clips.frame[column].iloc[rows])


def test_every_split_is_a_partition_and_stable() -> None:
    clips = table()
    forms: list[dict[str, Any]] = [
        {},
        {"group_column": "speaker"},
        {"test_pattern": r"_[0-4]\.wav$"},
        {"label_column": "label"},
    ]
    for options in forms:
        parts, rule = make_split(clips, seed=3, **options)
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(40))
        assert all(len(rows) for rows in parts.values()), rule
        again, _ = make_split(clips, seed=3, **options)
        assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_speakers_stay_apart_or_are_reported() -> None:
    clips = table()
    parts, _ = make_split(clips, group_column="speaker", seed=1)
    assert not speaker_leaks({name: clips.select(rows) for name, rows in parts.items()}, None)
    parts, rule = make_split(clips, group_column="speaker", test_groups=["c"], val_groups=["a"], seed=1)
    assert names(clips, parts["test"], "speaker") == {"c"}
    assert names(clips, parts["val"], "speaker") == {"a"}
    assert rule == "by speaker: val a; test c"
    parts, _ = make_split(clips, seed=1)
    leaks = speaker_leaks({name: clips.select(rows) for name, rows in parts.items()}, None)
    assert re.match(r"\d of 4 test clips are by a speaker who is in train", leaks["speaker leaks in test"])


def test_given_parts_are_kept() -> None:
    clips = table()
    parts, _ = make_split(clips, test_pattern=r"_[0-4]\.wav$", val_fraction=0.2, seed=1)
    assert parts["test"].tolist() == [0, 1, 2, 3, 4]
    assert len(parts["val"]) == 7
    split = Clips(clips.frame.assign(split=["train", "dev", "testing", "Train"] * 10), clips.rate_hz, clips.first, clips.count)
    parts, rule = make_split(split, seed=1)
    assert parts["val"].tolist() == list(range(1, 40, 4))
    assert "column 'split'" in rule


def test_split_mistakes_are_answered() -> None:
    clips = table()
    with pytest.raises(DataError, match="matches none"):
        make_split(clips, test_pattern="zzz")
    with pytest.raises(ConfigError, match="group_column"):
        make_split(clips, test_groups=["a"])
    with pytest.raises(DataError, match="'z' is not among the groups"):
        make_split(clips, group_column="speaker", test_groups=["z"])
    with pytest.raises(DataError, match=r"did you mean data.group_column=speaker"):
        make_split(clips, group_column="speakers")
    with pytest.raises(ConfigError, match="leave something"):
        make_split(clips, val_fraction=0.6, test_fraction=0.5)
