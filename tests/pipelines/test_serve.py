"""A server as a user starts it, and what strangers do to it: clear errors, the server lives, others are served right."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.inference import Inference, load_inference
from tests.pipelines.servers import Process, form, letters, trained

pytest.importorskip("litserve")
LONGEST, BODY_MB = 20_000, 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "dna", "dna")


@pytest.fixture(scope="module")
def offline(run: Path) -> Inference:
    return load_inference(run / "model")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Process]:
    process = Process(
        f"model={run}", f"max_length={LONGEST}", f"max_body_mb={BODY_MB}", "idle_s=2", "max_rows=50", "max_streams=4"
    )
    yield process
    process.stop()


def expected(offline: Inference, sequence: str) -> np.ndarray:
    ids = torch.from_numpy(NucleotideTokenizer().encode(sequence).astype(np.int64))[None]
    with torch.no_grad():
        return offline(ids, torch.ones_like(ids, dtype=torch.bool))[0].numpy()


def probabilities(result: dict[str, Any]) -> list[float]:
    return list(result["probabilities"].values())


def still_right(server: Process, offline: Inference) -> None:
    """That the server answers, and answers right."""
    sequence = letters(np.random.default_rng(7), 333)
    np.testing.assert_allclose(probabilities(server.predict({"sequence": sequence})[0]), expected(offline, sequence), atol=1e-5)


# -- what it is for


def test_answers_are_those_of_the_model(server: Process, offline: Inference) -> None:
    rng = np.random.default_rng(0)
    sequences = [letters(rng, length) for length in (1, 2, 63, 500, 501, 7001, 20_000)]
    results = server.predict({"sequences": sequences})
    assert [result["id"] for result in results] == [str(i) for i in range(7)]
    for sequence, result in zip(sequences, results, strict=True):
        np.testing.assert_allclose(probabilities(result), expected(offline, sequence), atol=1e-5)
        assert result["label"] == max(result["probabilities"], key=result["probabilities"].get)


def test_files_and_letters_in_their_variants(server: Process, offline: Inference) -> None:
    fasta = b">first thing\nACGTACGTNN\nACGT\n>second\nttgaca\n"
    results = server.upload("my genes.fa", fasta)
    assert [result["id"].split()[0] for result in results] == ["first", "second"]
    np.testing.assert_allclose(probabilities(results[1]), expected(offline, "TTGACA"), atol=1e-5)
    table = server.upload("table.csv", b"sequence,other\nTTGACA,1\nACGT,2\n")
    raw = server.predict(fasta, **{"Content-Type": "text/x-fasta"})
    # As curl -d sends it.
    plain = server.predict(b'{"sequence": "uugaca"}', **{"Content-Type": "application/x-www-form-urlencoded"})
    for result in (table[0], raw[1], plain[0]):
        np.testing.assert_allclose(probabilities(result), probabilities(results[1]), atol=1e-6)


def test_it_says_what_it_is(server: Process) -> None:
    assert server.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    info = server.ask("GET", "/info")[1]
    assert (info["domain"], info["task"], info["max_length"], info["stream"]) == ("dna", "classification", LONGEST, True)
    assert len(info["labels"]) == 2 and info["longseq"] and server.predict(info["example"])
    described = server.ask("GET", "/openapi.json")[1]
    assert set(described["paths"]) == {"/predict", "/info", "/health"}
    for path in ("/", "/docs"):
        status, page, headers = server.ask("GET", path)
        assert status == 200 and b"<!doctype html>" in page and b"src=" not in page and b"http-equiv" not in page
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    # Only this machine was let in.
    assert f"http://127.0.0.1:{server.port}" in server.printed


def test_a_stream_is_the_whole_sequence(server: Process, offline: Inference) -> None:
    sequence = letters(np.random.default_rng(3), 1000)
    with server.stream() as first, server.stream() as second:
        for start in range(0, 1000, 130):
            # Two connections, two states.
            first.send(json.dumps({"sequence": sequence[start : start + 130]}))
            second.send(sequence[::-1][start : start + 130])
            answer, other = json.loads(first.recv()), json.loads(second.recv())
            assert (answer["start"], answer["end"]) == (start, min(1000, start + 130))
    np.testing.assert_allclose(probabilities(answer), expected(offline, sequence), atol=1e-5)
    np.testing.assert_allclose(probabilities(other), expected(offline, sequence[::-1]), atol=1e-5)


@pytest.mark.parametrize("message", ["ACGX", '{"sequence": ""}', '{"sequences": ["ACGT"]}', "[" * 5000, '{"sequence": 3}', "{"])
def test_a_wrong_piece_ends_its_own_stream(server: Process, message: str, offline: Inference) -> None:
    with server.stream() as bad, server.stream() as good:
        good.send("ACGT")
        json.loads(good.recv())
        bad.send(message)
        assert json.loads(bad.recv())["status"] == 422
        good.send("ACG")
        np.testing.assert_allclose(probabilities(json.loads(good.recv())), expected(offline, "ACGTACG"), atol=1e-5)


def test_streams_are_counted_and_bounded(server: Process) -> None:
    with ExitStack() as opened:
        for stream in [opened.enter_context(server.stream()) for _ in range(4)]:
            stream.send("ACGT")
            assert json.loads(stream.recv())["end"] == 4
        with server.stream() as more:
            assert json.loads(more.recv())["status"] == 429
    time.sleep(0.5)
    with server.stream() as stream:
        for _ in range(3):
            stream.send("A" * 7000)
            answer = json.loads(stream.recv())
        assert answer["status"] == 413 and f"{LONGEST}" in answer["error"]


# -- what is wrong with requests


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"sequence": "ACGTEF"}, 422, "looks like protein"),
        ({"sequence": "ACGT\u00e9"}, 422, "is not DNA"),
        ({"sequence": ""}, 422, "sequence is empty"),
        ({"sequences": ["ACGT", ""]}, 422, "sequences[1] is empty"),
        ({"sequences": []}, 422, "no input"),
        ({"sequences": ["A"] * 51}, 422, "at most 50"),
        ({"sequence": "A" * (LONGEST + 1)}, 422, f"at most {LONGEST}"),
        ({"sequence": None}, 422, "null"),
        ({"sequence": ["A"]}, 422, "a list"),
        ({"sequence": "A", "sequences": ["A"]}, 422, "not both"),
        ({"sequenze": "ACGT"}, 422, "did you mean sequence"),
        ({}, 422, "lacks"),
        ([], 422, "JSON object"),
        (b"", 422, "empty"),
        (b"ACGT", 422, "not valid JSON"),
        (b"\xff\xfe{", 422, "UTF-8"),
        (b'{"sequence": "AC', 422, "not valid JSON"),
        (b"[" * 100_000, 422, "nested too deeply"),
        (b'{"a":' * 100_000, 422, "nested too deeply"),
        (b'{"sequence": ' + b"9" * 100_000 + b"}", 422, "not valid JSON"),
        (b'{"sequence": 1e999999}', 422, "a number"),
        (b'{"sequences": [' + b"[]," * 300_000 + b"[]]}", 422, "300003 lists and objects"),
        (b'{"sequences": [' + b"0," * 400_000 + b"0]}", 422, "at most 50"),
        (b" " * (BODY_MB * 2**20 + 1), 413, "larger than 1 MiB"),
    ],
    # By the reason: some bodies are long.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_body_is_told_why(server: Process, offline: Inference, body: Any, status: int, reason: str) -> None:
    found = server.refused(body, {"Content-Type": "application/json"})
    assert found[0] == status and reason in found[1], found
    still_right(server, offline)


def test_wrong_kinds_of_requests(server: Process) -> None:
    assert server.refused(b"x", {"Content-Type": "application/x-pickle"})[0] == 415
    assert server.refused(b"x", {"Content-Type": "text/csv", "Content-Encoding": "gzip"})[0] == 415
    assert server.refused(*form("model.pkl", b"x"))[0] == 415
    assert "compressed" in server.refused(*form("a.fa", b"\x1f\x8b" + b"\0" * 50))[1]
    assert server.refused(*form("a.fa", b""))[0] == 422
    assert server.refused(*form("a.fa", b">a\nMKV*\n"))[0] == 422
    status, reason = server.refused(*form("../../etc/passwd.fa", b"no fasta at all"))
    assert status == 422 and "/" not in reason.replace("passwd.fa", ""), reason
    # A table with a place in a file of the server is read as a table, and nothing of it is opened.
    status, reason = server.refused(*form("a.csv", b"chrom,start,end,genome\nchr1,1,9,/etc/passwd\n"))
    assert status == 422 and "root:" not in reason
    assert server.refused(b"junk", {"Content-Type": "multipart/form-data; boundary=edge"})[0] == 422
    assert server.refused(b"junk", {"Content-Type": "multipart/form-data"})[0] == 422
    assert server.ask("GET", "/predict")[0] == 405
    status, answer, _ = server.ask("GET", "/../../etc/passwd")
    assert status == 404 and "/predict" in answer["error"]
    assert server.ask("POST", "/predict", {"sequence": "A"}, {"Origin": "http://evil.example"})[0] == 403
    assert server.ask("POST", "/predict", {"sequence": "A"}, {"Origin": f"http://127.0.0.1:{server.port}"})[0] == 200


def test_requests_that_only_look_odd(server: Process) -> None:
    for path in ("/", "/health", "/info", "/docs"):
        status, body, headers = server.ask("HEAD", path)
        assert status == 200 and not body and int(headers["Content-Length"]) > 0
    # A redirect would be an empty answer for most clients.
    status, answer, _ = server.ask("POST", "/predict/", {"sequence": "ACGT"})
    assert status == 404 and "there is no /predict/" in answer["error"]
    status, answer, headers = server.ask("GET", "/stream")
    assert status == 426 and headers["Upgrade"] == "websocket" and "ws://" in answer["error"]
    for origin in ("http://[", "http://[::1", "null"):
        assert server.ask("POST", "/predict", {"sequence": "A"}, {"Origin": origin})[0] == 403
        with server.stream(origin=origin) as stream:
            assert json.loads(stream.recv())["status"] == 403
    with server.raw(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03") as connection:
        connection.settimeout(5)
        head, _, body = connection.recv(1000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400") and "without TLS" in json.loads(body)["error"]


def test_what_curl_sends_without_its_options(server: Process) -> None:
    """A file with --data, a field in a form, and kinds of files that other domains take."""
    urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in (b">a\nACGT\n", b"sequence=ACGT"):
        assert "curl -F file=@input" in server.refused(body, urlencoded)[1]
    field = b'--edge\r\nContent-Disposition: form-data; name="sequence"\r\n\r\nACGT\r\n--edge--\r\n'
    reason = server.refused(field, {"Content-Type": "multipart/form-data; boundary=edge"})[1]
    assert "values go into JSON" in reason
    reason = server.refused(b"x", {"Content-Type": "application/octet-stream"})[1]
    assert "text/x-fasta" in reason and "image/png" not in reason


def test_one_read_is_a_file(server: Process) -> None:
    reads = [f"@r{i}\nACG{'T' * i}\n+\n@@@{'I' * i}\n" for i in range(3)]
    for count in (1, 2, 3):
        results = server.upload("reads.fq", "".join(reads[:count]).encode())
        assert [result["id"] for result in results] == [f"r{i}" for i in range(count)]


def test_ids_of_a_table(server: Process) -> None:
    results = server.upload("a.csv", b'id,sequence\n"a,b",ACGT\nc,AC\n')
    assert [result["id"] for result in results] == ["a,b", "c"]


def test_what_is_no_http_and_clients_that_leave(server: Process, offline: Inference) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for data in (
        b"\x16\x03\x01\x00\xff" * 20,
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        head + b"Content-Length: -5\r\n\r\n",
    ):
        connection = server.raw(data)
        connection.settimeout(5)
        answer = connection.recv(1000)
        assert not answer or b" 400 " in answer.split(b"\r\n")[0], answer
        connection.close()
    for data in (
        head + b"Content-Length: 500000\r\n\r\n" + b'{"sequence": "' + b"A" * 1000,
        head + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"seq\r\n',
    ):
        connection = server.raw(data)
        # A reset, as when a cable is pulled.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    still_right(server, offline)


def test_a_body_without_an_end_or_without_progress(server: Process, offline: Inference) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    endless = server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 18)
    slow = server.raw(head + b"Content-Length: 500000\r\n\r\n{")
    began = time.monotonic()
    for connection, status in ((endless, b" 413 "), (slow, b" 408 ")):
        connection.settimeout(10)
        assert status in connection.recv(1000)
        connection.close()
    assert time.monotonic() - began < 9
    still_right(server, offline)


def test_two_hundred_connections_at_once(server: Process, offline: Inference) -> None:
    rng = np.random.default_rng(5)
    sequences = [letters(rng, int(length)) for length in rng.integers(1, 4000, 200)]

    def ask(sequence: str) -> tuple[int, Any, Any]:
        return server.ask("POST", "/predict", {"sequence": sequence})

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, sequences))
    served = [(sequence, answer) for sequence, (status, answer, _) in zip(sequences, answers, strict=True) if status == 200]
    refused = [(answer, headers) for status, answer, headers in answers if status == 429]
    assert len(served) + len(refused) == 200 and len(served) >= 64
    assert all("try again" in answer["error"] and headers["Retry-After"] for answer, headers in refused)
    for sequence, answer in served:
        np.testing.assert_allclose(probabilities(answer["results"][0]), expected(offline, sequence), atol=1e-5)
    still_right(server, offline)


def test_only_the_model_has_torch_in_memory(server: Process) -> None:
    """The process of the queues would import it to open what it passes on, which the first request would wait for."""
    assert server.predict({"sequence": "ACGT"})
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in server.children()]
    assert len(maps) >= 2 and sum("libtorch" in text for text in maps) == 1


def test_it_printed_no_traceback(server: Process) -> None:
    assert "Traceback" not in server.printed, server.printed[-3000:]
