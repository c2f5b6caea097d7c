"""A server that wants a token, whose model's process dies, and that is stopped while it has work."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipelines.servers import Client, Process, letters, trained

pytest.importorskip("litserve")
TOKEN = "a token of the tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    run = trained(tmp_path_factory.mktemp("runs") / "dna", "dna")
    process = Process(f"run={run}", "max_length=400000", "max_concurrent=8", "idle_s=200", token=TOKEN)
    yield process
    process.stop(signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether a process is there, and not just its name in the table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_the_token_nothing_of_the_model_is_told(server: Process) -> None:
    for stranger in (Client(server.port), Client(server.port, "another"), Client(server.port, "")):
        status, answer, headers = stranger.ask("POST", "/predict", {"sequence": "ACGT"})
        assert status == 401 and "token" in answer["error"] and headers["WWW-Authenticate"] == "Bearer"
        assert stranger.ask("GET", "/info")[0] == 401
        assert stranger.ask("GET", "/health")[0] == stranger.ask("GET", "/")[0] == 200
        with stranger.stream(additional_headers={}) as stream:
            stream.send(json.dumps({"token": "wrong"}))
            assert json.loads(stream.recv())["status"] == 401
    assert server.predict({"sequence": "ACGT"})
    for first, headers in ((json.dumps({"token": TOKEN}), {}), ("ACGT", {"Authorization": f"Bearer {TOKEN}"})):
        with server.stream(additional_headers=headers) as stream:
            stream.send(first)
            if not headers:
                stream.send("ACGT")
            assert json.loads(stream.recv())["end"] == 4
    assert TOKEN not in server.printed


def test_the_description_says_that_a_token_is_needed(server: Process) -> None:
    described = Client(server.port).ask("GET", "/openapi.json")[1]
    (name, scheme), *_ = described["components"]["securitySchemes"].items()
    assert scheme == {"type": "http", "scheme": "bearer"}
    for path, method in (("/predict", "post"), ("/info", "get")):
        entry = described["paths"][path][method]
        assert entry["security"] == [{name: []}] and "401" in entry["responses"]
    assert "security" not in described["paths"]["/health"]["get"]
    assert {"/predict", "/info", "/health"} == set(described["paths"])
    taken = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(taken) >= {"application/json", "multipart/form-data", "text/x-fasta", "text/csv"} and "audio/wav" not in taken


def test_a_model_that_dies_is_loaded_again(server: Process) -> None:
    before = server.predict({"sequence": "ACGT" * 9})
    # The model's process needs far more memory than that of the queues.
    sizes = {pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.children()}
    with server.stream() as stream:
        stream.send("ACGT")
        assert json.loads(stream.recv())["end"] == 4
        os.kill(max(sizes, key=sizes.__getitem__), signal.SIGKILL)
        until = time.monotonic() + 120
        while (answer := server.ask("POST", "/predict", {"sequence": "ACGT" * 9}))[0] != 200:
            assert answer[0] == 503 and "try again" in answer[1]["error"] and time.monotonic() < until
            time.sleep(0.2)
        stream.send("ACGT")
        assert "begin anew" in json.loads(stream.recv())["error"]
    assert answer[1]["results"] == before
    assert server.ask("GET", "/health")[0] == 200


def test_it_answers_what_it_accepted_and_leaves_nothing_behind(server: Process) -> None:
    rng = np.random.default_rng(0)
    bodies = [{"sequence": letters(rng, 100_000)} for _ in range(6)]
    children = server.children()

    def ask(body: Any) -> int:
        return server.ask("POST", "/predict", body)[0]

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(ask, body) for body in bodies]
        time.sleep(0.5)
        # To all of its processes, as service managers do it.
        os.killpg(server.process.pid, signal.SIGTERM)
        assert [answer.result() for answer in answers] == [200] * 6
    assert server.process.wait(60) == 0
    # The model, the queues, and the tracker that Python itself adds, which ends when nobody is left to be tracked.
    assert len(children) >= 2
    until = time.monotonic() + 10
    while any(map(runs, children)):
        assert time.monotonic() < until
        time.sleep(0.1)
    with pytest.raises(ConnectionRefusedError):
        server.ask("GET", "/health")
