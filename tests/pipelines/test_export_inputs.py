"""What predict.py makes of the files that people have: encodings, codings of sound, calendars, pictures, long inputs."""

import argparse
import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.prediction_series import read_unlabelled
from longseq.pipelines.predict_scripts import audio, dna, timeseries, vision
from longseq.pipelines.predict_scripts.pictures import open_picture, read_array
from longseq.pipelines.predict_scripts.shared import InputError, Model, Row
from longseq.pipelines.predict_scripts.times import number, times_of
from longseq.pipelines.predict_scripts.waves import read_wav


def graph(task: str, config: dict[str, Any], longest: int | None = None, **more: Any) -> Model:
    """A model as a domain's reader sees it, whose answer is given by a function."""
    model = object.__new__(Model)
    facts = {
        "task": task,
        "config": config,
        "labels": config.get("labels", []),
        "shortest": 2,
        "longest": longest,
        "cropped": 0,
    }
    facts |= {"takes_mask": True, "dtype": "int64", "along": task in ("lm", "base_labels", "profile", "frames")}
    vars(model).update(facts | more)
    return model


def reader(module: Any, model: Model, *args: str) -> Any:
    parser = argparse.ArgumentParser()
    module.Domain.add_options(parser)
    return module.Domain(model, parser.parse_args(list(args)))


def refused(domain: Any, path: Path) -> str:
    with pytest.raises(InputError) as found:
        list(domain.rows(path))
    return str(found.value)


# -- DNA

DNA = {"tokenizer": NucleotideTokenizer().to_dict()}


def letters(domain: Any, path: Path) -> list[tuple[str, str]]:
    found = {number: letter for letter, number in DNA["tokenizer"]["vocab"].items()}
    return [(row.names["id"], "".join(found[i] for i in row.inputs)) for row in domain.rows(path)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.fa", b">a x\nacgu\nNNry\n>b\nAC GT\n", [("a", "ACGTNNNN"), ("b", "ACGT")]),
        ("a.fas", b">a\r\nACGT\r\n", [("a", "ACGT")]),
        ("a.fa.gz", gzip.compress(b">a\nACGT\n", mtime=0), [("a", "ACGT")]),
        ("a.txt", b">a\nACGT\nAC\n", [("a", "ACGTAC")]),
        ("b.txt", b"ACGT\n\nTTTT\n", [("1", "ACGT"), ("3", "TTTT")]),
        ("a.fq", b"@r1 x\nACGT\n+\nIIII\n", [("r1", "ACGT")]),
        ("a.csv", "sequence,label\n\nACGT,é\n".encode("cp1252"), [("3", "ACGT")]),
        ("b.csv", "sequence;label\nACGT;x\n".encode("utf-16"), [("2", "ACGT")]),
        ("c.csv", b'note,sequence\n"two\nlines",ACGT\nx,AC\n', [("2", "ACGT"), ("4", "AC")]),
        # Longer than a cell of the csv module may be by itself.
        ("d.csv", b"sequence\n" + b"ACGT" * 40_000 + b"\n", [("2", "ACGT" * 40_000)]),
    ],
)
def test_sequences(name: str, content: bytes, expected: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert letters(reader(dna, graph("classification", DNA)), tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.fa.gz", gzip.compress(b">a\n" + bytes(range(65, 85)) * 50, mtime=0)[:-9], "cut off or damaged"),
        ("a.fq", b"@r1\nACGT\n+\nIIII\n@r2\nAC\n", "line 5.*cut off"),
        ("b.fq", b"@r1\nACGT\n+\nII\n", "line 1.*as many qualities"),
        ("a.csv", b"id,sequence\n1,ACGT\n2\n", "3: the sequence is empty"),
        ("b.csv", b"sequence\nACGT,ACGT\n", "line 2: 2 cells, the header has 1"),
        ("a.bed", b"chr1\t1\t2\n", "longseq predict"),
        ("a.parquet", b"PAR1....", "parquet"),
    ],
)
def test_sequences_that_are_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(reader(dna, graph("classification", DNA)).rows(tmp_path / name))


def test_sequences_are_read_as_in_training(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,dna\nfirst,AC-T\n")
    reading = {"sequence_column": "dna", "id_column": "name", "invalid": "N"}
    assert letters(reader(dna, graph("classification", {**DNA, "reading": reading})), tmp_path / "a.csv") == [("first", "ACNT")]
    (tmp_path / "b.csv").write_text("x,ACGT\n")
    reading = {"sequence_column": 2, "header": False}
    assert letters(reader(dna, graph("classification", {**DNA, "reading": reading})), tmp_path / "b.csv") == [("1", "ACGT")]


# -- inputs that are longer than the graph takes


def test_one_answer_is_for_the_middle(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("AAACGTTT\nAC\n")
    model = graph("classification", DNA, longest=4)
    rows = list(reader(dna, model).rows(tmp_path / "a.txt"))
    assert [row.names["length"] for row in rows] == [4, 2] and model.cropped == 1
    assert [DNA["tokenizer"]["vocab"][letter] for letter in "ACGT"] == rows[0].inputs.tolist()


@pytest.mark.parametrize("length", [1, 16, 17, 31, 40, 64, 101])
@pytest.mark.parametrize(("task", "stride"), [("base_labels", 1), ("profile", 4), ("frames", 2), ("lm", 1)])
def test_answers_along_an_input_are_for_all_of_it(task: str, stride: int, length: int) -> None:
    widths, read = [], []

    def run(inputs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        widths.extend(mask.sum(1).tolist())
        read.extend(inputs[:, 0].tolist())
        positions = -(-inputs.shape[1] // stride)
        return np.pad(inputs, ((0, 0), (0, positions * stride - inputs.shape[1])))[:, ::stride, None]

    model = graph(task, {"reading": {"long_window": 16}}, longest=1000, run=run)
    rows = [Row({}, np.arange(length)), Row({}, np.arange(5))]
    answers = model.answers(rows, batch_size=3, pad=0, stride=stride)
    # Each position is answered for once, from the place of the input that it stands for.
    assert [answer[:, 0].tolist() for answer in answers] == [list(range(0, n, stride)) for n in (length, 5)]
    assert max(widths) <= 16
    # Windows have context in front: all but those at the beginning.
    assert length <= 16 or len(set(read)) > 1


def test_models_of_windows_answer_for_windows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ACGTACGTAC\nAC\n")
    domain = reader(dna, graph("classification", {**DNA, "reading": {"window": 4, "stride": 3}}, longest=4))
    places = [
        (row.names["id"], row.names["start"], row.names["end"], len(row.inputs)) for row in domain.rows(tmp_path / "a.txt")
    ]
    assert places == [("1", 0, 4, 4), ("1", 3, 7, 4), ("1", 6, 10, 4), ("2", 0, 2, 2)]
    (tmp_path / "a.wav").write_bytes(wav(np.zeros(1000, "<i2"), 1, 16))
    config: dict[str, Any] = {"tokenizer": {"name": "waveform", "sample_rate_hz": 8000}, "embedding": {"strides": [4]}}
    config["reading"] = {"on_long": "window", "clip_s": 0.05, "hop_s": 0.04}
    rows = list(reader(audio, graph("classification", config, longest=400)).rows(tmp_path / "a.wav"))
    assert [(row.names["start_s"], len(row.inputs)) for row in rows] == [(0.0, 400), (0.04, 400), (0.075, 400)]


# -- sound


def wav(samples: np.ndarray, kind: int, bits: int, *, extensible: bool = False, length: int | None = None) -> bytes:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, 8000, 1000 * bits, channels * bits // 8, bits)
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, kind) + b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    data = samples.tobytes()
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"LIST\x03\x00\x00\x00abc\x00"
    chunks += b"data" + struct.pack("<I", len(data) if length is None else length) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i4", "<f4", "<f8"])
@pytest.mark.parametrize("extensible", [False, True])
def test_codings_of_sound(dtype: str, extensible: bool, tmp_path: Path) -> None:
    import soundfile

    whole = np.dtype(dtype).kind != "f"
    values = np.random.default_rng(0).uniform(-0.9, 0.9, (50, 2))
    scale = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
    samples = np.rint(values * scale + (128 if dtype == "u1" else 0)) if whole else values
    coded = wav(samples.astype(dtype), 1 if whole else 3, 8 * np.dtype(dtype).itemsize, extensible=extensible)
    (tmp_path / "a.wav").write_bytes(coded)
    found, rate = read_wav(tmp_path / "a.wav")
    expected, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    np.testing.assert_allclose(found, expected.mean(1), atol=1e-6)
    assert rate == 8000


def test_sound_that_is_refused(tmp_path: Path) -> None:
    tone = np.zeros(100, "<i2")
    broken = np.array([0.0, np.nan, 0.1], "<f4")
    for content, words in (
        (wav(tone, 1, 16)[:-20], "truncated, 20 bytes fewer"),
        (wav(broken, 3, 32), "sample 1 is NaN"),
        (wav(tone, 17, 4), "4 bits of coding 17.*ffmpeg"),
        (wav(tone[:0], 1, 16), "holds no samples"),
        (b"OggS" + bytes(50), "no wav file"),
        (b"RIFF" + bytes(4) + b"WAVE", "truncated or no wav"),
    ):
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_wav(tmp_path / "a.wav")
    # What was streamed into a pipe does not know its length.
    (tmp_path / "a.wav").write_bytes(wav(tone, 1, 16, length=0xFFFFFFFF))
    assert len(read_wav(tmp_path / "a.wav")[0]) == 100


def test_a_transcript_is_of_the_whole_recording(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(np.zeros(900, "<i2"), 1, 16))
    config = {"tokenizer": {"name": "waveform", "sample_rate_hz": 8000}, "embedding": {"strides": [4]}}
    for task, length in (("ctc", 900), ("classification", 400)):
        model = graph(task, config, longest=400, along=task == "ctc")
        assert len(next(iter(reader(audio, model).rows(tmp_path / "a.wav"))).inputs) == length


# -- series

HOURS = pd.date_range("2024-01-30", periods=60, freq="h")
ABOUT = {"channels": ["a", "b"], "targets": ["a", "b"], "covariates": [], "frequency": "1 h"}


def series(reading: dict[str, Any] | None = None, **about: Any) -> Any:
    config = {"embedding": {"lookback": 24}, "series": {**ABOUT, **about}, "horizon": 3, "quantiles": [0.5]}
    return reader(timeseries, graph("forecasting", config | ({} if reading is None else {"reading": reading})))


def table(**columns: Any) -> pd.DataFrame:
    values = {"date": HOURS, "b": np.arange(60) + 100.5, "other": "x", "a": np.arange(60) / 2}
    return pd.DataFrame(values | columns)


@pytest.mark.parametrize(
    "how",
    [
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%MZ",
        "%Y/%m/%d %H:%M",
        "%m/%d/%Y %I:%M %p",
        "%d.%m.%Y %H:%M",
        "%Y-%m-%dT%H:%M:%S+00:00",
    ],
)
def test_ways_to_write_times(how: str, tmp_path: Path) -> None:
    table(date=HOURS.strftime(how)).to_csv(tmp_path / "load.csv", index=False)
    (row,) = series().rows(tmp_path / "load.csv")
    assert row.names == {"id": "load", "last_observed": "2024-02-01 11:00:00"}
    np.testing.assert_allclose(row.inputs[-2:], [[29.0, 158.5], [29.5, 159.5]])
    assert row.extra[0] == "2024-02-01 12:00:00"


def test_times_in_zones_and_those_that_are_none() -> None:
    assert str(times_of(["2024-01-31T05:30+0530"], "f")[0]) == "2024-01-31T00:00:00.000000000"
    for text in ("", "soon", "2024-13-01", "01/02/24", "2024-01-31 5 o'clock"):
        with pytest.raises(InputError, match="write times as"):
            times_of([text], "f")
    assert number("1,5", "f", ",") == 1.5 and np.isnan(number(" NA", "f"))
    with pytest.raises(InputError, match="not finite"):
        number("inf", "f")


def test_series_that_are_refused(tmp_path: Path) -> None:
    late = HOURS.to_series().reset_index(drop=True)
    late[3:] += pd.Timedelta("30min")
    for frame, words in (
        (table(date=late), "2024-01-30 03:30:00 is no whole number of steps of 1 h"),
        (table(date=pd.date_range("2024-01-01", periods=60, freq="D")), "24 steps of 1 h apart"),
        (table(date=np.arange(60)), "are not 1 h apart"),
        (table(date=HOURS[::-1]), "line 3: the times do not rise"),
        (table().drop(columns="a"), "no column 'a', which the model reads"),
        (table().head(5), "5 steps of history, and a forecast needs 6"),
        (table().head(0), "a header and no rows"),
        (table(b="oops"), "line 2, column b: 'oops' is no number"),
    ):
        frame.to_csv(tmp_path / "load.csv", index=False)
        assert words in refused(series(), tmp_path / "load.csv")


def test_series_are_read_as_in_training(tmp_path: Path) -> None:
    frame = table().rename(columns={"date": "when"})
    frame.loc[[57, 58, 59], "a"] = np.nan
    frame = frame.drop(index=50)
    frame.to_csv(tmp_path / "load.csv", index=False, sep=";", decimal=",")
    reading = {"time_column": "when", "decimal": ",", "missing": "forward"}
    (row,) = series(reading).rows(tmp_path / "load.csv")
    # The row that is not there and the missing values repeat the last ones; a forecast follows the last row.
    np.testing.assert_allclose(row.inputs[-3:, 0], 28.0)
    assert row.inputs[50 - 60, 1] == row.inputs[49 - 60, 1] == 149.5
    assert row.names["last_observed"] == "2024-02-01 11:00:00" and np.isfinite(row.inputs).all()
    (row,) = series({**reading, "missing": "mask"}).rows(tmp_path / "load.csv")
    assert np.isnan(row.inputs[-3:, 0]).all() and np.isnan(row.inputs[-10]).all()


def test_covariates_that_are_known_ahead(tmp_path: Path) -> None:
    frame = table(price=np.arange(60.0)).drop(columns="other")
    frame.loc[57:, ["a", "b"]] = np.nan
    frame.drop(index=40).to_csv(tmp_path / "load.csv", index=False)
    (row,) = series({"known_covariates": ["price"]}, covariates=["price"]).rows(tmp_path / "load.csv")
    assert row.names["last_observed"] == "2024-02-01 08:00:00" and row.inputs.shape == (27, 3)
    assert row.inputs[-3:, 2].tolist() == [57, 58, 59]
    # Of a step that the table lacks nothing is known: the window begins at row 33.
    assert np.flatnonzero(np.isnan(row.inputs[:, 2])).tolist() == [40 - 33]
    assert "must be known" in refused(series({"known_covariates": ["price"]}, covariates=["price"]), shorter(tmp_path, frame))


def shorter(folder: Path, frame: pd.DataFrame) -> Path:
    frame.head(57).to_csv(folder / "short.csv", index=False)
    return folder / "short.csv"


def test_texts_of_a_series_that_training_did_not_hold(tmp_path: Path) -> None:
    about = {"covariates": ["kind=red", "kind=blue"]}
    for kind in ("blue", "green"):
        table(kind=kind, unique_id="s", y=1.0, ds=HOURS).to_csv(tmp_path / f"{kind}.csv", index=False)
    (row,) = series({}, **about).rows(tmp_path / "blue.csv")
    assert row.inputs[:, 2:].tolist() == [[0.0, 1.0]] * 27
    assert "'green' in column 'kind', and in training it was red, blue" in refused(series({}, **about), tmp_path / "green.csv")


@pytest.mark.parametrize(
    ("lines", "steps"),
    [
        # Labels in front of short series, of whole ones, and none.
        (["1,5,6,7", "2,8,9,10"], 3),
        (["1,5,6,7,8,9,10", "2,5,6,7,8,9,10"], 6),
        (["1,5,6,7,8,9", "2,5,6,7,8,9"], 6),
        (["0.5,5,6", "0.1,8,9"], 3),
        (["u,5,6", "v,8,9"], 2),
        (["label,t0,t1", "9,5,6"], 2),
        (["t0,t1,label", "5,6,9"], 2),
    ],
)
def test_labels_in_front_of_series(lines: list[str], steps: int, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    config = {"embedding": {"lookback": 6}, "labels": ["1", "2"]}
    rows = list(reader(timeseries, graph("classification", config)).rows(tmp_path / "x.csv"))
    assert all((~np.isnan(row.inputs)).sum() == steps for row in rows)
    # As `longseq predict` reads them.
    found = read_unlabelled(str(tmp_path / "x.csv"), ReadOptions(), {}, None, ["1", "2"], 6)
    np.testing.assert_array_equal(np.stack([row.inputs for row in rows]), found.values_NL1)


# -- pictures


def pixels(domain: Any, path: Path) -> list[tuple[str, tuple[int, ...]]]:
    return [(Path(row.names["id"]).name, row.inputs.shape) for row in domain.rows(path)]


def pictures(task: str = "classification", name: str = "patch", channels: int = 3) -> Any:
    tokenizer = {"name": name, "size": [8, 8], "channels": channels, "resize": "crop", "frames": 2, "frame_stride": 1}
    return reader(vision, graph(task, {"tokenizer": tokenizer}, takes_mask=False, along=False, dtype="uint8"))


def test_pictures_as_in_training(tmp_path: Path) -> None:
    from PIL import Image

    from longseq.domains.vision.stores import ImageFiles

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65536, (8, 8)).astype(np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(rng.uniform(0, 1, (8, 8)).astype(np.float32)).save(tmp_path / "shares.tiff")
    Image.fromarray(rng.integers(0, 256, (8, 8, 4)).astype(np.uint8)).save(tmp_path / "clear.png")
    Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(rng.integers(0, 2, (8, 8)).astype(bool)).save(tmp_path / "ink.png")
    files = sorted(tmp_path.iterdir())
    store = ImageFiles(files)
    for i, file in enumerate(files):
        np.testing.assert_array_equal(open_picture(file), store.read(i))
    assert len(pixels(pictures(), tmp_path)) == 5
    (tmp_path / "cut.png").write_bytes((tmp_path / "clear.png").read_bytes()[:60])
    (tmp_path / "film.mp4").write_bytes(b"....")
    for name, words in (
        ("cut.png", "cannot be read as a picture"),
        ("film.mp4", "not read; expected"),
        ("no.png", "no such file"),
    ):
        assert words in refused(pictures(), tmp_path / name)


def test_films_as_folders_and_animations(tmp_path: Path) -> None:
    from PIL import Image

    frames = [Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)) for k in range(5)]
    (tmp_path / "clips" / "one").mkdir(parents=True)
    for k, frame in enumerate(frames):
        frame.save(tmp_path / "clips" / "one" / f"f{k + 8}.png")
    frames[0].save(tmp_path / "clips" / "two.gif", save_all=True, append_images=frames[1:])
    np.save(tmp_path / "three.npy", np.zeros((5, 8, 8, 3), np.uint8))
    films = pictures(name="tubelet")
    rows = list(films.rows(tmp_path / "clips"))
    # Two frames from the middle of five; 10 comes behind 9.
    assert [row.names["first_frame"] for row in rows] == [1, 1]
    assert [row.inputs[:, 0, 0, 0].tolist() for row in rows] == [[40, 80], [40, 80]]
    assert pixels(films, tmp_path / "three.npy") == [("three.npy", (2, 3, 8, 8))]


def test_arrays_by_their_names_and_shapes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "parts.npz", x_train=images, x_test=images[:2], y_test=np.arange(2))
    assert read_array(tmp_path / "parts.npz", None)[1] == ":x_test"
    np.savez(tmp_path / "two.npz", left=images, right=images)
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object))
    np.save(tmp_path / "ink.npy", (images > 128).astype(np.int64))
    np.save(tmp_path / "dark.npy", (images // 2).astype(np.uint16))
    np.save(tmp_path / "film.npy", np.zeros((4, 9, 8, 8), np.uint8))
    np.save(tmp_path / "normal.npy", rng.normal(0, 1, (4, 8, 8)))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    grey = pictures(channels=1)
    (row, *_) = grey.rows(tmp_path / "ink.npy")
    assert set(np.unique(row.inputs)) == {0, 255}
    (row, *_) = grey.rows(tmp_path / "dark.npy")
    np.testing.assert_array_equal(row.inputs[0], images[0] // 2)
    for name, words in (
        ("two.npz", "which array holds the images? It has left, right"),
        ("objects.npz", "no npy or npz file that can be read"),
        ("broken.npz", "no npy or npz file that can be read"),
        ("film.npy", "(4, 9, 8, 8); expected (N, H, W)"),
        ("normal.npy", "without a normalisation"),
    ):
        assert words in refused(grey, tmp_path / name)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    domains = [reader(dna, graph("lm", DNA)), series(), pictures()]
    for domain, name in zip(domains, ("no.fa", "no.csv", "no.npy"), strict=True):
        assert "there is no such file" in refused(domain, tmp_path / name)
