"""Each domain behind a server process of its own, from the run folder and from an exported one, with another domain's files."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from PIL import Image

from longseq.inference import load_inference
from tests.pipelines.servers import Process, form, letters, trained

pytest.importorskip("litserve")
RATE = 4000


def dna() -> tuple[str, bytes, dict[str, Any], np.ndarray]:
    sequence = letters(np.random.default_rng(0), 500)
    ids = np.array([["ACGT".index(letter) + 7 for letter in sequence]])
    return "a.fa", f">a\n{sequence}\n".encode(), {"sequence": sequence}, ids


def audio() -> tuple[str, bytes, dict[str, Any], np.ndarray]:
    """The file has twice the model's rate, the JSON the model's own; both are the same tone."""
    seconds = np.arange(8000) / (2 * RATE)
    tone = (0.3 * np.sin(2 * np.pi * 300 * seconds)).astype(np.float32)
    file = io.BytesIO()
    sf.write(file, tone, 2 * RATE, format="WAV", subtype="FLOAT")
    return "a.wav", file.getvalue(), {"samples": tone[::2].tolist(), "sample_rate_hz": RATE}, tone[None, ::2]


def timeseries() -> tuple[str, bytes, dict[str, Any], np.ndarray]:
    values = 50 + 10 * np.sin(np.arange(200)[:, None] / 4 + np.arange(4))
    table = pd.DataFrame(values, columns=[f"demand_{i}" for i in range(1, 5)])
    table.insert(0, "date", pd.date_range("2024-01-01", periods=200, freq="h"))
    body = {"values": values.tolist(), "timestamps": table["date"].astype(str).tolist()}
    return "a.csv", table.to_csv(index=False).encode(), body, values[None, -168:].astype(np.float32)


def vision() -> tuple[str, bytes, dict[str, Any], np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "a.png", file.getvalue(), {"pixels": pixels.tolist()}, pixels[None, None]


DOMAINS: dict[str, Any] = {"dna": dna, "audio": audio, "timeseries": timeseries, "vision": vision}


def numbers(result: dict[str, Any]) -> np.ndarray:
    """The answer without its names."""
    return np.array(result["forecast"] if "forecast" in result else list(result["probabilities"].values()))


def readme_bodies(domain: str) -> list[Any]:
    """What the domain's README tells curl to send."""
    text = (Path(__file__).parents[2] / "domains" / domain / "README.md").read_text(encoding="utf-8")
    return [json.loads(body) for body in re.findall(r"-d '(\{.*?\})'", text)]


# In the default run one of them; the others cost two processes more each.
@pytest.mark.parametrize(
    "domain", [name if name == "audio" else pytest.param(name, marks=pytest.mark.slow) for name in DOMAINS]
)
def test_a_run_and_its_export_answer_alike(domain: str, tmp_path: Path, longseq: Callable[..., int]) -> None:
    run, exported = trained(tmp_path / "run", domain), tmp_path / "exported"
    export = ("export", f"run={run}", "format=safetensors", f"output={exported}", "latency=null")
    assert longseq(*export) == 0
    name, data, body, inputs = DOMAINS[domain]()
    with torch.no_grad():
        expected = load_inference(run / "model")(torch.from_numpy(inputs))[0].numpy()
    for folder in (f"model={exported}", f"run={run}"):
        server = Process(folder)
        try:
            assert server.ask("GET", "/info")[1]["domain"] == domain
            np.testing.assert_allclose(numbers(server.predict(body)[0]), expected, rtol=1e-4, atol=1e-4)
            # Resampling a tone is not taking every other sample.
            near = 0.02 if domain == "audio" else 1e-4
            np.testing.assert_allclose(numbers(server.upload(name, data)[0]), expected, rtol=1e-4, atol=near)
            for asked in readme_bodies(domain):
                assert server.predict(asked)
            others = [make() for other, make in DOMAINS.items() if other != domain]
            for other, content, asked, _ in others:
                # A table is what several domains read, but not what stands in it.
                assert server.refused(*form(other, content))[0] in (415, 422)
                assert server.refused(asked)[0] == 422
        finally:
            assert server.stop() == 0
        assert "Traceback" not in server.printed, server.printed[-3000:]
