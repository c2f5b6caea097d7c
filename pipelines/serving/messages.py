"""What the server and the model's process tell each other.

Between both stands the process that holds the queues. It opens whatever it passes on, and to do so would import all that the
contents are made of, torch among it: seconds for the first request, and hundreds of megabytes. So messages pass it as bytes.
"""

import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Work:
    """A message to the worker.

    Attributes:
        uid: of the answer that is waited for.
        kind: `rows` of a request; `open`, `push`, `finish` and `close` of a stream.
        rows: inputs without the batch axis; a stream's piece.
        stream: its name.
        deadline: on the monotonic clock, behind which nobody waits any more.
    """

    uid: int
    kind: str
    rows: list[np.ndarray] = field(default_factory=list)
    stream: int = 0
    deadline: float = float("inf")


@dataclass(frozen=True)
class Failure:
    """What the worker sends in place of outputs.

    Attributes:
        status: of HTTP.
        reason: for the client.
    """

    status: int
    reason: str


def packed(message: Any) -> bytes:
    """A message as bytes, for the queues; nothing of a client's making is ever unpacked in this way."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> Any:
    """A message from its bytes."""
    return pickle.loads(data)
