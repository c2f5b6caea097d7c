"""Every task behind a server: what is answered over HTTP is what `longseq predict` writes."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from PIL import Image

from longseq.checkpoint import load_model, save_model
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.inference import load_inference
from tests.pipelines.servers import Client, form, letters, trained, within

pytest.importorskip("litserve")
Command = Callable[..., int]
SMALL_SERIES = ("data.lookback=24", "data.patch=6", "data.patch_stride=6", "data.demo_days=40")


@pytest.fixture
def predicted(longseq: Command, tmp_path: Path) -> Callable[..., pd.DataFrame]:
    """What the command line predicts for the bytes of a file."""

    def predict(run: Path, name: str, data: bytes, *options: str) -> pd.DataFrame:
        (tmp_path / name).write_bytes(data)
        command = ("predict", f"run={run}", f"data.predict={tmp_path / name}", "output=out.csv", "device=cpu", *options)
        assert longseq(*command) == 0
        return pd.read_csv(tmp_path / "out.csv")

    return predict


def run_of(tmp_path: Path, domain: str, *options: str) -> Path:
    return trained(tmp_path / "run", domain, *options)


def example_works(client: Client) -> None:
    """The example that the server itself gives, and the page tries."""
    info = client.ask("GET", "/info")[1]
    assert client.predict(info["example"]) and (info["stream"] or info["stream_reason"])


# -- DNA


def fasta() -> bytes:
    rng = np.random.default_rng(0)
    return b"".join(b">r%d about\n%s\n" % (i, letters(rng, n).encode()) for i, n in enumerate((64, 700, 250)))


def test_tracks_along_a_sequence(tmp_path: Path, predicted: Any) -> None:
    run = run_of(tmp_path, "dna", "task=profile", "data.demo_rows=20")
    table = predicted(run, "new.fa", fasta())
    with within(run) as client:
        results = client.upload("new.fa", fasta())
        example_works(client)
    assert [result["labels"] for result in results] == [["coverage"]] * 3
    for result in results:
        own = table[table["id"] == result["id"].split()[0]]
        np.testing.assert_allclose(np.array(result["tracks"])[:, 0], own["predicted_coverage"], rtol=1e-4, atol=1e-5)
        assert own["start"].tolist() == [i * result["bin_size"] for i in range(len(own))]


def test_labels_of_bases(tmp_path: Path, predicted: Any) -> None:
    run = run_of(tmp_path, "dna", "task=base_labels", "data.demo_rows=20")
    with_every_label(run / "model")
    table = predicted(run, "new.fa", fasta())
    with within(run) as client:
        results = client.upload("new.fa", fasta())
        example_works(client)
        sequence = fasta().splitlines()[3].decode()
        with client.stream() as stream:
            pieces = []
            for start in range(0, len(sequence), 100):
                stream.send(sequence[start : start + 100])
                pieces += json.loads(stream.recv())["probabilities"]
    assert len(table) and results[0]["labels"] == ["none", "closed", "open"]
    for result in results:
        own = table[table["id"] == result["id"].split()[0]]
        found = [(stretch["start"], stretch["end"], stretch["label"]) for stretch in result["stretches"]]
        assert found == list(zip(own["start"], own["end"], own["prediction"], strict=True))
    np.testing.assert_allclose(pieces, results[1]["probabilities"], atol=1e-5)


def with_every_label(folder: Path) -> None:
    """Lifts the rare labels, for a model of one step says `none` everywhere."""
    model = load_model(folder)
    head: Any = model.head
    with torch.no_grad():
        ids = NucleotideTokenizer().encode(letters(np.random.default_rng(1), 500)).astype(np.int64)
        logits = model(torch.from_numpy(ids)[None])[0]
        head.projection.bias -= logits.median(0).values
    save_model(model, folder)


@pytest.mark.parametrize(("task", "wanted"), [("regression", "values"), ("mlm", "logits")])
def test_values_and_masked_models_of_dna(tmp_path: Path, task: str, wanted: str, predicted: Any) -> None:
    options = {"mlm": ["backbone=cnn", "data.window=64"], "regression": ["data.demo_rows=40"]}[task]
    run = run_of(tmp_path, "dna", f"task={task}", *options)
    with within(run) as client:
        results = client.upload("new.fa", fasta())
        example_works(client)
    if task == "regression":
        table = predicted(run, "new.fa", fasta())
        name, *_ = results[0]["values"]
        np.testing.assert_allclose([r["values"][name] for r in results], table[f"predicted_{name}"], rtol=1e-4, atol=1e-4)
    else:
        assert [np.array(result[wanted]).shape for result in results] == [(64, 16), (700, 16), (250, 16)]


# -- audio


def wav(seconds: float = 1.3, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    sf.write(file, 0.1 * np.random.default_rng(3).standard_normal(round(seconds * rate)), rate, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize("task", ["frames", "ctc", "multilabel", "lm"])
def test_sounds(tmp_path: Path, task: str, predicted: Any) -> None:
    more = ["data.tokenizer=mulaw", "module.generate_clips=0"] if task == "lm" else ["data.tokenizer=logmel"]
    run = run_of(tmp_path, "audio", f"task={task}", "data.demo_rows=24", *more)
    # Of another rate than the model's 4,000 Hz.
    table = predicted(run, "a.wav", wav())
    with within(run) as client:
        result = client.upload("a.wav", wav())[0]
        example_works(client)
    assert (result["id"], result["duration_s"]) == ("a", 1.3)
    if task == "frames":
        columns = ["onset", "offset", "event_label", "probability"]
        found = pd.DataFrame(result["events"], columns=columns)
        pd.testing.assert_frame_equal(found, table[columns], check_dtype=False, atol=1e-4)
        assert np.shape(result["probabilities"])[1] == len(result["labels"]) and result["frame_s"] == 0.01
    elif task == "ctc":
        assert result["text"] == ("" if pd.isna(table.loc[0, "prediction"]) else table.loc[0, "prediction"])
    elif task == "multilabel":
        for label, chance in result["probabilities"].items():
            assert chance == pytest.approx(table.loc[0, f"p_{label}"], abs=1e-4)
            assert (label in result["labels"]) == (chance > 0.5)
    else:
        assert result["log_likelihood"] == pytest.approx(table.loc[0, "log_likelihood"], rel=1e-4)


# -- time series


def series(rows: int = 100) -> bytes:
    """Four channels, some values of which are missing."""
    rng = np.random.default_rng(0)
    values = 50 + 10 * np.sin(np.arange(rows) / 4)[:, None] + rng.standard_normal((rows, 4))
    values[40:45, 0] = np.nan
    table = pd.DataFrame(values, columns=[f"demand_{i}" for i in range(1, 5)])
    table.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq="h"))
    return table.to_csv(index=False).encode()


@pytest.mark.parametrize("task", ["imputation", "anomaly"])
def test_series_are_filled_in_and_scored(tmp_path: Path, task: str, predicted: Any) -> None:
    run = run_of(tmp_path, "timeseries", f"task={task}", *SMALL_SERIES)
    table = predicted(run, "load.csv", series())
    with within(run) as client:
        results = client.upload("load.csv", series())
        example_works(client)
        given = pd.read_csv(io.BytesIO(series()))
        columns = {name: [None if pd.isna(x) else x for x in given[name]] for name in given.columns[1:]}
        by_values = client.predict({"values": columns, "timestamps": given["date"].tolist()})
    # Windows lie side by side, the last one ends with the series: what two of them hold is told once by each.
    wanted = "filled" if task == "imputation" else "scores"
    told: dict[str, Any] = {}
    for result, same in zip(results, by_values, strict=True):
        assert result[wanted] == same[wanted]
        told = {**dict(zip(result["times"], result[wanted], strict=True)), **told}
    assert len(told) == 100
    if task == "anomaly":
        np.testing.assert_allclose([told[time] for time in sorted(told)], table["score"], rtol=1e-3, atol=1e-4)
    else:
        assert results[0]["channels"] == given.columns[1:].tolist()
        found = [told[f"2024-01-02T{hour}:00:00"][0] for hour in range(16, 21)]
        np.testing.assert_allclose(found, table.iloc[:, -1], rtol=1e-4)
        # What was observed stays as it was.
        np.testing.assert_allclose(told["2024-01-01T00:00:00"], given.iloc[0, 1:].astype(float), rtol=1e-6)


def test_series_are_classified(tmp_path: Path, predicted: Any) -> None:
    run = run_of(tmp_path, "timeseries", "task=classification", *SMALL_SERIES[:3])
    values = np.random.default_rng(0).standard_normal((3, 24)).round(3)
    lines = "\n".join(",".join(map(str, row)) for row in values).encode()
    table = predicted(run, "new.csv", lines)
    with within(run) as client:
        by_file, by_values = client.upload("new.csv", lines), client.predict({"values": values.tolist()})
        example_works(client)
    for row, found, same in zip(table.to_dict("records"), by_file, by_values, strict=True):
        assert found["label"] == same["label"] == row["prediction"]
        for label, chance in found["probabilities"].items():
            assert chance == pytest.approx(row[f"p_{label}"], abs=1e-4)


# -- vision


def test_videos(tmp_path: Path, predicted: Any) -> None:
    run = run_of(tmp_path, "vision", "data.tokenizer=tubelet")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (12, 16, 16), dtype=np.uint8)
    animation = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(animation, "GIF", save_all=True, append_images=others, duration=40)
    table = predicted(run, "clip.gif", animation.getvalue())
    # Images of eight frames are told from those of one by their axes alone.
    span = load_inference(run / "model").inputs[0].axes[1]
    with within(run) as client:
        results = [client.upload("clip.gif", animation.getvalue())[0]]
        middle = (len(frames) - int(span)) // 2
        results.append(client.predict({"pixels": frames[middle : middle + int(span)].tolist()})[0])
        example_works(client)
        huge = io.BytesIO()
        Image.new("L", (20_000, 9000)).save(huge, "GIF")
        wrong = [("a.gif", huge.getvalue()), ("a.gif", b"GIF89a" + bytes(30)), ("a.gif", animation.getvalue()[:90])]
        # What decoders would take for a list of other files to open.
        wrong += [
            ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
            ("a.mkv", b"ffconcat version 1.0\nfile /etc/passwd\n"),
        ]
        wrong += [("a.mp4", b"\0\0\0\x18ftypisom" + bytes(100)), ("a.avi", b"RIFF\0\0\0\0AVI " + bytes(100))]
        for name, data in wrong:
            status, error = client.refused(*form(name, data))
            assert status == 422 and "/tmp" not in error and "root:" not in error, error
        assert client.refused(*form("a.npz", b"PK"))[0] == 415
    for result in results:
        for label, chance in result["probabilities"].items():
            assert chance == pytest.approx(table.loc[0, f"p_{label}"], abs=1e-4)


def test_a_video_file(tmp_path: Path, predicted: Any) -> None:
    av: Any = pytest.importorskip("av")
    run = run_of(tmp_path, "vision", "data.tokenizer=tubelet")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for shade in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    table = predicted(run, "clip.mp4", data)
    with within(run) as client:
        result = client.upload("clip.mp4", data)[0]
        assert client.refused(*form("clip.mp4", data[: len(data) // 2]))[0] == 422
    assert result["label"] == str(table.loc[0, "prediction"])


def test_pixel_models_say_how_likely_an_image_is(tmp_path: Path, predicted: Any) -> None:
    run = run_of(tmp_path, "vision", "task=lm", "data.tokenizer=pixel")
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(image, "PNG")
    table = predicted(run, "a.png", image.getvalue())
    with within(run) as client:
        result = client.upload("a.png", image.getvalue())[0]
        example_works(client)
    assert result["bits_per_token"] > 0 and table.loc[0, "bits_per_dim"] > 0


def test_what_is_not_served_says_so(tmp_path: Path, longseq: Command, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, "vision", "task=masked_patch", "backbone=cnn")
    capfd.readouterr()
    assert longseq("serve", f"model={run}", "device=cpu", "port=0") == 2
    assert "task=masked_patch, which is not served: its model tells hidden cells" in capfd.readouterr().err
