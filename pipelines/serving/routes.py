"""What clients can ask: /predict, /stream, /health, /info, the page at / and the description of it all."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response, WebSocket
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from longseq.pipelines.serving.description import ERRORS, request_description
from longseq.pipelines.serving.gate import check_origin, check_token
from longseq.pipelines.serving.limits import Refusal
from longseq.pipelines.serving.payload import MEDIA_TYPES, json_object, media_types, uploads

if TYPE_CHECKING:
    from longseq.pipelines.serving.server import ModelServer

FOLDER = Path(__file__).parent
# Reading large bodies at once would hold them all in memory several times over.
READERS = 2
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
# The pages bring all they need; nothing in them may load or send anything elsewhere.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# How a websocket ends: the client's mistake, too much, later.
POLICY, TOO_BIG, TRY_LATER = 1008, 1009, 1013


def add_routes(server: "ModelServer") -> None:
    """Adds every route to a server's application."""
    app = server.app
    # FastAPI's own pages load their scripts from elsewhere.
    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", "") == "/openapi.json"]
    # A redirect to /predict would answer clients that do not follow it with nothing.
    app.router.redirect_slashes = False
    routes = Routes(server)
    described = request_description(server)
    locked = {"security": [{"token": []}]} if server.token else {}
    app.add_api_route(
        "/predict", routes.predict, methods=["POST"], openapi_extra={**described, **locked}, summary="Predict", responses=ERRORS
    )
    refused_info: dict[int | str, dict[str, Any]] = {401: ERRORS[401]} if server.token else {}
    app.add_api_route(
        "/info", routes.info, summary="What is served, and its limits", openapi_extra=locked, responses=refused_info
    )
    app.add_api_route(
        "/health", routes.health, summary="Whether the model answers", responses={503: {"description": "not yet"}}
    )
    app.add_api_route("/", routes.page, include_in_schema=False)
    app.add_api_route("/docs", routes.docs, include_in_schema=False)
    # Whoever watches a server asks for heads alone.
    for path, answer in (("/info", routes.info), ("/health", routes.health), ("/", routes.page), ("/docs", routes.docs)):
        app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    app.add_api_websocket_route("/stream", routes.stream)
    app.add_api_route("/stream", routes.no_stream, methods=METHODS, include_in_schema=False)
    if server.token:
        # FastAPI makes it once and keeps it.
        app.openapi().setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, not_here)
    app.add_exception_handler(Exception, broken)


class Routes:
    """The endpoints of a server.

    Args:
        server: whose worker answers.
    """

    def __init__(self, server: "ModelServer") -> None:
        self.server, self.served = server, server.served
        self.readers = asyncio.Semaphore(READERS)

    async def predict(self, request: Request) -> Response:
        """Answers for the inputs of a JSON body, of a form's files, or of a body that is a file."""
        full = request.query_params.get("full", "0") in ("1", "true")
        media_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
        async with self.readers:
            if media_type == "multipart/form-data" or media_type in MEDIA_TYPES:
                files = await uploads(request, media_type, self.served.requests.suffixes)
                asked = await asyncio.to_thread(self.served.from_files, files)
            elif media_type in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
                # curl -d says the last of these unless it is told better.
                body = await request.body()
                asked = await asyncio.to_thread(lambda: self.served.from_json(json_object(body)))
            else:
                known = ", ".join(("application/json", "multipart/form-data", *media_types(self.served.requests.suffixes)))
                raise Refusal(415, f"Content-Type: {media_type[:60]} is not taken; expected one of {known}")
        outputs = await self.server.ask("rows", rows=asked.rows)
        text = await asyncio.to_thread(
            lambda: dumped({"task": self.served.task, "results": self.served.results(outputs, asked, full)})
        )
        return Response(text, media_type="application/json")

    async def info(self) -> Response:
        """The model's task, labels, sizes, an example, and the limits."""
        return JSONResponse(self.served.info())

    async def health(self) -> Response:
        """`ok` as soon as requests are answered."""
        ready = self.server.ready and not self.server.stopping
        return JSONResponse({"status": "ok" if ready else "loading"}, status_code=200 if ready else 503)

    async def page(self) -> Response:
        return Response((FOLDER / "page.html").read_bytes(), media_type="text/html", headers=PAGE_HEADERS)

    async def docs(self) -> Response:
        return Response((FOLDER / "docs.html").read_bytes(), media_type="text/html", headers=PAGE_HEADERS)

    # -- streams

    async def no_stream(self) -> Response:
        """What is no websocket and asks for /stream all the same."""
        raise Refusal(426, "/stream speaks websocket: connect to it as ws://...; whole inputs go to /predict")

    async def stream(self, socket: WebSocket) -> None:
        """Pieces of one input in, the answers that they complete out, with the state of this connection."""
        await socket.accept()
        uid = next(self.server.uids)
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await self._stream(socket, uid)
        except Refusal as refusal:
            code = {413: TOO_BIG, 429: TRY_LATER, 503: TRY_LATER}.get(refusal.status, POLICY)
            # The client may have gone meanwhile.
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await self._send(socket, {"error": refusal.reason, "status": refusal.status})
                await socket.close(code)
        finally:
            if uid in self.server.open_streams:
                self.server.open_streams.discard(uid)
                with contextlib.suppress(Refusal):
                    await self.server.ask("close", stream=uid)

    async def _stream(self, socket: WebSocket, uid: int) -> None:
        check_origin(socket.headers)
        first = await self._authorised(socket)
        if self.served.cannot_stream is not None:
            raise Refusal(422, f"this model cannot stream: {self.served.cannot_stream}")
        if len(self.server.open_streams) >= self.served.limits.max_streams:
            raise Refusal(
                429, f"{len(self.server.open_streams)} streams are open, at most {self.served.limits.max_streams} are"
            )
        self.server.open_streams.add(uid)
        await self.server.ask("open", stream=uid)
        taken = position = 0
        while True:
            message = await self._message(socket) if first is None else first
            first = None
            finish = isinstance(message, dict) and message == {"finish": True}
            if finish:
                outputs, positions = await self.server.ask("finish", stream=uid)
            else:
                piece = self.served.chunk(message)
                taken += len(piece)
                if taken > self.served.limits.max_length:
                    raise Refusal(413, f"the stream has grown to {taken}, at most {self.served.limits.max_length} are allowed")
                outputs, positions = await self.server.ask("push", stream=uid, rows=[piece])
            answer = {"start": position, "end": int(positions), **self._piece(outputs)}
            position = int(positions)
            if finish:
                await self._send(socket, {**answer, "finished": True})
                await socket.close(1000)
                return
            await self._send(socket, answer)

    async def _send(self, socket: WebSocket, answer: dict[str, Any]) -> None:
        """Sends an answer; a client that does not read is taken for gone."""
        try:
            await asyncio.wait_for(socket.send_text(dumped(answer)), self.served.limits.idle_s)
        except TimeoutError:
            raise WebSocketDisconnect(1006) from None

    def _piece(self, outputs: Any) -> dict[str, Any]:
        """The answers of a piece; a pooled one has none before the first position is complete."""
        pooled = outputs.ndim == 1
        return (
            {} if (pooled and not outputs.size) or (pooled and outputs[0] != outputs[0]) else self.served.answers.chunk(outputs)
        )

    async def _authorised(self, socket: WebSocket) -> Any:
        """The first message, unless it is the token, which browsers cannot send as a header."""
        try:
            check_token(socket.headers, self.server.token)
            return None
        except Refusal:
            message = await self._message(socket)
            given = message.get("token") if isinstance(message, dict) else None
            check_token({"authorization": f"Bearer {given}"}, self.server.token)
            return None

    async def _message(self, socket: WebSocket) -> dict[str, Any] | bytes | str:
        idle = self.served.limits.idle_s
        try:
            message = await asyncio.wait_for(socket.receive(), idle)
        except TimeoutError:
            raise Refusal(408, f"no message came for {idle:g} seconds") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if message.get("bytes") is not None:
            return message["bytes"]
        text = message.get("text") or ""
        # Letters may come as they are.
        return json_object(text) if text.lstrip()[:1] in ("{", "[", "") else text


def dumped(value: Any) -> str:
    """JSON in few bytes; NaN would be none."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), default=str)


async def refused(request: Request, error: Any) -> Response:
    """A refusal as JSON."""
    del request
    # JSON of ASCII alone: a reason may repeat half a character of the client's.
    return Response(dumped({"error": error.reason}), error.status, error.headers, "application/json")


async def not_here(request: Request, error: Any) -> Response:
    """What the framework itself refuses: unknown paths, other methods, broken forms."""
    reason = str(error.detail)
    if error.status_code == 404:
        reason = f"there is no {request.url.path[:80]}; there are /predict, /stream, /health, /info, /docs and the page at /"
    elif error.status_code == 405:
        reason = f"{request.method} is not for {request.url.path}: see /docs"
    status = 422 if error.status_code == 400 else error.status_code
    return JSONResponse({"error": reason}, status_code=status, headers=error.headers)


async def broken(request: Request, error: Exception) -> Response:
    """A fault of the server's own; uvicorn logs it."""
    del request
    return JSONResponse({"error": f"the server failed ({type(error).__name__}); its log says more"}, status_code=500)
