"""Runs with averaged weights: what was tested is what is saved, and it is whichever weights validate better."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.domains.dna.tokenizer import encode_bytes
from longseq.inference import load_inference
from longseq.pipelines.export_source import open_source


@pytest.mark.parametrize(("decay", "kept"), [(0.9999, "last step"), (0.0, "moving average")])
def test_what_is_tested_is_what_is_saved(
    longseq: Callable[..., int], dna_csv: Path, decay: float, kept: str, tmp_path: Path
) -> None:
    # An average over ten thousand steps is still where it began; one that forgets at once is the last step itself.
    more = [
        "callbacks=[default,ema]",
        f"callbacks.ema.decay={decay}",
        "task.monitor=loss",
        "task.mode=min",
        "optimizer.lr=1e-2",
    ]
    quick = [
        "trainer=cpu",
        "trainer.max_epochs=2",
        "baselines=false",
        "report=false",
        "backbone.d_model=8",
        "backbone.n_layers=1",
    ]
    assert longseq("fit", "domain=dna", "backbone=cnn", f"data.train={dna_csv}", *more, *quick, "run_dir=run") == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["weights"] == kept and not list(Path("run/checkpoints").glob("last_step*"))
    inference, letters = load_inference("run/model"), pd.read_csv(dna_csv)["sequence"].tolist()
    for row in pd.read_csv("run/predictions.csv").to_dict("records"):
        ids = torch.tensor(encode_bytes(letters[int(row["id"]) - 2].encode()).astype(np.int64))[None]
        with torch.no_grad():
            found = inference(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        np.testing.assert_allclose(found, [row["p_0"], row["p_1"]], atol=1e-5)
    averaged = open_source("run", None).averaged
    assert averaged == (None if kept == "last step" else decay)
