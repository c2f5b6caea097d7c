"""The parts of the server by themselves: batches, the worker's answers when rows fail, JSON that is a trap, names of files."""

import asyncio
import hmac
import json
import queue
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("litserve")

from longseq.domains.dna.requests import Requests
from longseq.pipelines.serving import gate
from longseq.pipelines.serving.answers import Answers
from longseq.pipelines.serving.batches import batches, padded
from longseq.pipelines.serving.gate import same
from longseq.pipelines.serving.limits import Limits, Refusal
from longseq.pipelines.serving.messages import Failure, Work, packed, unpacked
from longseq.pipelines.serving.payload import checked, json_object, without_repeats
from longseq.pipelines.serving.reader import refusing
from longseq.pipelines.serving.worker import LengthLoop


def test_batches_hold_similar_lengths_and_every_row_once() -> None:
    lengths = [int(length) for length in np.random.default_rng(0).integers(1, 5000, 200)]
    found = batches(lengths, max_rows=8, max_tokens=12_000)
    assert sorted(row for batch in found for row in batch) == list(range(200))
    for batch in found:
        sizes = [lengths[row] for row in batch]
        assert len(batch) <= 8 and min(sizes) >= max(sizes) / 2
        assert len(batch) == 1 or max(sizes) * len(batch) <= 12_000
    # About 25 batches would do without the limits.
    assert len(found) < 80
    assert batches([50_000, 3], 8, 1000) == [[0], [1]] and batches([], 8, 10) == []
    assert [len(batch) for batch in batches([4, 4, 3], 8, 100, alike=1.0)] == [2, 1]


def test_padding_is_behind_and_masked() -> None:
    inputs, mask = padded([np.array([1, 2, 3]), np.array([4])])
    assert inputs.tolist() == [[1, 2, 3], [4, 0, 0]] and mask.tolist() == [[True] * 3, [True, False, False]]


class Model:
    """Doubles its rows; fails on those that hold 13, with the whole batch."""

    max_batch_size, max_batch_tokens, batch_timeout, seen = 8, 1000, 0.0, 0

    class inference:  # noqa: N801
        task = "classification"

    def predict(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        self.seen += 1
        if any(13 in row for row in rows):
            raise RuntimeError("thirteen")
        if any(99 in row for row in rows):
            raise torch.OutOfMemoryError("no memory")
        return [row * 2 for row in rows]


def answers_of(works: list[Work]) -> dict[int, Any]:
    asked: queue.Queue[Any] = queue.Queue()
    sent: dict[int, Any] = {}

    class Transport:
        def send(self, message: Any, consumer_id: int) -> None:
            sent[message[0]] = unpacked(message[1])

    for work in works:
        asked.put(packed(work))
    asked.put(None)
    LengthLoop()(Model(), "cpu", 0, asked, Transport())
    return sent


def test_a_row_that_fails_takes_nobody_with_it(caplog: pytest.LogCaptureFixture) -> None:
    rows = [np.array([value, 1]) for value in (1, 13, 2, 99, 3)]
    works = [Work(uid, "rows", [row]) for uid, row in enumerate(rows)]
    works.append(Work(5, "rows", [rows[0], rows[1]]))
    works.append(Work(6, "rows", [rows[4]], deadline=time.monotonic() - 1))
    sent = answers_of(works)
    for uid in (0, 2, 4):
        assert sent[uid][0].tolist() == (rows[uid] * 2).tolist()
    for uid in (1, 5):
        assert isinstance(sent[uid], Failure) and sent[uid].status == 500 and "RuntimeError" in sent[uid].reason
    assert sent[3].status == 507 and "shorter" in sent[3].reason
    # Nobody waits for what is late.
    assert 6 not in sent and "thirteen" in caplog.text


def test_what_came_before_the_order_to_stop_is_answered() -> None:
    works = [Work(uid, "rows", [np.array([uid])]) for uid in range(100, 150)]
    assert sorted(answers_of(works)) == list(range(100, 150))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"\x80", "UTF-8"),
        (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
        (b'{"a": [' + b"{}," * 300_000 + b"{}]}", "300003 lists and objects"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "",
)
def test_json_that_is_a_trap(body: bytes, reason: str) -> None:
    with pytest.raises(Refusal) as refusal:
        json_object(body)
    assert refusal.value.status == 422 and reason in refusal.value.reason


def test_names_of_uploads_lose_their_folders() -> None:
    for name in ("/etc/passwd.csv", "..\\..\\boot.csv", "a\r\nSet-Cookie: x.csv", "a\0b.csv"):
        upload = checked(name, b"x", (".csv",))
        assert upload.suffix == ".csv" and not set(upload.name) & set("/\\\r\n\0:")
    for name in ("", "csv", "a.csv.pkl", "a.npy", ".csv"):
        with pytest.raises(Refusal) as refusal:
            checked(name, b"x", (".csv",))
        assert refusal.value.status == 415


def test_errors_of_readers_do_not_tell_the_servers_folders(tmp_path: Path) -> None:
    def broken() -> None:
        raise ZeroDivisionError(f"in {tmp_path}")

    with pytest.raises(Refusal, match="cannot be read") as refusal:
        refusing(broken)
    assert str(tmp_path) not in refusal.value.reason


def test_tokens_are_compared_whole() -> None:
    assert same("abc", "abc") and same("é", "é")
    assert not same("ab", "abc") and not same("", "abc") and not same("\ud800", "abc")


def test_how_long_a_comparison_takes_tells_nothing_of_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def seen(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(gate.hmac, "compare_digest", seen)
    token = "a long token that nobody guesses"
    for given in ("", "a", token[:-1], token, token + "x", "é" * 1000):
        headers = {"authorization": f"Bearer {given}"}
        if given == token:
            gate.check_token(headers, token)
            continue
        with pytest.raises(Refusal) as refusal:
            gate.check_token(headers, token)
        assert refusal.value.status == 401 and token not in refusal.value.reason
    # Each is compared whole, and what is compared has one length whatever was given.
    assert len(compared) == 6 and {len(text) for pair in compared for text in pair} == {32}


@pytest.mark.parametrize("begun", [False, True])
def test_what_the_servers_end_cuts_off_is_told(begun: bool) -> None:
    """A second Ctrl-C, or the end of `grace_s`, cancels what is being answered."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    async def run() -> None:
        limits = Limits(1, 10, 10, 4, 4, 10, 60.0, 30.0)
        scope = {"type": "http", "path": "/predict", "method": "POST", "headers": []}
        task = asyncio.create_task(gate.Gate(answering, limits=limits, token=None)(scope, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    asyncio.run(run())
    assert [message["status"] for message in sent if "status" in message] == [200 if begun else 503]


def test_reasons_do_not_repeat_books() -> None:
    assert len(Refusal(422, "x" * 10**6).reason) < 1100
    assert without_repeats([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="'b' stands there twice"):
        without_repeats([("a", 1), ("b", 2), ("b", 2)])


class NoFiles(Requests):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, lambda path, options: pytest.fail("no file is opened"), 100, 10)


def answer(task: str, outputs: Any, output: str = "probabilities", **config: Any) -> dict[str, Any]:
    config = {"task": task, **config}
    found = Answers(config, task, output, NoFiles(config)).row(
        np.array(outputs, np.float32), np.array([7, 8, 9]), {"id": "0"}, False
    )
    json.dumps(found, allow_nan=False)
    return found


def test_answers_in_the_words_of_each_task() -> None:
    assert answer("classification", [0.25, 0.75], labels=["a", "b"])["label"] == "b"
    assert answer("multilabel", [0.75, 0.25], labels=["a", "b"])["labels"] == ["a"]
    assert answer("regression", [2.0], "values", labels=["depth"])["values"] == {"depth": 2.0}
    assert answer("frames", [[0.5, 0.5]], labels=["a", "b"])["probabilities"] == [[0.5, 0.5]]
    assert answer("anomaly", [1.0, float("nan")], "scores")["scores"] == [1.0, None]
    assert answer("forecasting", [[[1.0]]], "forecast", quantiles=[0.5])["quantiles"] == [0.5]
    likelihood = answer("lm", np.zeros((3, 16)), "logits")
    assert likelihood["log_likelihood"] == pytest.approx(2 * np.log(1 / 16)) and likelihood["log_likelihoods"][0] is None
    assert likelihood["bits_per_token"] == pytest.approx(4.0) and "logits" not in likelihood
    with pytest.raises(Refusal, match="not a number"):
        answer("classification", [float("nan"), 0.5], labels=["a", "b"])
