"""Clients that hold connections, send without end, never read, or send what is no message: they are cut, others are served."""

import gzip
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.servers import Process, form, trained

pytest.importorskip("litserve")
IDLE_S, BODY_MB, STREAMS, CONNECTIONS = 2, 1, 4, 280
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GOOD = {"sequence": "GATTACA" * 9}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    run = trained(tmp_path_factory.mktemp("runs") / "dna", "dna")
    limits = (f"idle_s={IDLE_S}", f"max_body_mb={BODY_MB}", f"max_streams={STREAMS}", f"max_connections={CONNECTIONS}")
    process = Process(f"model={run}", "max_length=20000", *limits)
    yield process
    process.stop()


@pytest.fixture(autouse=True)
def _others_are_served(server: Process) -> Iterator[None]:
    before = server.predict(GOOD)
    yield
    assert server.predict(GOOD) == before
    assert "Traceback" not in server.printed, server.printed[-3000:]


def status_of(connection: socket.socket, seconds: float = 12) -> int:
    """The status of what a connection is told before it is closed; 0 if that is nothing."""
    connection.settimeout(seconds)
    told = b""
    with suppress(ConnectionError):
        while b"\r\n" not in told and (piece := connection.recv(4096)):
            told += piece
    return int(told.split(b" ")[1]) if told else 0


def is_closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side ends a connection within some time."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def request(body: bytes, *headers: bytes) -> bytes:
    return HEAD + b"".join(header + b"\r\n" for header in headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


# -- bodies


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip", "GZIP"])
def test_packed_bodies_are_not_unpacked(server: Process, coding: str) -> None:
    # Ten megabytes of blanks in ten kilobytes.
    packed = {"deflate": zlib.compress}.get(coding, gzip.compress)(b" " * 10_000_000)
    status, reason = server.refused(packed, {"Content-Type": "application/json", "Content-Encoding": coding})
    assert status == 415 and "as it is" in reason
    assert server.refused(packed, {"Content-Type": "application/json"})[0] == 422


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"sequence": "ACGT", "sequence": "TTTT"}', "'sequence' stands there twice"),
        ('{"sequences": [{"a": 1, "a": 2}]}', "'a' stands there twice"),
        ('{"sequence": NaN}', "a number"),
        ('{"sequences": [-Infinity]}', "a number"),
        ('{"sequence": "ACGT🧬"}', "is not DNA"),
        ('{"sequence": "\uff21\uff23\uff27\uff34"}', "is not DNA"),
        ('{"sequence": "AC\\u0000GT"}', "is not DNA"),
        ('{"sequence": "AC\\ud800GT"}', "is not DNA"),
        ('{"sequence": "\u202eACGT"}', "is not DNA"),
        ('{"se\\ud83equence": "ACGT"}', "there is no key"),
        ('{"sequence": "ACGT"} {"sequence": "ACGT"}', "not valid JSON"),
        ("{'sequence': 'ACGT'}", "not valid JSON"),
    ],
)
def test_json_that_is_odd(server: Process, body: str, reason: str) -> None:
    status, error = server.refused(body.encode("utf-8"), {"Content-Type": "application/json"})
    assert status == 422 and reason in error, error


def test_lengths_that_lie(server: Process) -> None:
    began = time.monotonic()
    for length, status in ((10**12, 413), (BODY_MB * 2**20 + 1, 413), (10**30, 400)):
        with server.raw(HEAD + b"Content-Length: %d\r\n\r\n" % length) as connection:
            assert status_of(connection) == status
    # Said at once, without a wait for a body that does not come.
    assert time.monotonic() - began < IDLE_S
    for headers in (
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        with server.raw(HEAD + headers + b"{}   ") as connection:
            assert status_of(connection) in (400, 408, 422)


def test_a_refused_body_is_not_read_for_ever(server: Process) -> None:
    with server.raw(HEAD + b"Content-Length: 1000000000\r\n\r\n") as connection:
        assert status_of(connection) == 413
        sent = 0
        with suppress(ConnectionError):
            while sent < 100 * 2**20:
                sent += connection.send(b" " * 65536)
        assert sent < 50 * 2**20


@pytest.mark.parametrize("name", ["../../../etc/passwd.fa", "..\\..\\x.fa", "/etc/hosts.fa", "a\0b.fa", "%2e%2e%2fx.fa"])
def test_names_of_files_are_names_alone(server: Process, name: str) -> None:
    body, headers = form(name, b">x\nACGT\n")
    status, answer, _ = server.ask("POST", "/predict", body, headers)
    assert (status, answer["results"][0]["id"]) == (200, "x") if status == 200 else status == 422
    for path in ("/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "/static/../../etc/passwd", "//etc/passwd"):
        status, answer, _ = server.ask("GET", path)
        assert status == 404 and "root:" not in str(answer)


def test_forms_that_never_end(server: Process) -> None:
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.fa"\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    many = b"".join(head + b"\r\n>x\nACGT\n\r\n" for _ in range(70)) + b"--edge--\r\n"
    fields = b"".join(b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' for _ in range(50)) + b"--edge--\r\n"
    headers = head + b"".join(b"X-%d: y\r\n" % i for i in range(20_000)) + b"\r\n>x\nACGT\n\r\n--edge--\r\n"
    for body in (head + b"\r\n>x\nACGT", many, fields, headers, b"--edge" * 10_000, b"--edge\r\n" * 10_000):
        assert server.refused(body, kind)[0] == 422
    assert server.refused(many, {"Content-Type": "multipart/form-data; boundary=" + "e" * 5000})[0] == 422


# -- connections


def slowly(connections: list[socket.socket], seconds: float) -> int:
    """Sends a byte through each, four times a second, until all are cut; how many are not within the time."""
    open_, until = list(connections), time.monotonic() + seconds
    while open_ and time.monotonic() < until:
        for connection in list(open_):
            try:
                connection.send(b"a")
            except OSError:
                open_.remove(connection)
        time.sleep(0.25)
    return len(open_)


def test_clients_that_send_a_byte_now_and_then(server: Process) -> None:
    beginnings = (b"", b"POST /predict HT", HEAD + b"X-Slow: ", HEAD + b"Content-Length: 500000\r\n\r\n{")
    with ExitStack() as opened:
        slow = [opened.enter_context(server.raw(beginnings[i % 4])) for i in range(120)]
        # More than may be answered at the same time: who only sends takes nobody's place.
        assert server.predict(GOOD)
        assert slowly(slow, 6 * IDLE_S) == 0
    with ExitStack() as opened:
        idle = [opened.enter_context(server.raw(beginnings[i % 4])) for i in range(8)]
        assert {status_of(connection) for connection in idle} == {408}


def test_a_head_without_an_end(server: Process) -> None:
    with server.raw(HEAD) as connection:
        with suppress(ConnectionError):
            for i in range(4000):
                connection.sendall(b"X-Header-%d: %s\r\n" % (i, b"y" * 1000))
        assert status_of(connection) in (0, 431)
    with server.raw(HEAD + b"X-Header: " + b"y" * 70_000) as connection:
        assert status_of(connection) == 431


def test_many_requests_in_one_breath(server: Process) -> None:
    sequences = [f"ACG{'T' * i}" for i in range(30)]
    expected = [server.predict({"sequence": sequence})[0]["probabilities"] for sequence in sequences]
    breath = b"".join(request(json.dumps({"sequence": sequence}).encode()) for sequence in sequences)
    with server.raw(breath) as connection, ExitStack() as opened:
        connection.settimeout(20)
        answers = opened.enter_context(connection.makefile("rb"))
        for probabilities in expected:
            assert answers.readline().startswith(b"HTTP/1.1 200")
            headers = dict(line.split(b": ") for line in iter(answers.readline, b"\r\n"))
            found = json.loads(answers.read(int(headers[b"content-length"])))["results"][0]["probabilities"]
            assert found == pytest.approx(probabilities, abs=1e-5)


def test_clients_that_do_not_read_their_answers(server: Process) -> None:
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 3000
    with ExitStack() as opened:
        for _ in range(3):
            connection = socket.socket()
            # With a small window, what is not read stays with the server.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", server.port))
            opened.enter_context(connection)
            connection.settimeout(1)
            with suppress(TimeoutError, ConnectionError):
                connection.sendall(ask)
        assert established(server.port) == 3
        until = time.monotonic() + 20
        while established(server.port):
            assert time.monotonic() < until
            time.sleep(0.2)


def established(port: int) -> int:
    """Connections of the server's side of a port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


def test_more_connections_than_there_may_be(server: Process) -> None:
    with ExitStack() as opened:
        held = [opened.enter_context(server.raw(b"")) for _ in range(CONNECTIONS)]
        with server.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
            assert status_of(connection) == 503
    assert len(held) == CONNECTIONS
    until = time.monotonic() + 10
    while server.ask("GET", "/health")[0] != 200:
        assert time.monotonic() < until


# -- streams


def upgraded(server: Process) -> socket.socket:
    """A stream without a library that would keep to the rules."""
    head = b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    connection = server.raw(head + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    answer = b""
    # Byte by byte, for behind the head the first message may stand already.
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    assert b" 101 " in answer
    return connection


def frame(opcode: int, data: bytes, *, first: int = 0x80, length: int | None = None) -> bytes:
    """A masked frame, whose length may be a lie."""
    return struct.pack("!BBQ4s", first | opcode, 0xFF, len(data) if length is None else length, bytes(4)) + data


@pytest.mark.parametrize(
    "data",
    [
        os.urandom(4000),
        frame(1, b"\xff\xfe\xfd"),
        frame(3, b"reserved"),
        frame(2, b"ACGT", first=0xF0),
        frame(2, b"", length=2**62),
        frame(0, b"goes on where nothing began"),
        frame(9, b"p" * 200),
        b"GET / HTTP/1.1\r\n\r\n" * 50,
    ],
    ids=["garbage", "no UTF-8", "opcode", "flags", "length", "continuation", "ping", "HTTP"],
)
def test_what_is_no_message_ends_its_own_stream(server: Process, data: bytes) -> None:
    with server.stream() as good, upgraded(server) as bad:
        good.send("ACGT")
        assert json.loads(good.recv())["end"] == 4
        bad.sendall(data)
        assert is_closed(bad, 5)
        good.send("AC")
        assert json.loads(good.recv())["end"] == 6


def test_messages_that_are_too_large_even_when_packed(server: Process) -> None:
    from websockets.exceptions import ConnectionClosed

    # Blanks pack a thousand to one; a library packs them by itself.
    for compression in (None, "deflate"):
        with server.stream(compression=compression) as stream, pytest.raises(ConnectionClosed) as closed:
            stream.send(" " * (BODY_MB * 2**20 + 1))
            stream.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_two_hundred_streams_that_say_nothing(server: Process) -> None:
    with ExitStack() as opened:
        sockets = [opened.enter_context(upgraded(server)) for _ in range(200)]
        assert server.predict(GOOD)
        reasons = [told(connection) for connection in sockets]
        assert sum(b"no message came" in reason for reason in reasons) == STREAMS
        assert sum(b"streams are open" in reason for reason in reasons) == 200 - STREAMS
    with server.stream() as stream:
        stream.send("ACGT")
        assert json.loads(stream.recv())["end"] == 4


def told(connection: socket.socket) -> bytes:
    """What a stream is sent until it closes, the mark of which is the last frame."""
    connection.settimeout(6 * IDLE_S)
    found = b""
    while b"\x88" not in found and (piece := connection.recv(4096)):
        found += piece
    return found


def test_a_stream_that_is_never_read(server: Process) -> None:
    """The server may wait for such a client, but not for ever, and keeps no place for it."""
    with ExitStack() as opened:
        for _ in range(STREAMS):
            connection = opened.enter_context(upgraded(server))
            connection.sendall(frame(1, b"ACGT"))
        time.sleep(IDLE_S + 2.5)
        stream: Any = opened.enter_context(server.stream())
        stream.send("ACGT")
        assert json.loads(stream.recv())["end"] == 4
