"""1,000 requests of mixed lengths from 32 clients: each answer is the model's, none fails; prints how long they took.

Runs as a test marked `slow`, and by itself against a model of one's own:

    python -m tests.pipelines.test_serve_load runs/dna/hyena/2026-11-22_10-00-00
"""

import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.inference import load_inference
from tests.pipelines.servers import Process, letters, trained

REQUESTS, CLIENTS, LONGEST, TOLERANCE = 1000, 32, 3000, 1e-5


def sequences(count: int = REQUESTS, longest: int = LONGEST) -> list[str]:
    """Short ones are the most, as lengths usually are."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(0, np.log(longest), count)).astype(int)
    return [letters(rng, int(length)) for length in lengths]


def client(port: int, mine: list[str]) -> list[tuple[float, dict[str, Any]]]:
    """One client's requests, one behind the other over one connection; seconds and answer of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    found = []
    for sequence in mine:
        began = time.perf_counter()
        connection.request("POST", "/predict", json.dumps({"sequence": sequence}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        assert answer.status == 200, body
        found.append((time.perf_counter() - began, body["results"][0]))
    connection.close()
    return found


def measure(run: Path) -> dict[str, float]:
    """Serves a run's model, asks it, and compares; raises AssertionError for any answer that differs."""
    given = sequences()
    inference, tokenizer = load_inference(run / "model"), NucleotideTokenizer()
    process = Process(f"model={run}")
    try:
        process.predict({"sequence": given[0]})
        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(lambda place: client(process.port, given[place::CLIENTS]), range(CLIENTS)))
        seconds = time.perf_counter() - began
    finally:
        process.stop()
    worst, latencies = 0.0, []
    for place, answers in enumerate(found):
        for sequence, (latency, result) in zip(given[place::CLIENTS], answers, strict=True):
            ids = torch.from_numpy(tokenizer.encode(sequence).astype(np.int64))[None]
            with torch.no_grad():
                offline = inference(ids, torch.ones_like(ids, dtype=torch.bool))[0].numpy()
            worst = max(worst, float(np.abs(np.array(list(result["probabilities"].values())) - offline).max()))
            latencies.append(latency)
    assert len(latencies) == REQUESTS and worst <= TOLERANCE, worst
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    facts = {"requests": REQUESTS, "clients": CLIENTS, "requests_per_s": REQUESTS / seconds, "p50_ms": p50, "p99_ms": p99}
    return {**facts, "largest_difference": worst}


def show(facts: dict[str, float]) -> None:
    print("\n" + "  ".join(f"{name} {value:.4g}" for name, value in facts.items()))


@pytest.mark.slow
def test_a_thousand_requests_from_32_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("litserve")
    facts = measure(trained(tmp_path / "dna", "dna"))
    with capsys.disabled():
        show(facts)


if __name__ == "__main__":
    show(measure(Path(sys.argv[1])))
