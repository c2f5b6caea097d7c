"""What every request passes before anything of it is read: token, origin, number of requests, size and pace of its body."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longseq.pipelines.serving.limits import Limits, Refusal

# The page, its description and the state of the server hold nothing of the model.
OPEN = ("/", "/health", "/docs", "/openapi.json")
# Bytes a second that a body must come at, once `idle_s` have passed.
SLOWEST = 1024


class ClientGone(Exception):  # noqa: N818  what happened, no error
    """The client disconnected before its request was complete."""


class Gate:
    """ASGI middleware; bodies are read here, whole and within bounds, so that nothing behind it waits for a client.

    Args:
        app: what is behind.
        limits: see there.
        token: that clients must send as `Authorization: Bearer ...`; None lets all in.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, token: str | None) -> None:
        self.app, self.limits, self.token = app, limits, token
        # Requests that are being answered, and bytes of bodies that are here.
        self.active = self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Streams check token and origin themselves, because only an accepted websocket can be told why it is refused.
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            check_origin(Headers(scope=scope))
            if scope["path"] not in OPEN:
                check_token(Headers(scope=scope), self.token)
            if scope["method"] != "POST":
                await self.app(scope, receive, watched)
                return
            await self._post(scope, receive, watched)
        except Refusal as refusal:
            await answer(send, refusal)
        except ClientGone:
            return
        except asyncio.CancelledError:
            # Only the server's end cancels a request: a second Ctrl-C, or `grace_s` have passed.
            if not begun:
                await answer(send, Refusal(503, "the server was stopped before this was answered: ask again"))

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_room()
        arriving = Arriving()
        try:
            await self._receive(Headers(scope=scope), receive, arriving)
            # Others may have come meanwhile; who only sends takes nobody's place.
            self._check_room()
            self.active += 1
            try:
                await self.app(scope, replayed(arriving, receive), send)
            finally:
                self.active -= 1
        finally:
            self.held -= arriving.size

    def _check_room(self) -> None:
        most = self.limits.max_concurrent
        if self.active >= most:
            raise Refusal(429, f"{self.active} requests are being answered, at most {most} are: try again")
        if self.held > most * self.limits.max_body:
            raise Refusal(429, f"bodies of {self.held // 2**20} MiB are being received, which is the most: try again")

    async def _receive(self, headers: Headers, receive: Receive, arriving: "Arriving") -> None:
        """Reads a body, as long as it is neither too large nor too slow."""
        most, idle = self.limits.max_body, self.limits.idle_s
        reason = f"the body is larger than {self.limits.max_body_mb:g} MiB: send less at once"
        said = headers.get("content-length", "")
        if said.isdigit() and int(said[:20]) > most:
            raise Refusal(413, reason)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, f"Content-Encoding: {headers['content-encoding'][:40]} is not taken: send the body as it is")
        began = time.monotonic()
        while True:
            try:
                message = await asyncio.wait_for(receive(), idle)
            except TimeoutError:
                raise Refusal(408, f"no byte of the body came for {idle:g} seconds") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            self.held += len(part)
            if arriving.add(part) > most:
                raise Refusal(413, reason)
            if not message.get("more_body", False):
                return
            self._check_room()
            if time.monotonic() - began > idle + arriving.size / SLOWEST:
                raise Refusal(408, f"the body came at less than {SLOWEST} bytes a second")


class Arriving:
    """A body that is being received.

    Attributes:
        parts: of it.
        size: in bytes.
    """

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, part: bytes) -> int:
        """Takes the next part; the size so far."""
        self.parts.append(part)
        self.size += len(part)
        return self.size

    def whole(self) -> bytes:
        """The body, which is kept no longer."""
        body = b"".join(self.parts)
        self.parts = []
        return body


def replayed(arriving: Arriving, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, then whatever the connection says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": arriving.whole(), "more_body": False}

    return replay


def check_token(headers: Mapping[str, str], token: str | None) -> None:
    """Raises Refusal unless the request bears the token."""
    if token is None:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not same(given.strip(), token):
        raise Refusal(401, "a token is needed: send the header Authorization: Bearer <token>")


def same(given: str, token: str) -> bool:
    """Whether two tokens are equal, in a time that does not say where they differ."""
    # Digests have one length, so that not even that of the token shows.
    mine, theirs = (hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (token, given))
    return hmac.compare_digest(mine, theirs)


def check_origin(headers: Mapping[str, str]) -> None:
    """Raises Refusal for requests that a page of another site makes a browser send."""
    origin = headers.get("origin")
    if origin is not None and site(origin) != headers.get("host"):
        raise Refusal(403, "the request comes from a page of another site, which may not use this server")


def site(origin: str) -> str:
    """Host and port of a page's origin; nothing for what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


async def answer(send: Send, refusal: Refusal) -> None:
    """Sends a refusal as JSON."""
    body = json.dumps({"error": refusal.reason}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
