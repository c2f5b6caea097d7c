"""One client's connection, within bounds that the HTTP server itself does not set: of its number, its head and its pace.

uvicorn waits for ever for the rest of a head, keeps heads of any size, reads bodies that nobody wants, and holds answers for
clients that never read them. A few hundred such clients would take all that a server has.
"""

import asyncio
import json
import logging
import socket
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from longseq.errors import ConfigError
from longseq.pipelines.serving.limits import Limits, Refusal

# Of a request line and its headers; browsers send a few hundred bytes, cookies of other programs on this host included.
MOST_HEAD = 64 * 1024
# For a client to read why it is refused: closing at once may throw the reason away.
LINGER_S = 2.0
HEAD, BODY, BETWEEN = "head", "body", "between"


class BoundedConnection(HttpToolsProtocol):
    """A connection that is cut when its client holds it without using it; `bounded` makes one for some limits."""

    limits: ClassVar[Limits]

    def connection_made(self, transport: Any) -> None:
        """Takes the connection, or says that there are too many."""
        super().connection_made(transport)
        self.phase, self.since = HEAD, self.loop.time()
        self.head_bytes = self.unwanted = self.unread = 0
        self.moved, self.refused = self.since, False
        # Of several requests that came at once, the one whose turn it is.
        self.running: Any = None
        self.watch: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.max_connections:
            self.refuse(Refusal(503, f"{self.limits.max_connections} connections are open, which is the most: try again"))
            return
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._stop_looking()
        self._leave()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Hands over to the stream, which has bounds of its own."""
        self._stop_looking()
        super().handle_websocket_upgrade()

    # -- what comes

    def data_received(self, data: bytes) -> None:
        """Parses what has come, unless the client was refused already."""
        if self.refused:
            return
        before = self.phase
        super().data_received(data)
        if before == self.phase == HEAD:
            self.head_bytes += len(data)
            if self.head_bytes > MOST_HEAD and not self.transport.is_closing():
                self.refuse(Refusal(431, f"the headers are larger than {MOST_HEAD // 1024} KiB"))

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self.phase, self.since, self.unwanted = HEAD, self.loop.time(), 0

    def on_headers_complete(self) -> None:
        """A body begins."""
        self.phase, self.head_bytes = BODY, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keeps a piece of a body; what comes behind the answer is thrown away, but not for ever."""
        if self.cycle is not None and self.cycle.response_complete:
            self.unwanted += len(body)
            if self.unwanted > self.limits.max_body:
                self.cut()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body ends."""
        self.phase = BETWEEN
        super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """An answer ends; whatever the client still owes, it has been waited for by somebody else so far."""
        self.since = self.loop.time()
        super().on_response_complete()

    # -- what does not come

    def _look(self) -> None:
        now, idle = self.loop.time(), self.limits.idle_s
        unread = self.transport.get_write_buffer_size()
        if not unread or unread < self.unread:
            self.moved = now
        self.unread = unread
        answered = self.running is None or (self.running.response_complete and not self.pipeline)
        if now - self.moved > idle:
            # It does not read its answer.
            self.cut()
        elif answered and self.phase == HEAD and now - self.since > idle and not self.transport.is_closing():
            self.refuse(Refusal(408, f"no request came within {idle:g} seconds"))
        elif answered and self.phase == BODY and now - self.since > idle:
            self.cut()
        else:
            self._look_again()

    def _look_again(self) -> None:
        self.watch = self.loop.call_later(min(1.0, self.limits.idle_s / 4), self._look)

    def _stop_looking(self) -> None:
        if self.watch is not None:
            self.watch.cancel()

    def cut(self) -> None:
        """Ends the connection, whatever is under way."""
        self._leave()
        self.transport.abort()

    def _leave(self) -> None:
        """Tells the request that is being answered that nobody listens; uvicorn tells the one that came last."""
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """Says that what came is no request of HTTP, as JSON like every other refusal."""
        self.refuse(Refusal(400, f"{msg} This server speaks HTTP/1.1 without TLS; see /docs"))

    def refuse(self, refusal: Refusal) -> None:
        """Says why, and closes the connection once the client can have read it; nothing else is answered on it."""
        self.refused = True
        self._stop_looking()
        self._leave()
        body = json.dumps({"error": refusal.reason}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **refusal.headers}.items()]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.watch = self.loop.call_later(LINGER_S, self.transport.abort)


def bounded(limits: Limits) -> type[BoundedConnection]:
    """The connections of a server with these limits."""
    return type("Connection", (BoundedConnection,), {"limits": limits})


def room_for(connections: int) -> None:
    """Lets this process have so many connections open, as far as the system allows."""
    try:
        import resource
    except ImportError:
        # Windows counts otherwise.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Files, queues and libraries want some.
    wanted = connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def brief(record: logging.LogRecord) -> bool:
    """A filter of the HTTP server's log: a client's broken UTF-8 is worth a line, a second Ctrl-C none; no traceback is."""
    if record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError):
        record.exc_info = None
    return "CancelledError" not in record.getMessage()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: if there is no such interface, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot listen on host={host} port={port}: {why}; choose another port=, or port=0 for a free one"
        ) from None
