"""Servers for the tests of `longseq serve`: as a process of its own, as a user starts it, or within the test's process."""

import asyncio
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longseq.pipelines.cli import CONFIGS, main

TINY = ["trainer=cpu", "backbone=gru", "backbone.d_model=16", "backbone.n_layers=1", "trainer.max_steps=1"]
TINY += ["report=false", "baselines=false"]
DEMOS = {
    "dna": ["data.demo_rows=60"],
    "audio": ["data.demo_rows=40", "data.tokenizer=logmel"],
    "timeseries": ["data.demo_days=40"],
    "vision": [],
}


def trained(folder: Path, domain: str, *options: str) -> Path:
    """The run folder of a model after one step on the domain's demo; with options, of one of its other tasks."""
    if not folder.is_dir():
        with pytest.raises(SystemExit) as exit_info:
            main(["fit", f"domain={domain}", *TINY, *(options or DEMOS[domain]), f"run_dir={folder}"])
        assert not exit_info.value.code
    return folder


def form(name: str, data: bytes) -> tuple[bytes, dict[str, str]]:
    """A file as a form, as browsers send it."""
    head = f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return head + data + b"\r\n--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


class Client:
    """Asks a server on this machine.

    Args:
        port: where it listens.
        token: that it wants.
    """

    def __init__(self, port: int, token: str | None = None) -> None:
        self.port, self.token = port, token

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        """Status, JSON (or bytes) and headers of an answer; a dict is sent as JSON."""
        sent = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        if isinstance(body, (dict, list)):
            body, sent = json.dumps(body), {**sent, "Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            answer = connection.getresponse()
            data = answer.read()
            is_json = "json" in answer.headers.get("Content-Type", "")
            return answer.status, json.loads(data) if is_json and data else data, answer.headers
        finally:
            connection.close()

    def predict(self, body: Any, path: str = "/predict", **headers: str) -> list[dict[str, Any]]:
        """The results for a body that is right."""
        status, answer, _ = self.ask("POST", path, body, headers)
        assert status == 200, answer
        return answer["results"]

    def refused(self, body: Any, headers: dict[str, str] | None = None, path: str = "/predict") -> tuple[int, str]:
        """Status and reason for a body that is wrong."""
        status, answer, _ = self.ask("POST", path, body, headers)
        assert status >= 400, answer
        assert set(answer) == {"error"}
        return status, answer["error"]

    def upload(self, name: str, data: bytes, path: str = "/predict") -> list[dict[str, Any]]:
        """The results for a file."""
        body, headers = form(name, data)
        return self.predict(body, path, **headers)

    def raw(self, data: bytes) -> socket.socket:
        """A connection that has sent some bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection

    def stream(self, **options: Any) -> Any:
        """An open stream; with the token as a header unless other headers are given."""
        from websockets.sync.client import connect

        if self.token is not None:
            options.setdefault("additional_headers", {"Authorization": f"Bearer {self.token}"})
        return connect(f"ws://127.0.0.1:{self.port}/stream", max_size=None, **options)


class Process(Client):
    """`longseq serve` as a process.

    Args:
        *options: of the command.
        token: that it is told to want.
    """

    def __init__(self, *options: str, token: str | None = None) -> None:
        command = [sys.executable, "-m", "longseq.pipelines.cli", "serve", "port=0", "device=cpu", "threads=1", *options]
        environment = {**os.environ, **({} if token is None else {"LONGSEQ_SERVE_TOKEN": token})}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
        )
        self.printed = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        until = time.monotonic() + 150
        while "Ctrl-C" not in self.printed:
            assert self.process.poll() is None and time.monotonic() < until, self.printed
            time.sleep(0.05)
        super().__init__(int(self.printed.split("/predict")[0].rsplit(":", 1)[1]), token)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as printed:
            for line in printed:
                self.printed += line

    def children(self) -> list[int]:
        """Its processes: the model's, and that of the queues."""
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stops it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(60)
            self.reader.join(10)
            return code
        except subprocess.TimeoutExpired:
            # The session is its own: nothing else is in this group.
            os.killpg(self.process.pid, signal.SIGKILL)
            raise


class Carrier:
    """Carries the worker's messages within one process."""

    def __init__(self) -> None:
        self.messages: queue.Queue[Any] = queue.Queue()

    def send(self, message: Any, consumer_id: int) -> None:
        self.messages.put(message)

    async def areceive(self, consumer_id: int) -> Any:
        try:
            return await asyncio.to_thread(self.messages.get, timeout=0.6)
        except queue.Empty:
            return None


@contextmanager
def within(model: Path, token: str | None = None, **options: Any) -> Iterator[Client]:
    """A server in this process: the same routes and the same loop, without the seconds that processes take to start."""
    import uvicorn
    from omegaconf import OmegaConf

    from longseq.pipelines.serving.connections import listen
    from longseq.pipelines.serving.reader import Served
    from longseq.pipelines.serving.server import ModelServer
    from longseq.pipelines.serving.worker import LengthLoop, ModelAPI

    cfg: Any = OmegaConf.merge(OmegaConf.load(CONFIGS / "serve.yaml"), {"model": str(model), "device": "cpu", **options})
    served = Served(cfg)
    api = ModelAPI(str(served.folder), served.options, max_batch_size=8, max_batch_tokens=4096, batch_wait_s=0.003)
    server = ModelServer(api, served, token)
    # What `setup` does besides is for a process of its own.
    from longseq.inference import load_inference

    api.inference, api.torch_device = load_inference(served.folder, served.device, **served.options), served.device
    asked: queue.Queue[Any] = queue.Queue()
    carrier: Any = Carrier()
    worker: Any = threading.Thread(target=LengthLoop(), args=(api, "cpu", 0, asked, carrier), daemon=True)
    server.litapi_request_queues["/predict"] = asked
    server._transport, server.inference_workers, server.workers_setup_status = carrier, [worker], {}
    worker.start()
    listener = listen("127.0.0.1", 0)
    server.http = uvicorn.Server(server.http_config(5))
    running = threading.Thread(target=server.http.run, kwargs={"sockets": [listener]}, daemon=True)
    running.start()
    while not server.http.started:
        time.sleep(0.01)
    try:
        yield Client(listener.getsockname()[1], token)
    finally:
        server.http.should_exit = True
        running.join(10)
        asked.put(None)
        worker.join(10)
        listener.close()


def letters(rng: np.random.Generator, length: int) -> str:
    """Random DNA."""
    return "".join(rng.choice(list("ACGT"), length))
