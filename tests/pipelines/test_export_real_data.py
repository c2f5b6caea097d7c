"""Real files end to end (marker `data`): the same metrics through onnxruntime, and predictions.csv again without longseq."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.pipelines.exports import run_predict

Command = Callable[..., int]
FIT = [
    "trainer=cpu",
    "backbone.d_model=16",
    "backbone.n_layers=1",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=40",
    "trainer.limit_val_batches=10",
    "baselines=false",
    "report=false",
    "run_dir=run",
]


def check(longseq: Command, tmp_path: Path, inputs: Path, *more: str, without: tuple[str, ...] = ("torch",)) -> pd.DataFrame:
    """Exports the run to ONNX and compares metrics and predictions; gives what predict.py wrote."""
    assert longseq("export", "run=run", "output=model", "evaluate=test", "latency=null", "step=false") == 0
    report = json.loads((tmp_path / "model/export_report.json").read_text())
    trained = json.loads((tmp_path / "run/metrics.json").read_text())["test"]
    found = report["metrics"]["artefact"]
    shared = [name for name in found if name in trained]
    assert shared
    for name in shared:
        assert found[name] == pytest.approx(trained[name], abs=1e-3, rel=1e-3), name
    done = run_predict(tmp_path / "model", inputs, *more, "--output", tmp_path / "out.csv", without=without)
    assert done.returncode == 0, done.stderr
    written, expected = pd.read_csv(tmp_path / "out.csv"), pd.read_csv(tmp_path / "run/predictions.csv")
    columns = [name for name in written.columns if name in expected.columns and name != "id"]
    pd.testing.assert_frame_equal(written.filter(columns), expected.filter(columns), rtol=1e-3, atol=1e-4)
    assert len(columns) >= 2
    return written


@pytest.mark.data
def test_transcription_factors(longseq: Command, real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dna" / "gue" / "tf_0"
    files = [f"data.{name}={folder / file}.csv.gz" for name, file in (("train", "train"), ("val", "dev"), ("test", "test"))]
    assert longseq("fit", "domain=dna", "backbone=hyena", *files, "module.rc_average=true", *FIT) == 0
    found = check(longseq, tmp_path, folder / "test.csv.gz")
    assert len(found) == 1000


@pytest.mark.data
def test_spoken_digits(longseq: Command, real_data: Path, tmp_path: Path) -> None:
    import soundfile

    recordings = real_data / "audio" / "fsdd" / "recordings"
    # As their owner would bring them to a machine without a decoder.
    for path in sorted(recordings.glob("*_[0-4].flac")):
        samples, rate = soundfile.read(path, dtype="int16")
        (tmp_path / "wav").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "wav" / f"{path.stem}.wav", samples, rate, subtype="PCM_16")
    pattern = r"data.path_pattern='(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.'"
    args = ["domain=audio", "backbone=gru", "data.tokenizer=logmel", f"data.train={recordings}", pattern]
    assert longseq("fit", *args, r"data.test_pattern='_[0-4]\.\w+$'", *FIT) == 0
    found = check(longseq, tmp_path, tmp_path / "wav")
    assert len(found) == 300


@pytest.mark.data
def test_transformer_temperatures(longseq: Command, real_data: Path, tmp_path: Path) -> None:
    table = real_data / "timeseries" / "ltsf" / "ETTh1.csv.gz"
    sizes = ["data.lookback=96", "data.horizon=24", "data.patch=16", "data.patch_stride=8", "data.prediction_rows=20000"]
    assert longseq("fit", "domain=timeseries", "backbone=gru", f"data.train={table}", "data.split=ett_hour", *sizes, *FIT) == 0
    found = check(longseq, tmp_path, table, "--origins", str(tmp_path / "run/predictions.csv"))
    assert {"OT", "HUFL"} <= set(found["channel"])


@pytest.mark.data
def test_handwritten_digits(longseq: Command, real_data: Path, tmp_path: Path) -> None:
    source = real_data / "image" / "mnist" / "mnist_subset_20k_5k.npz"
    assert longseq("fit", "domain=vision", "backbone=gru", f"data.train={source}", "data.patch=4", *FIT) == 0
    arrays = np.load(source)
    name = next(name for name in arrays.files if "test" in name and arrays[name].ndim == 3)
    np.save(tmp_path / "test.npy", arrays[name])
    found = check(longseq, tmp_path, tmp_path / "test.npy", without=("torch", "PIL"))
    assert len(found) == 5000
