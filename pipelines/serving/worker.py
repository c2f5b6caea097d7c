"""The process that holds the model: batches by length from what is waiting, and the state of every stream.

LitServe starts it and carries messages to and from it. Its own loops hand a batch's failure to everybody in the batch and poll
a thousand times a second; `LengthLoop` tries the rows of a failed batch one by one and sleeps while nothing is asked.
"""

import logging
import signal
import time
import traceback
from collections.abc import Callable
from queue import Empty
from typing import Any

import litserve as ls
import numpy as np
import torch
from litserve.loops import LitLoop

from longseq.inference import POOLED, POSITIONED, Inference, load_inference
from longseq.pipelines.serving.batches import ALIKE, batches, padded
from longseq.pipelines.serving.messages import Failure, Work, packed, unpacked
from longseq.streaming import Stream

logger = logging.getLogger(__name__)


class ModelAPI(ls.LitAPI):
    """What LitServe knows of the model.

    Args:
        folder: the model's.
        options: of `Inference`.
        max_batch_size: rows.
        max_batch_tokens: rows times the longest of them.
        batch_wait_s: for more rows, from the first one on.
        threads: of torch on the CPU; None for its own choice.
    """

    def __init__(
        self,
        folder: str,
        options: dict[str, Any],
        *,
        max_batch_size: int,
        max_batch_tokens: int,
        batch_wait_s: float,
        threads: int | None = None,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_wait_s, loop=LengthLoop())
        self.folder, self.options = folder, options
        self.max_batch_tokens, self.threads = max_batch_tokens, threads

    def setup(self, device: str) -> None:
        """Loads the model; called once, in the worker."""
        # A terminal's Ctrl-C, or a service manager's stop, reaches every process: this one ends when all is answered.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        self.inference: Inference = load_inference(self.folder, device, **self.options)
        self.torch_device = torch.device(device)

    @torch.inference_mode()
    def predict(self, x: list[np.ndarray], **kwargs: Any) -> list[np.ndarray]:
        """The answers to rows that share a batch, without their padding."""
        del kwargs
        if not self.inference.takes_mask:
            outputs = self.inference(torch.from_numpy(np.stack(x)).to(self.torch_device))
            return [*outputs.float().cpu().numpy()]
        inputs, mask = padded(x)
        outputs = self.inference(inputs.to(self.torch_device), mask.to(self.torch_device)).float().cpu().numpy()
        if self.inference.task not in POSITIONED:
            return [*outputs]
        return [row[: self.positions(len(given))] for row, given in zip(outputs, x, strict=True)]

    def positions(self, length: int) -> int:
        """Positions of a row of so many tokens or samples."""
        return -(-length // self.inference.stride)


class LengthLoop(LitLoop):
    """Takes what is waiting, answers it in batches of similar lengths, and keeps the streams."""

    def __call__(self, lit_api: Any, device: str, worker_id: int, request_queue: Any, transport: Any, *args: Any) -> None:
        """Runs until it is told to stop, or until the server has gone."""
        self.api: ModelAPI = lit_api
        self.send: Callable[[int, Any], None] = lambda uid, found: transport.send((uid, packed(found)), consumer_id=0)
        self.streams: dict[int, Stream] = {}
        try:
            while (works := self.waiting(request_queue)) is not None:
                self.answer(works)
        except (EOFError, OSError):
            # The queue lives in the server's processes.
            logger.warning("the server has gone; its worker ends")

    def waiting(self, request_queue: Any) -> list[Work] | None:
        """What has come, a short while after the first; None to stop. What came before that order is answered first."""
        works: list[Work] = []
        rows, until = 0, 0.0
        while rows < self.api.max_batch_size:
            patience = 1.0 if not works else until - time.monotonic()
            try:
                data = request_queue.get(timeout=max(0.0, patience)) if patience > 0 else request_queue.get_nowait()
            except Empty:
                if works:
                    break
                continue
            if data is None:
                if not works:
                    return None
                request_queue.put(None)
                break
            if not works:
                until = time.monotonic() + self.api.batch_timeout
            work: Work = unpacked(data)
            works.append(work)
            rows += len(work.rows)
        return works

    def answer(self, works: list[Work]) -> None:
        """Answers everything, each caller's failure to itself."""
        now = time.monotonic()
        # Nobody waits for the others any more; what closes a stream is never late.
        works = [work for work in works if work.deadline > now or work.kind == "close"]
        for work in works:
            if work.kind != "rows":
                found = guarded(lambda work=work: self.stream(work), 1)
                if isinstance(found, Failure):
                    self.streams.pop(work.stream, None)
                self.send(work.uid, found)
        asked = [work for work in works if work.kind == "rows"]
        rows = [row for work in asked for row in work.rows]
        answers = self.run(rows)
        first = 0
        for work in asked:
            part = answers[first : first + len(work.rows)]
            first += len(work.rows)
            failed = next((item for item in part if isinstance(item, Failure)), None)
            self.send(work.uid, part if failed is None else failed)

    def run(self, rows: list[np.ndarray]) -> list[np.ndarray | Failure]:
        """Outputs or failures, in the order of the rows."""
        found: list[Any] = [None] * len(rows)
        # Where the answer's size follows from the padded length, rows of one length alone share a batch.
        alike = ALIKE if self.api.inference.task in (*POOLED, *POSITIONED) else 1.0
        lengths = [len(row) for row in rows]
        for batch in batches(lengths, self.api.max_batch_size, self.api.max_batch_tokens, alike):
            outputs = guarded(lambda batch=batch: self.api.predict([rows[index] for index in batch]), len(batch))
            if isinstance(outputs, Failure) and len(batch) > 1:
                # One row may have failed all of them.
                alone = [guarded(lambda index=index: self.api.predict([rows[index]]), 1) for index in batch]
                outputs = [item if isinstance(item, Failure) else item[0] for item in alone]
            for place, index in enumerate(batch):
                found[index] = outputs if isinstance(outputs, Failure) else outputs[place]
        return found

    @torch.inference_mode()
    def stream(self, work: Work) -> list[np.ndarray] | Failure:
        """The answers that a stream's next piece completes, and the number of positions so far."""
        inference = self.api.inference
        if work.kind == "close":
            self.streams.pop(work.stream, None)
            return []
        if work.kind == "open":
            self.streams[work.stream] = Stream(inference.model)
            return []
        if work.stream not in self.streams:
            # It must not go on from an empty state.
            return Failure(503, "the stream's state was lost when the model's process was started again: begin anew")
        stream = self.streams[work.stream]
        if work.kind == "finish":
            outputs = stream.finish()
            self.streams.pop(work.stream)
        else:
            outputs = stream.push(torch.from_numpy(work.rows[0]).unsqueeze(0).to(self.api.torch_device))
        return [inference.answer(outputs)[0].float().cpu().numpy(), np.array(stream.positions)]


def guarded(call: Callable[[], Any], count: int) -> Any:
    """What a call returns, or why it failed; the worker lives on."""
    try:
        return call()
    except torch.OutOfMemoryError:
        return Failure(507, "the device has no memory left for this input: send a shorter one")
    except Exception as error:
        if "memory" in str(error).lower() or isinstance(error, MemoryError):
            return Failure(507, "the machine has no memory left for this input: send a shorter one")
        if count == 1:
            logger.error("a request failed:\n%s", traceback.format_exc())
        return Failure(500, f"the model failed on this input ({type(error).__name__}); the server's log says more")
