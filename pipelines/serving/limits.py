"""What a server takes from its clients, and the refusals that say why not more."""

from dataclasses import dataclass

LONGEST_REASON = 1000


class Refusal(Exception):  # noqa: N818  an answer, no error
    """An answer that is no prediction.

    Args:
        status: of HTTP: 413, 422, 429 and so on.
        reason: what was found, what was expected, what to do.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        # Reasons repeat what a client sent, which may be long.
        self.status, self.reason = status, reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        if self.status == 426:
            return {"Upgrade": "websocket"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


@dataclass(frozen=True)
class Limits:
    """Limits of a server; every one is an option of `longseq serve`.

    Attributes:
        max_body_mb: of a request, in MiB; also of a message in a stream.
        max_length: tokens or samples of one input.
        max_rows: inputs of one request.
        max_concurrent: requests that are being answered at the same time.
        max_streams: open streams.
        max_connections: open at the same time, those that ask for nothing among them.
        timeout_s: until a request must be answered.
        idle_s: without a byte from a client that is sending, or without a message in a stream.
    """

    max_body_mb: float
    max_length: int
    max_rows: int
    max_concurrent: int
    max_streams: int
    max_connections: int
    timeout_s: float
    idle_s: float

    @property
    def max_body(self) -> int:
        """Bytes of a request."""
        return int(self.max_body_mb * 2**20)
