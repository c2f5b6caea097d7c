"""The verb export: what it writes, what predict.py makes of it without longseq, and what is refused."""

import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from longseq import load_model
from longseq.checkpoint import save_model
from longseq.errors import CheckpointError, ConfigError, LongseqError
from longseq.inference import Port, load_inference
from longseq.model import build_model
from longseq.pipelines import export, export_aoti
from longseq.pipelines.export_card import model_card
from longseq.pipelines.export_check import REPORT, ExportedModel, ExportMismatchError, check_folder, relative_error
from longseq.pipelines.export_formats import write_graph
from longseq.pipelines.export_graphs import Graph
from longseq.pipelines.export_source import open_source
from longseq.pipelines.export_steps import why_no_step
from tests.pipelines.exports import run_export, run_predict, tiny_model

onnxruntime = pytest.importorskip("onnxruntime")
Command = Callable[..., int]
FIT = ["trainer=cpu", "backbone.n_layers=1", "trainer.max_epochs=1", "baselines=false", "report=false", "run_dir=run"]


def fit(longseq: Command, *args: Any) -> pd.DataFrame:
    assert longseq("fit", *args, *FIT) == 0
    return pd.read_csv("run/predictions.csv")


def predicted(folder: Path, *args: Any, without: tuple[str, ...] = ("torch",)) -> pd.DataFrame:
    done = run_predict(folder.resolve(), *args, "--output", Path("out.csv").resolve(), without=without)
    assert done.returncode == 0, done.stderr
    return pd.read_csv("out.csv")


def same(found: pd.DataFrame, expected: pd.DataFrame, *names: str) -> None:
    """The columns that both have are equal, numbers to rounding."""
    shared = [column for column in found.columns if column in expected.columns]
    assert set(names) <= set(shared)
    pd.testing.assert_frame_equal(found.filter(shared), expected.filter(shared), rtol=1e-4, atol=1e-5)


# -- predict.py without longseq


def test_dna_like_the_run(longseq: Command, dna_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_csv(dna_csv)
    for name, rows in (("train", frame[:80]), ("val", frame[80:100]), ("test", frame[100:])):
        rows.to_csv(f"{name}.csv", index=False)
    files = [f"data.{name}={name}.csv" for name in ("train", "val", "test")]
    expected = fit(longseq, "domain=dna", "backbone=cnn", "backbone.d_model=8", "module.rc_average=true", *files)
    assert longseq("export", "run=run", "output=model", "evaluate=test", "latency=[32]") == 0
    shown = capsys.readouterr().out
    assert "model.onnx" in shown and "latency" in shown and "in eager" in shown
    same(predicted(tmp_path / "model", tmp_path / "test.csv"), expected, "id", "length", "prediction", "p_0", "p_1")
    report = json.loads(Path("model", REPORT).read_text())
    metrics, run = report["metrics"], json.loads(Path("run/metrics.json").read_text())
    assert metrics["model"]["mcc"] == pytest.approx(run["test"]["mcc"], abs=1e-6)
    assert all(abs(change) < 1e-3 for change in metrics["change"].values())
    card = Path("model/README.md").read_text()
    assert "test.csv" in card and f"{run['test']['accuracy']:.4g}" in card and "both strands" in card
    # The same sequences as FASTA and as plain text.
    records = [f">{i} more words\n{s[:30]}\n{s[30:]}\n" for i, s in zip(expected["id"], frame["sequence"][100:], strict=True)]
    Path("test.fa").write_text("".join(records))
    Path("test.txt").write_text("\n".join(frame["sequence"][100:]))
    same(predicted(tmp_path / "model", tmp_path / "test.fa"), expected, "id", "p_1")
    assert list(predicted(tmp_path / "model", tmp_path / "test.txt")["p_1"]) == pytest.approx(list(expected["p_1"]), abs=1e-5)
    # And what is wrong with files is said.
    for name, text, words in (
        ("bad.fa", ">a\nACGT\n>b\nACGQ\n", ("bad.fa, b", "'Q' at base 4")),
        ("bad.csv", "seq\nACGT\n", ("no column 'sequence'", "seq")),
        ("empty.fa", "", ("empty",)),
    ):
        Path(name).write_text(text)
        done = run_predict(tmp_path / "model", tmp_path / name)
        assert done.returncode == 1 and all(word in done.stderr for word in words), done.stderr
        assert "Traceback" not in done.stderr


def test_sound_like_the_run(longseq: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):
        for part in ("train", "val", "test"):
            tone = np.sin(np.arange(800 + 40 * i) * (0.1 if i % 2 else 0.4)) * 0.4 + rng.normal(0, 0.05, 800 + 40 * i)
            write_wav(Path(f"{part}/{'low' if i % 2 else 'high'}/{i:02}.wav"), tone, 8000)
    # Another rate, two channels and 24 bits; both are brought to what the model hears.
    write_wav(Path("test/low/rate.wav"), np.sin(np.arange(1700) * 0.07) * 0.4, 11025)
    write_wav(Path("test/low/wide.wav"), rng.uniform(-0.5, 0.5, (900, 2)), 8000, width=3)
    args = ["domain=audio", "backbone=cnn", "backbone.d_model=8", "data.tokenizer=logmel", "data.train=train", "data.val=val"]
    with pytest.warns(UserWarning, match="resampling"):
        expected = fit(longseq, *args, "data.test=test")
    assert longseq("export", "run=run", "output=model", "latency=null", "format=torch") == 0
    found = predicted(tmp_path / "model", tmp_path / "test", without=("onnxruntime",))
    same(found, expected, "id", "duration_s", "prediction", "p_high", "p_low")
    assert len(found) == 26
    Path("noise.wav").write_bytes(b"RIFF")
    assert "wav" in run_predict(tmp_path / "model", tmp_path / "noise.wav", without=()).stderr


def write_wav(path: Path, samples: np.ndarray, rate: int, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.clip(np.rint(samples * 2 ** (8 * width - 1)), -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1).astype("<i4")
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes())


def test_series_like_the_run(longseq: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    steps = np.arange(600)
    values = {name: 10 * k + np.sin(2 * np.pi * steps / 24 + k) + rng.normal(0, 0.1, 600) for k, name in enumerate("ab")}
    frame = pd.DataFrame({"date": pd.date_range("2024-01-30", periods=600, freq="h"), **values})
    frame.loc[300, "b"] = np.nan
    frame.to_csv("load.csv", index=False)
    args = ["domain=timeseries", "backbone=cnn", "backbone.d_model=8", "data.train=load.csv", "data.lookback=48"]
    more = ["data.horizon=6", "data.patch=8", "data.patch_stride=8", "data.calendar=[hour,weekday,month]"]
    expected = fit(longseq, *args, *more)
    assert longseq("export", "run=run", "output=model", "latency=null") == 0
    found = predicted(tmp_path / "model", tmp_path / "load.csv", "--origins", tmp_path / "run/predictions.csv")
    same(found, expected, "id", "channel", "last_observed", "step", "time", "forecast", "q0.025", "q0.975")
    # Without origins, what lies behind the file's end.
    ahead = predicted(tmp_path / "model", tmp_path / "load.csv")
    assert len(ahead) == 12 and ahead["time"].iloc[0] == str(frame["date"].iloc[-1] + pd.Timedelta("1h"))
    report = check_folder("model")
    assert report["graphs"]["sequence"]["inputs"][0]["shape"] == ["batch", 54, 8]
    assert "sees both sides" in report["graphs"]["step"]["reason"]


def test_images_like_the_run(longseq: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(90) % 3
    images = (rng.integers(0, 60, (90, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    for name, rows in (("train", slice(0, 50)), ("val", slice(50, 70)), ("test", slice(70, 90))):
        np.savez(f"{name}.npz", images=images[rows], labels=labels[rows])
    files = [f"data.{name}={name}.npz" for name in ("train", "val", "test")]
    expected = fit(longseq, "domain=vision", "backbone=cnn", "backbone.d_model=8", *files)
    assert longseq("export", "run=run", "output=model", "latency=null") == 0
    same(predicted(tmp_path / "model", tmp_path / "test.npz", without=("torch", "PIL")), expected, "id", "prediction", "p_0")
    from PIL import Image

    Image.fromarray(images[70]).resize((16, 16), Image.Resampling.NEAREST).save("picture.png")
    found = predicted(tmp_path / "model", tmp_path / "picture.png")
    (row,) = found.to_dict("records")
    assert row["id"].endswith("picture.png") and 0 <= row["p_0"] <= 1


@pytest.mark.parametrize(("old", "new"), [(11025, 8000), (8000, 16000), (44100, 16000)])
def test_sound_is_resampled_as_in_training(old: int, new: int) -> None:
    from longseq.domains.audio.files import resample as trained
    from longseq.pipelines.predict_scripts.audio import resample

    samples = np.random.default_rng(0).normal(0, 0.2, 3001).astype(np.float32)
    np.testing.assert_allclose(resample(samples, old, new), trained(samples, old, new), atol=3e-5)


@pytest.mark.parametrize("name", ["1 h", "15 min", "7 d", "month", "quarter", "year", "business", "steps of 3"])
@pytest.mark.parametrize("start", ["2024-01-31", "2023-11-30 05:00", "2024-02-15"])
def test_times_go_on_as_in_training(name: str, start: str) -> None:
    from longseq.domains.timeseries.frequency import Frequency
    from longseq.pipelines.predict_scripts.times import clock, continued, step_of

    steps = np.arange(30)
    kind = "index" if name.startswith("steps") else "fixed" if " " in name else name
    first: Any = np.int64(7) if kind == "index" else np.datetime64(start, "ns")
    frequency = Frequency(kind, step_of(name) if " " in name else 1)
    assert frequency.name == name
    times = continued(first, steps, name)
    assert np.array_equal(times, frequency.after(first, steps))
    if kind != "index":
        from longseq.domains.timeseries.calendar_features import PERIODS, calendar_features

        for cycle, period in PERIODS.items():
            expected = calendar_features(times, [cycle])[:, 0]
            np.testing.assert_allclose(np.sin(2 * np.pi * clock(times, cycle) / period), expected, atol=1e-6)


# -- the folder


def test_weights_and_their_card(tmp_path: Path) -> None:
    source = tiny_model("dna", "gru", tmp_path / "source")
    report = run_export(source, tmp_path / "out", format="safetensors")
    assert report["largest_error"] == 0.0 and check_folder(tmp_path / "out")["format"] == "safetensors"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", "labels.json", "tokenizer.json", REPORT}
    ids = torch.arange(7, 11).unsqueeze(0)
    torch.testing.assert_close(load_model(tmp_path / "out")(ids), load_model(source)(ids))
    assert json.loads((tmp_path / "out/labels.json").read_text()) == ["no", "yes"]
    with pytest.raises(CheckpointError, match="weights and no graph"):
        ExportedModel(tmp_path / "out")


def test_onnx_holds_its_labels_and_answers_like_the_model(tmp_path: Path) -> None:
    source = tiny_model("dna", "gru", tmp_path / "source")
    report = run_export(source, tmp_path / "out", max_length=300, latency=[16])
    graph = report["graphs"]["sequence"]
    assert (graph["shortest"], graph["longest"], graph["opset"]) == (2, 300, 20)
    assert {(check["batch"], check["length"]) for check in graph["checks"]} == {(b, n) for b in (1, 3) for n in (16, 37, 130)}
    assert graph["largest_error"] < 1e-5 and report["latency"][0]["length"] == 16
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["longseq.labels"]) == ["no", "yes"] and json.loads(held["longseq.tokenizer"])["vocab"]["A"] == 7
    exported, inference = ExportedModel(tmp_path / "out"), load_inference(source)
    ids, mask = inference.example(2, 77)
    with torch.no_grad():
        assert relative_error(inference(ids, mask).numpy(), exported(ids.numpy(), mask.numpy())) < 1e-5
    with pytest.raises(ValueError, match="length 301; this export takes 2 to 300"):
        exported(np.zeros((1, 301), np.int64), np.ones((1, 301), bool))
    with pytest.raises(ValueError, match="inputs must be int64"):
        exported(np.zeros((1, 30), np.float32), np.ones((1, 30), bool))
    # One position at a time: the last answer is that for the whole sequence.
    step = report["graphs"]["step"]
    names = [port["name"] for port in step["inputs"]]
    stepper = onnxruntime.InferenceSession(tmp_path / "out/step.onnx")
    state = [np.zeros([2, *port["shape"][1:]], port["dtype"]) for port in step["inputs"][1:]]
    for position in range(20):
        answer, *state = stepper.run(None, dict(zip(names, [ids[:, position].numpy(), *state], strict=True)))
    expected = exported(ids[:, :20].numpy(), np.ones((2, 20), bool))
    assert relative_error(expected, answer) < 1e-5 and step["initial_state"] == "zeros"


def test_tracks_in_bins_of_any_length(tmp_path: Path) -> None:
    config = json.loads((tiny_model("dna", "cnn", tmp_path / "source") / "config.json").read_text())
    scale = {"mean": [2.0, 3.0], "std": [1.0, 1.0], "loss": "poisson", "other_strand": None}
    config |= {"task": "profile", "bin_size": 16, "head": {"name": "bins", "n_outputs": 2, "bin_size": 16}, **scale}
    source = save_model(build_model(config), tmp_path / "bins")
    report = run_export(source, tmp_path / "out", format="torch", step=False)
    assert report["graphs"]["sequence"]["largest_error"] < 1e-5
    exported, inference = ExportedModel(tmp_path / "out"), load_inference(source)
    for length in (17, 40, 48):
        ids, mask = inference.example(2, length)
        found = exported(ids.numpy(), mask.numpy())
        assert found.shape == (2, -(-length // 16), 2) and relative_error(inference(ids, mask).detach().numpy(), found) < 1e-5


def test_steps_of_sound_hold_the_stem(tmp_path: Path) -> None:
    source = tiny_model("audio", "gru", tmp_path / "source")
    report = run_export(source, tmp_path / "out", format="torch")
    step = report["graphs"]["step"]
    assert step["inputs"][0]["shape"] == ["batch", 4]
    assert "state.stem.0" in {port["name"] for port in step["inputs"]}
    assert step["largest_error"] < 1e-5


@pytest.mark.parametrize("pool", ["mean", "max", "first", "last"])
def test_steps_pool_as_the_head_does(pool: str, tmp_path: Path) -> None:
    from longseq.pipelines.export_check import verify
    from longseq.pipelines.export_formats import torch_runner
    from longseq.pipelines.export_steps import step_graph

    folder = tiny_model("dna", "gru", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    config["head"]["pool"] = pool
    (folder / "config.json").write_text(json.dumps(config))
    inference = load_inference(folder)
    graph = step_graph(inference)
    assert max(row["error"] for row in verify(graph, inference, torch_runner(graph.module))) < 1e-5


def test_steps_are_traced_with_tensors_as_callers_give_them(tmp_path: Path) -> None:
    from longseq.pipelines.export_steps import step_graph
    from longseq.pipelines.export_trace import example_of

    # Compiled graphs read memory by the strides of the example, and a state that goes out comes in again.
    for domain, backbone in (("dna", "mamba"), ("audio", "s4d"), ("dna", "mamba2")):
        inference = load_inference(tiny_model(domain, backbone, tmp_path / backbone))
        graph = step_graph(inference)
        example = example_of(graph, inference, 2)
        with torch.no_grad():
            answers = graph.module(*example)
        assert all(tensor.is_contiguous() for tensor in (*example, *answers))


def test_why_there_is_no_step_graph(tmp_path: Path) -> None:
    reasons = {
        ("dna", "hyena"): "grows",
        ("dna", "cnn"): "both sides",
        ("vision", "gru"): "images are given whole",
        ("timeseries", "gru"): "whole windows",
    }
    for (domain, backbone), words in reasons.items():
        reason = why_no_step(load_inference(tiny_model(domain, backbone, tmp_path / "m")))
        assert reason is not None and words in reason, reason


def test_int8_says_what_it_costs(longseq: Command, dna_csv: Path, tmp_path: Path) -> None:
    fit(longseq, "domain=dna", "backbone=cnn", "backbone.d_model=32", f"data.train={dna_csv}")
    assert longseq("export", "run=run", "output=small", "quantize=int8", "latency=null", "step=false") == 0
    found = check_folder("small")["quantization"]
    assert found["layers"] >= 2 and found["bytes"] < found["bytes_before"]
    assert found["metrics"]["split"] == "val" and abs(found["metrics"]["change"]["accuracy"]) < 0.2
    assert len(predicted(tmp_path / "small", dna_csv)) == 120
    # Data that have gone are no reason to fail.
    dna_csv.unlink()
    assert longseq("export", "run=run", "output=small", "quantize=int8", "latency=null", "step=false") == 0
    assert "no such file" in check_folder("small")["quantization"]["not_measured"]


@pytest.mark.slow
@pytest.mark.skipif(export_aoti.compiler() is None, reason="no C++ compiler")
def test_compiled(tmp_path: Path) -> None:
    source = tiny_model("dna", "cnn", tmp_path / "source")
    report = run_export(source, tmp_path / "out", format="aoti", step=False)
    assert f"for torch {torch.__version__.split('+')[0]}" in (tmp_path / "out/README.md").read_text()
    assert report["graphs"]["sequence"]["file"] == "model.aoti.pt2" and report["graphs"]["sequence"]["largest_error"] < 1e-4
    (tmp_path / "reads.txt").write_text("ACGTACGTTTGACA\nACGTT\n")
    assert len(predicted(tmp_path / "out", tmp_path / "reads.txt", without=("onnxruntime",))) == 2


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_aoti.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler.*apt install g\+\+"):
        run_export(tmp_path / "none", tmp_path / "out", format="aoti")


# -- what is refused


def test_another_answer_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tiny_model("dna", "gru", tmp_path / "source")
    with pytest.raises(ExportMismatchError, match=r"relative error .* at batch \d, length \d+, allowed is 1e-12"):
        run_export(source, tmp_path / "out", tolerance=1e-12)
    assert [path.name for path in tmp_path.iterdir() if path.name != "source"] == []
    # An earlier export stays as it was.
    run_export(source, tmp_path / "out", format="safetensors")
    with pytest.raises(ExportMismatchError):
        run_export(source, tmp_path / "out", tolerance=1e-12)
    assert check_folder(tmp_path / "out")["format"] == "safetensors"


def test_interrupted_or_without_room_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_model("dna", "gru", tmp_path / "source")
    problems: list[tuple[BaseException, type[BaseException]]] = [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), LongseqError),
    ]
    for problem, expected in problems:

        def fail(*args: Any, problem: BaseException = problem) -> None:
            raise problem

        monkeypatch.setattr(export.card, "model_card", fail)
        with pytest.raises(expected):
            run_export(source, tmp_path / "out", format="safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
    with pytest.raises(LongseqError, match=r"output=.* cannot be written: "):
        run_export(source, tmp_path / "source/config.json/out", format="safetensors")


def test_cards_say_what_is_known(tmp_path: Path) -> None:
    source = tiny_model("timeseries", "gru", tmp_path / "source")
    run_export(source, tmp_path / "out", format="safetensors")
    card = (tmp_path / "out/README.md").read_text()
    assert "Steps of 1 h, of which 48 are read, 6 are forecast; channels: a, b." in card
    source = tiny_model("vision", "cnn", tmp_path / "source")
    report = run_export(source, tmp_path / "out", format="safetensors")
    assert "brought to 8 x 8 pixels of 1 channels" in (tmp_path / "out/README.md").read_text()
    small: dict[str, Any] = {"kind": "int8", "layers": 3, "not_measured": "there are no data"}
    card = model_card(open_source(None, str(source)), {**report, "quantization": small})
    assert "int8 (3 of them); what that does to the metrics was not measured: there are no data." in card
    small["metrics"] = {
        "split": "val",
        "monitor": "mcc",
        "model": {"loss": 1.0, "mcc": 0.8},
        "artefact": {"loss": 1.1, "mcc": 0.7},
    }
    card = model_card(open_source(None, str(source)), {**report, "quantization": small})
    assert "int8 (3 of them): val/mcc went from 0.8 to 0.7." in card


def test_errors_are_seen() -> None:
    good = np.array([1.0, 2.0, np.nan])
    assert relative_error(good, good) == 0.0
    assert relative_error(good, good + 0.02) == pytest.approx(0.01)
    assert relative_error(good, np.array([1.0, np.nan, np.nan])) == float("inf")
    assert relative_error(good, good[:2]) == float("inf")


def test_folders_that_were_tampered_with(tmp_path: Path) -> None:
    source = tiny_model("dna", "cnn", tmp_path / "source")
    run_export(source, tmp_path / "out", format="torch")
    (tmp_path / "reads.txt").write_text("ACGTACGTTTGACA\n")

    def cut(folder: Path) -> None:
        data = (folder / "model.pt2").read_bytes()
        (folder / "model.pt2").write_bytes(data[: len(data) // 2])

    def edit(folder: Path) -> None:
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"yes"', '"yea"'))

    def later(folder: Path) -> None:
        report = json.loads((folder / REPORT).read_text())
        (folder / REPORT).write_text(json.dumps({**report, "version": 99, "longseq": "9.0"}))

    changes: dict[str, Callable[[Path], Any]] = {
        "truncated": cut,
        "changed after the export": edit,
        "99|upgrade": later,
        "missing": lambda folder: (folder / "model.pt2").unlink(),
        "damaged|cannot be read": lambda folder: (folder / REPORT).write_text("{"),
        "is damaged": lambda folder: (folder / REPORT).write_text('{"version": 1, "files": {"model.pt2": 3}, "graphs": {}}'),
    }
    for words, change in changes.items():
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "out", folder)
        change(folder)
        with pytest.raises(CheckpointError, match=words):
            ExportedModel(folder)
        done = run_predict(folder, tmp_path / "reads.txt", without=())
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert any(word in done.stderr for word in (*words.split("|"), "version")), done.stderr
    # The card is its owner's.
    (tmp_path / "out/README.md").write_text("mine")
    check_folder(tmp_path / "out")


def test_fourier_transforms_want_an_older_opset(tmp_path: Path) -> None:
    class Spectrum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(torch.fft.rfft(x))

    example = torch.randn(2, 16)
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(Spectrum(), (example,), dynamic_shapes=({1: length},))
    ports = (Port("x", "float32", (2, "length")),), (Port("y", "float32", (2, "bins", 2)),)
    graph = Graph("sequence", Spectrum(), *ports, shortest=2, longest=64)
    with pytest.raises(ConfigError, match="Fourier transform whose length varies"):
        write_graph(program, graph, tmp_path / "model.onnx", "onnx", {}, 20)
    assert write_graph(program, graph, tmp_path / "model.onnx", "onnx", {}, None) == {"opset": 18}
    found = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": example.numpy()})
    np.testing.assert_allclose(found[0], Spectrum()(example).numpy(), atol=1e-5)


def test_commands_that_make_no_sense(tmp_path: Path, longseq: Command, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_model("dna", "hyena", tmp_path / "source")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"format": "tflite"}, "must be one of safetensors, torch, onnx, aoti"),
        ({"output": str(other)}, "holds other files"),
        ({"max_length": 513}, "between 2 and 512"),
        ({"quantize": "int4"}, "int8 or null"),
        ({"quantize": "int8", "format": "torch"}, "needs format=onnx"),
        ({"run": "runs/x"}, "not both"),
        ({"model": None}, "either run="),
        ({"output": str(source)}, "holds the model that is exported"),
        ({"output": str(source.parent)}, "holds the model that is exported"),
        ({"evaluate": "test"}, "export with run="),
    ]
    for options, words in wrong:
        with pytest.raises(LongseqError, match=words):
            run_export(**{"model": source, "output": tmp_path / "out", **options})
    assert (other / "thesis.txt").is_file() and not (tmp_path / "out").exists()
    assert longseq("export", "model=nowhere", "output=out") == 2
    assert "nowhere is not a model folder" in capsys.readouterr().err
    vision = tiny_model("vision", "cnn", tmp_path / "vision")
    with pytest.raises(ConfigError, match="inputs of one size"):
        run_export(vision, tmp_path / "out", max_length=5)
