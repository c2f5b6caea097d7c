"""What predict.py makes of a recogniser's scores: the same texts as the product's own decoding."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.domains.audio.decode import decode_batch
from longseq.inference import load_inference
from longseq.pipelines.predict_scripts.transcripts import transcript
from tests.pipelines.exports import run_export, run_predict, tiny_model
from tests.pipelines.test_export import write_wav

SYMBOLS = ["<blank>", *"abcdef"]


@pytest.mark.parametrize("beams", [1, 2, 7, 16])
@pytest.mark.parametrize("sharpness", [0.5, 3.0, 10.0])
def test_scores_become_the_same_texts(beams: int, sharpness: float) -> None:
    generator = np.random.default_rng(beams)
    texts = set()
    for n_frames in (1, 2, 5, 30, 30, 30):
        scores = sharpness * generator.standard_normal((n_frames, len(SYMBOLS)))
        log_probs = torch.from_numpy(scores).float().log_softmax(-1).numpy()
        expected = "".join(SYMBOLS[i] for i in decode_batch([log_probs], beams)[0])
        assert transcript(log_probs, SYMBOLS, beams) == expected
        texts.add(expected)
    assert len(texts) > 3


def test_a_search_finds_what_the_best_symbols_miss() -> None:
    # Both frames are blank more likely than not, and yet some "a" is likelier than silence: 0.64 against 0.36.
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert transcript(log_probs, ["<blank>", "a"]) == ""
    assert transcript(log_probs, ["<blank>", "a"], beams=4) == "a"
    assert transcript(np.log(np.eye(3)[[1, 1, 0, 1, 2]] + 1e-9), ["<blank>", "one", "two"], beams=4) == "one one two"


def test_exported_recognisers_search_as_they_were_trained(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = tiny_model("transcripts", "cnn", tmp_path / "source")
    run_export(source, tmp_path / "out", step=False)
    samples = np.random.default_rng(5).uniform(-0.9, 0.9, 800)
    write_wav(tmp_path / "a.wav", samples, 8000)
    heard = np.rint(samples * (2**15 - 1)).astype(np.float32) / 2**15
    with torch.no_grad():
        log_probs = load_inference(source)(torch.from_numpy(heard)[None], torch.ones(1, 800, dtype=torch.bool))[0].numpy()
    # As trained, here with four beams; and as asked for.
    texts = {}
    for options, beams in (((), 4), (("--beams", 1), 1), (("--beams", 16), 16)):
        done = run_predict(tmp_path / "out", tmp_path / "a.wav", "--output", tmp_path / "out.csv", *options)
        assert done.returncode == 0, done.stderr
        texts[beams] = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)["prediction"][0]
        assert texts[beams] == "".join("_abc"[i] for i in decode_batch([log_probs], beams)[0])
    assert texts[1] != texts[16]
    done = run_predict(tmp_path / "out", tmp_path / "a.wav", "--beams", 0)
    assert done.returncode == 1 and "--beams 0 must be 1 or more" in done.stderr
