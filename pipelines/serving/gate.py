"""What every request passes before anything of it is read: token, origin, number of requests, size and pace of its body."""

import asyncio
import hmac
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longseq.pipelines.serving.limits import Limits, Refusal

# The page, its description and the state of the server hold nothing of the model.
OPEN = ("/", "/health", "/docs", "/openapi.json")


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
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Streams check token and origin themselves, because only an accepted websocket can be told why it is refused.
            await self.app(scope, receive, send)
            return
        try:
            check_origin(Headers(scope=scope))
            if scope["path"] not in OPEN:
                check_token(Headers(scope=scope), self.token)
            if scope["method"] != "POST":
                await self.app(scope, receive, send)
                return
            await self._post(scope, receive, send)
        except Refusal as refusal:
            await answer(send, refusal)
        except ClientGone:
            return

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.active >= self.limits.max_concurrent:
            raise Refusal(
                429, f"{self.active} requests are being answered, at most {self.limits.max_concurrent} are: try again"
            )
        self.active += 1
        try:
            body = await self._body(Headers(scope=scope), receive)

            async def replay() -> Message:
                nonlocal body
                if body is None:
                    return await receive()
                whole, body = body, None
                return {"type": "http.request", "body": whole, "more_body": False}

            await self.app(scope, replay, send)
        finally:
            self.active -= 1

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        most = self.limits.max_body
        reason = f"the body is larger than {self.limits.max_body_mb:g} MiB: send less at once"
        said = headers.get("content-length", "")
        if said.isdigit() and int(said) > most:
            raise Refusal(413, reason)
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, f"Content-Encoding: {headers['content-encoding'][:40]} is not taken: send the body as it is")
        parts, size = [], 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), self.limits.idle_s)
            except TimeoutError:
                raise Refusal(408, f"no byte of the body came for {self.limits.idle_s:g} seconds") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise Refusal(413, reason)
            if not message.get("more_body", False):
                return b"".join(parts)


def check_token(headers: Mapping[str, str], token: str | None) -> None:
    """Raises Refusal unless the request bears the token."""
    if token is None:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not same(given.strip(), token):
        raise Refusal(401, "a token is needed: send the header Authorization: Bearer <token>")


def same(given: str, token: str) -> bool:
    """Whether two tokens are equal, in a time that does not say where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode("utf-8", "replace"))


def check_origin(headers: Mapping[str, str]) -> None:
    """Raises Refusal for requests that a page of another site makes a browser send."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise Refusal(403, "the request comes from a page of another site, which may not use this server")


async def answer(send: Send, refusal: Refusal) -> None:
    """Sends a refusal as JSON."""
    body = json.dumps({"error": refusal.reason}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
