"""LitServe's server with what it lacks: refusals with reasons, streams, answers before it stops, a worker that comes back.

LitServe supplies the application, the process of the worker and the queues between both. Its own routes parse bodies without
bounds and its own shutdown closes the queues before what was accepted is answered; both are replaced here, through what it
exposes (`register_endpoints`, `app`, `launch_inference_worker`), and the HTTP server runs in this process.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from multiprocessing import get_context
from multiprocessing.managers import SyncManager
from typing import Any, cast

import litserve as ls
import uvicorn
from fastapi import FastAPI
from litserve.transport.factory import create_transport_from_config
from litserve.utils import WorkerSetupStatus

from longseq.errors import LongseqError
from longseq.pipelines.serving.connections import bounded, brief, listen, room_for
from longseq.pipelines.serving.gate import Gate
from longseq.pipelines.serving.lifetime import outlive_nobody
from longseq.pipelines.serving.limits import Refusal
from longseq.pipelines.serving.messages import Failure, Work, packed, unpacked
from longseq.pipelines.serving.reader import Served
from longseq.pipelines.serving.worker import ModelAPI

logger = logging.getLogger(__name__)
# A worker that dies this often within ten minutes will not get better.
MOST_RESTARTS = 5


class ServerError(LongseqError):
    """The server cannot start, or cannot go on."""


class ModelServer(ls.LitServer):
    """Serves one model.

    Args:
        api: the worker's side.
        served: the clients' side.
        token: that clients must send; None for none.
    """

    def __init__(self, api: ModelAPI, served: Served, token: str | None) -> None:
        self.served, self.token = served, token
        self.started = time.monotonic()
        self.uids = itertools.count(1)
        self.pending: dict[int, asyncio.Future[Any]] = {}
        self.open_streams: set[int] = set()
        self.restarts: list[float] = []
        self.stopping = False
        device = served.device
        devices: Any = [device.index or 0] if device.type == "cuda" else 1
        super().__init__(
            api,
            accelerator=device.type,  # type: ignore[arg-type]
            devices=devices,
            timeout=False,
            middlewares=[(Gate, {"limits": served.limits, "token": token})],
        )
        self.app.title, self.app.version = "longseq serve", str(served.info()["longseq"])

    def register_endpoints(self) -> None:
        """The routes of this server in place of LitServe's."""
        from longseq.pipelines.serving.routes import add_routes

        add_routes(cast(Any, self))

    # -- asking the worker

    @property
    def ready(self) -> bool:
        """Whether the worker answers."""
        return all(state == WorkerSetupStatus.READY for state in self.workers_setup_status.values()) and self._alive()

    async def ask(self, kind: str, **content: Any) -> list[Any]:
        """The worker's answer.

        Raises:
            Refusal: if it failed, or came too late.
        """
        if not self._alive():
            raise Refusal(503, "the model is being loaded again: try again in a few seconds")
        limit = self.served.limits.timeout_s
        work = Work(next(self.uids), kind, deadline=time.monotonic() + limit, **content)
        future = self.pending[work.uid] = asyncio.get_running_loop().create_future()
        try:
            # Handing over large inputs takes a while, in which others are to be served.
            await asyncio.to_thread(lambda: self._queue().put(packed(work)))
            found = unpacked(await asyncio.wait_for(future, limit))
        except TimeoutError:
            raise Refusal(504, f"no answer within {limit:g} seconds: send less at once") from None
        except (EOFError, OSError):
            raise Refusal(503, "the server is stopping") from None
        finally:
            self.pending.pop(work.uid, None)
        if isinstance(found, Failure):
            raise Refusal(found.status, found.reason)
        return found

    def _queue(self) -> Any:
        return self._get_request_queue(self.lit_api.api_path)  # type: ignore[union-attr]

    def _alive(self) -> bool:
        return all(worker.is_alive() for worker in self.inference_workers)

    # -- what runs beside the routes

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Carries the worker's answers to those who wait, and watches the worker."""
        del app
        tasks = [asyncio.create_task(self._dispatch()), asyncio.create_task(self._watch())]
        try:
            yield
        finally:
            self.stopping = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _dispatch(self) -> None:
        while True:
            began = time.monotonic()
            message = await self._transport.areceive(0)
            if message is None:
                # Nothing came within a second; sooner, the queue is gone.
                await asyncio.sleep(0.5 if time.monotonic() - began < 0.5 else 0)
                continue
            uid, found = message
            future = self.pending.get(uid)
            if future is not None and not future.done():
                future.set_result(found)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if self._alive():
                continue
            logger.error("the model's process died (exit code %s); it is started again", self.inference_workers[0].exitcode)
            died = Failure(503, "the model's process died while this was being answered: try again")
            for future in list(self.pending.values()):
                if not future.done():
                    future.set_result(packed(died))
            now = time.monotonic()
            self.restarts = [*(then for then in self.restarts if now - then < 600), now]
            if len(self.restarts) > MOST_RESTARTS:
                logger.error("it died %d times within ten minutes: the server stops", len(self.restarts))
                self.http.should_exit = True
                return
            # A fresh queue: what stands in the old one is waited for by nobody.
            self.litapi_request_queues[self.lit_api.api_path] = self.manager.Queue()  # type: ignore[union-attr]
            self.inference_workers = [
                await asyncio.to_thread(self.launch_single_inference_worker, cast(ModelAPI, self.lit_api), 0)
            ]

    # -- beginning and end

    def serve(self, host: str, port: int, grace_s: float, announce: Any) -> int:
        """Runs until it is told to stop, and answers what it has accepted by then.

        Args:
            host: interface to listen on.
            port: 0 for a free one.
            grace_s: for what was accepted, before it is cut off.
            announce: called with the URL once the model answers.

        Returns:
            The exit code.

        Raises:
            ConfigError: if the port cannot be had.
            ServerError: if the model's process does not start.
        """
        listener = listen(host, port)
        # After uvicorn has stopped it raises the signal again, which must not skip what follows.
        previous = signal.signal(signal.SIGTERM, stop)
        try:
            self._start_worker()
            bound = listener.getsockname()[1]
            announce(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
            room_for(self.served.limits.max_connections)
            self.http = uvicorn.Server(self.http_config(grace_s))
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                self.http.run(sockets=[listener])
            return 1 if len(self.restarts) > MOST_RESTARTS else 0
        except SystemExit:
            return 0
        finally:
            listener.close()
            self._stop_worker()
            signal.signal(signal.SIGTERM, previous)

    def http_config(self, grace_s: float) -> uvicorn.Config:
        """How clients are listened to."""
        limits = self.served.limits
        found = uvicorn.Config(
            self.app,
            http=bounded(limits),
            log_level="warning",
            timeout_graceful_shutdown=int(grace_s),
            ws_max_size=limits.max_body,
            ws_ping_interval=20.0,
            server_header=False,
        )
        logging.getLogger("uvicorn.error").addFilter(brief)
        return found

    def _start_worker(self) -> None:
        self.manager = SyncManager(ctx=get_context("spawn"))
        self.manager.start(outlive_nobody, (os.getpid(),))
        transport: Any = self.transport_config
        transport.manager, transport.num_consumers = self.manager, 1
        self.workers_setup_status: Any = self.manager.dict()
        self.litapi_request_queues[self.lit_api.api_path] = self.manager.Queue()  # type: ignore[union-attr]
        self._transport = create_transport_from_config(transport)
        self.inference_workers = self.launch_inference_worker(self.lit_api)  # type: ignore[arg-type]
        while not self.ready:
            failed = WorkerSetupStatus.ERROR in self.workers_setup_status.values()
            if failed or not self._alive():
                raise ServerError("the model's process did not start; what it printed above says why")
            time.sleep(0.05)

    def _stop_worker(self) -> None:
        for worker in getattr(self, "inference_workers", []):
            with contextlib.suppress(EOFError, OSError):
                self._queue().put(None)
            worker.join(5)
            if worker.is_alive():
                worker.kill()
                worker.join()
        if hasattr(self, "manager"):
            self.manager.shutdown()


def stop(number: int, frame: Any) -> None:
    """What SIGTERM does."""
    del number, frame
    raise SystemExit(0)
