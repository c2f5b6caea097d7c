"""What each domain's clients send, and that the answers are those of the model at hand."""

import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from PIL import Image

from longseq.checkpoint import save_model
from longseq.inference import load_inference
from longseq.model import build_model
from tests.pipelines.servers import Client, form, letters, trained, within

pytest.importorskip("litserve")
RATE = 4000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("runs")
    return lambda domain: trained(folder / domain, domain)


def offline(run: Path, *inputs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return load_inference(run / "model")(*inputs).numpy()


@pytest.fixture(scope="module")
def audio(runs: Callable[[str], Path]) -> Iterator[Client]:
    with within(runs("audio"), max_length=40_000) as client:
        yield client


def wav(samples: np.ndarray, rate: int, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format=kind)
    return file.getvalue()


def test_sounds_as_samples_and_as_files(audio: Client, runs: Callable[[str], Path]) -> None:
    samples = (np.random.default_rng(0).normal(size=3000) * 0.1).astype(np.float32)
    expected = offline(runs("audio"), torch.from_numpy(samples)[None])[0]
    found = audio.predict({"samples": samples.tolist(), "sample_rate_hz": RATE})[0]["probabilities"]
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-5)
    rounded = torch.from_numpy(sf.read(io.BytesIO(wav(samples, RATE)), dtype="float32")[0])[None]
    result = audio.upload("door bell.wav", wav(samples, RATE))[0]
    np.testing.assert_allclose(list(result["probabilities"].values()), offline(runs("audio"), rounded)[0], atol=1e-5)
    assert result["id"] == "door bell" and result["duration_s"] == 0.75
    for kind, suffix in (("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")):
        assert audio.upload(f"a.{suffix}", wav(np.tile(samples, 3), 16_000, kind))[0]["label"] in found
    raw = audio.predict(wav(samples, RATE), **{"Content-Type": "audio/wav"})
    assert raw[0]["probabilities"] == result["probabilities"]


def test_another_rate_is_resampled_or_refused(audio: Client) -> None:
    seconds = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 300 * seconds) * 0.3
    found = audio.predict({"samples": tone.tolist(), "sample_rate_hz": 8000})[0]
    same = audio.predict({"samples": (np.sin(2 * np.pi * 300 * seconds[::2]) * 0.3).tolist(), "sample_rate_hz": RATE})[0]
    by_file = audio.upload("tone.wav", wav(tone, 8000))[0]
    for answer in (found, by_file):
        np.testing.assert_allclose(list(answer["probabilities"].values()), list(same["probabilities"].values()), atol=0.02)
    assert "resample it" in audio.refused({"samples": [0.1] * 100, "sample_rate_hz": 767_999})[1]
    assert "sample_rate_hz is missing" in audio.refused({"samples": [0.1] * 100})[1]


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([0.1, float("nan"), 0.2], "samples[1] is NaN"),
        ([0.1, None], "samples[1] is NaN"),
        ([1e39], "samples[0] is too large"),
        ([[0.1], [0.2]], "one list"),
        ([0.1, "x"], "samples"),
        ([], "empty"),
        ("abc", "list of numbers"),
        ([0.1] * 40_001, "at most 40000"),
        ([0.1, {}, True], "samples[1] must be a number, found an object"),
        ([1, "2"], "samples[1] must be a number, found text"),
        ([10**400], "samples"),
    ],
)
def test_wrong_samples_are_named(audio: Client, samples: Any, reason: str) -> None:
    status, error = audio.refused(json.dumps({"samples": samples, "sample_rate_hz": RATE}))
    assert status == 422 and reason in error


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 1e400, 4000.5, "4000", True])
def test_wrong_rates_are_named(audio: Client, rate: Any) -> None:
    status, error = audio.refused(json.dumps({"samples": [0.1] * 9, "sample_rate_hz": rate}))
    assert status == 422 and "sample_rate_hz must be a whole number" in error


def test_letters_are_no_samples(audio: Client) -> None:
    """Four letters are four bytes as well, but nobody means a number by them."""
    for text in ("ACGT", "AAAAPw=="):
        with audio.stream() as stream:
            stream.send(text)
            assert "found text" in json.loads(stream.recv())["error"]


def test_files_that_are_none(audio: Client) -> None:
    whole = wav(np.zeros(3000) + 0.1 * np.sin(np.arange(3000)), RATE)
    cases = [("a.wav", b"RIFF", 422, "a.wav"), ("a.wav", whole[:2000], 422, "truncated"), ("a.wav", b"", 422, "empty")]
    cases += [("list.csv", b"path\n/etc/passwd\n", 415, ".csv"), ("a.wav", b"\x1f\x8b" + b"0" * 99, 422, "compressed")]
    cases += [
        ("../../a.exe", b"x", 415, ".exe"),
        ("long.wav", wav(np.sin(np.arange(50_000)) * 0.1, RATE), 422, "at most 40000"),
    ]
    for name, data, status, reason in cases:
        found = audio.refused(*form(name, data))
        assert found[0] == status and reason in found[1] and "/tmp" not in found[1], (name, found)


def lying(whole: bytes, place: int, value: int) -> bytes:
    """A wav file with another number in its header."""
    return whole[:place] + struct.pack("<I", value) + whole[place + 4 :]


def test_headers_that_lie(audio: Client) -> None:
    whole = wav(0.1 * np.sin(np.arange(3000)), RATE)
    assert whole[36:40] == b"data"
    # Where a header says the size of all, the rate, the bytes of a sample in all channels and the size of the samples.
    sizes = [(40, 2**32 - 20), (40, 10**9), (24, 0), (24, 1), (24, 2**32 - 1), (24, 700_001), (32, 0), (16, 2**31)]
    for place, value in sizes:
        status, error = audio.refused(*form("a.wav", lying(whole, place, value)))
        assert status == 422 and len(error) < 300, (place, value, error)
    channels = whole[:22] + struct.pack("<H", 65_535) + whole[24:]
    assert audio.refused(*form("a.wav", channels))[0] == 422
    numbers = np.array([0.1, np.nan, 0.2] * 100, dtype=np.float32)
    file = io.BytesIO()
    sf.write(file, numbers, RATE, format="WAV", subtype="FLOAT")
    assert "NaN" in audio.refused(*form("a.wav", file.getvalue()))[1]


def test_silence_that_packs_well(audio: Client) -> None:
    file = io.BytesIO()
    with sf.SoundFile(file, "w", 400_000, 8, format="FLAC") as sound:
        for _ in range(100):
            sound.write(np.zeros((100_000, 8), dtype=np.int16))
    assert len(file.getvalue()) < 2**21
    assert "in 8 channels" in audio.refused(*form("a.flac", file.getvalue()))[1]


@pytest.fixture(scope="module")
def series(runs: Callable[[str], Path]) -> Iterator[Client]:
    with within(runs("timeseries")) as client:
        yield client


def demand(steps: int = 200) -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=steps, freq="h")
    waves = {f"demand_{i}": 50 + 10 * np.sin(np.arange(steps) / 4 + i) for i in range(1, 5)}
    return pd.DataFrame({"date": times, **waves})


def test_series_as_values_and_as_csv(series: Client, runs: Callable[[str], Path]) -> None:
    table = demand()
    values = table.drop(columns="date").to_numpy()
    expected = offline(runs("timeseries"), torch.from_numpy(values[-168:].astype(np.float32))[None])[0]
    by_file = series.upload("load.csv", table.to_csv(index=False).encode())[0]
    by_rows = series.predict({"values": values.tolist(), "timestamps": table["date"].astype(str).tolist()})[0]
    by_column = series.predict({"values": {name: table[name].tolist() for name in table.columns[1:]}})[0]
    for found in (by_file, by_rows, by_column):
        np.testing.assert_allclose(np.array(found["forecast"]), expected, rtol=1e-5, atol=1e-4)
        assert found["channels"] == list(table.columns[1:]) and len(found["quantiles"]) == expected.shape[-1]
    assert by_file["id"] == "load" and by_rows["times"][0] == by_file["times"][0] == "2024-01-09T08:00:00"
    assert "times" not in by_column and "history" not in by_file
    full = series.upload("load.csv", table.to_csv(index=False).encode(), "/predict?full=1")[0]
    assert len(full["history"]["values"]) == 168 and full["history"]["times"][-1] == "2024-01-09T07:00:00"


def test_wrong_series_are_named(series: Client) -> None:
    values = demand().drop(columns="date").to_numpy().tolist()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"values": [row[:3] for row in values]}, "4 columns"),
        ({"values": values, "timestamps": ["2024-01-01"]}, "list of 200"),
        ({"values": values, "timestamps": ["x"] * 200}, "is no time"),
        ({"values": values, "timestamps": [10**30] * 200}, "64 bits"),
        ({"values": [[1.0, 2.0, 3.0], [1.0]]}, "one shape"),
        ({"values": {"demand_1": [1.0], "demand_2": [1.0, 2.0]}}, "one length"),
        ({"values": []}, "columns"),
        # Half a character, which no answer may repeat as it is.
        ({"values": {"\ud800": ["x"]}}, "found text"),
        ({"values": values, "time": []}, "'time'"),
    ]
    for body, reason in cases:
        status, error = series.refused(body)
        assert status == 422 and reason in error, (error, reason)


def test_series_are_called_like_their_files(series: Client) -> None:
    table = "date,demand_1,demand_2,demand_3,demand_4\n2024-01-02,1,2,3,4\n2024-01-01,1,2,3,4\n"
    error = series.refused(*form("mine.csv", table.encode()))[1]
    assert "series 'mine'" in error and "upload" not in error


@pytest.mark.parametrize(("cell", "time", "reason"), [("1e300", "2024-01-02", "finite number"), ("1", "9999-01-02", "no time")])
def test_numbers_and_times_beyond_all_measure(series: Client, cell: str, time: str, reason: str) -> None:
    """Silently infinite, or in the nineteenth century, otherwise."""
    table = f"date,demand_1,demand_2,demand_3,demand_4\n{time},{cell},2,3,4\n"
    assert reason in series.refused(*form("a.csv", table.encode()))[1]


def test_half_a_character_is_named(series: Client) -> None:
    for body in (b'{"values": {"\\ud800": [1, 2]}}', b'{"values": [[1, 2, 3, 4]], "timestamps": ["\\ud800"]}'):
        status, error = series.refused(body, {"Content-Type": "application/json"})
        assert status == 422 and "half of a character" in error


def test_tables_that_are_no_series(series: Client) -> None:
    wide = b"date," + b",".join(b"c%d" % i for i in range(1_000_000)) + b"\n" + b"1," * 1_000_000 + b"1\n"
    long = b"date,demand_1,demand_2,demand_3,demand_4\n" + b"1,1,1,1,1\n" * 1_100_000
    ragged = b"date,demand_1\n2024-01-01,1\n2024-01-02," + b"1," * 500_000 + b"\n"
    cases = [(wide, "1000001 columns"), (long, "1100001 lines"), (ragged, ""), (b"\0" * 5000, ""), (b'"' * 5001, "")]
    cases += [(b"date\n" + b"2024-01-01\n" * 9, ""), (b"date,demand_1\n2024-01-01,/etc/passwd\n", "")]
    began = time.monotonic()
    for data, reason in cases:
        status, error = series.refused(*form("a.csv", data))
        assert status == 422 and reason in error and len(error) < 1100 and "root:" not in error, error
    # Parsers would take minutes for some of them.
    assert time.monotonic() - began < 20


def png_of(width: int, height: int) -> bytes:
    """An image of one grey value that takes far more memory than bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width // 8 + 1) * 100) for _ in range(height // 100)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_images_that_are_too_large_to_unpack(runs: Callable[[str], Path]) -> None:
    with within(runs("vision")) as client:
        small = png_of(800, 100)
        lie = small[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + small[24:]
        # Above and below the size from which the library itself refuses.
        for bomb in (png_of(14_000, 14_000), png_of(9000, 8000), lie):
            assert len(bomb) < 2**20
            status, error = client.refused(*form("a.png", bomb))
            assert status == 422 and "longseq-" not in error, error
        photo = io.BytesIO()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(photo, "PNG")
        for data in (
            photo.getvalue()[:45],
            b"\x89PNG\r\n\x1a\n",
            b"<svg/>",
            b"GIF89a" + bytes(50),
            b"#EXTM3U\nfile:///etc/passwd",
        ):
            assert client.refused(*form("a.png", data))[0] == 422
        assert client.refused(*form("a.svg", b"<svg/>"))[0] == client.refused(*form("a.npy", b"x"))[0] == 415


@pytest.mark.parametrize(("kind", "mode"), [("EPS", "RGB"), ("TIFF", "CMYK"), ("ICO", "RGB")])
def test_only_common_decoders_see_what_strangers_send(runs: Callable[[str], Path], kind: str, mode: str) -> None:
    """Pillow would hand PostScript to Ghostscript, whatever the file's name says."""
    file = io.BytesIO()
    Image.new(mode, (16, 16)).save(file, kind)
    with within(runs("vision")) as client:
        status, error = client.refused(*form("a.png", file.getvalue()))
    assert status == 422 and "cannot identify" in error and "Ghostscript" not in error


def test_images_as_pixels_and_as_files(runs: Callable[[str], Path]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    expected = offline(runs("vision"), torch.from_numpy(pixels)[None, None])[0]
    with within(runs("vision")) as client:
        png, photo = io.BytesIO(), io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        Image.fromarray(rng.integers(0, 256, (40, 31, 3), dtype=np.uint8)).save(photo, "JPEG")
        bodies = [{"pixels": pixels.tolist()}, {"pixels": pixels[..., None].tolist()}]
        for result in [*(client.predict(body)[0] for body in bodies), client.upload("digit.png", png.getvalue())[0]]:
            np.testing.assert_allclose(list(result["probabilities"].values()), expected, atol=1e-5)
        assert client.upload("photo.jpg", photo.getvalue())[0]["label"] in result["probabilities"]
        for wrong, reason in (([[300]], "between 0 and 255"), ([[-1.0]], "between"), ([1, 2], "(H, W)"), ([["a"]], "number")):
            assert reason in client.refused({"pixels": wrong})[1]
        with client.stream() as stream:
            assert "whole input" in json.loads(stream.recv())["error"]


def language_model(folder: Path) -> Path:
    config = {
        "domain": "dna",
        "task": "lm",
        "embedding": {"name": "token", "vocab_size": 16},
        "backbone": {"name": "mamba", "d_model": 8, "n_layers": 1},
        "head": {"name": "token", "n_outputs": 16},
        "tokenizer": {"type": "nucleotide"},
    }
    return save_model(build_model(config), folder / "lm")


def test_language_models_say_how_likely_each_base_is(tmp_path: Path) -> None:
    model = language_model(tmp_path)
    sequences = [letters(np.random.default_rng(i), 40 + 7 * i) for i in range(3)]
    inference = load_inference(model)
    with within(model) as client:
        for sequence, found in zip(sequences, client.predict({"sequences": sequences}, "/predict?full=1"), strict=True):
            ids = torch.tensor([["ACGT".index(letter) + 7 for letter in sequence]])
            with torch.no_grad():
                logits = inference(ids, torch.ones_like(ids, dtype=torch.bool))[0]
            chances = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
            np.testing.assert_allclose(found["log_likelihoods"][1:], chances.numpy(), atol=1e-5)
            np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-5)
            assert found["log_likelihood"] == pytest.approx(float(chances.sum()), abs=1e-4)
        whole = np.array(found["logits"])
        pieces = [sequence[:1], sequence[1:20], sequence[20:21], sequence[21:]]
        with client.stream() as stream:
            answers = []
            for piece in pieces:
                stream.send(piece)
                answers.append(json.loads(stream.recv()))
        assert [answer["end"] - answer["start"] for answer in answers] == [len(piece) for piece in pieces]
        np.testing.assert_allclose(np.concatenate([answer["logits"] for answer in answers]), whole, atol=1e-5)


def test_sound_streams_in_binary(audio: Client, runs: Callable[[str], Path]) -> None:
    samples = (np.random.default_rng(1).normal(size=2000) * 0.1).astype("<f4")
    expected = offline(runs("audio"), torch.from_numpy(samples)[None])[0]
    with audio.stream() as stream:
        for start in range(0, 2000, 80):
            stream.send(samples[start : start + 80].tobytes())
            answer = json.loads(stream.recv())
        stream.send(json.dumps({"finish": True}))
        answer = json.loads(stream.recv())
        assert answer["finished"]
        np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)
    for message, reason in ((b"abc", "float32"), (json.dumps({"samples": [0.1], "sample_rate_hz": 8000}), "not resampled")):
        with audio.stream() as stream:
            stream.send(message)
            assert reason in json.loads(stream.recv())["error"]
