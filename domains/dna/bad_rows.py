"""What is done about rows that cannot be used: the first is an error, or they are left out and counted."""

from longseq.errors import ConfigError, DataError


class BadRows:
    """Refuses bad rows, or counts them.

    Args:
        on_bad: `error` raises for the first, `skip` leaves them out.

    Attributes:
        count: rows that were left out.
        first: what was wrong with the first of them.
    """

    def __init__(self, on_bad: str = "error") -> None:
        if on_bad not in ("error", "skip"):
            raise ConfigError(f"data.on_bad must be error or skip, found {on_bad!r}")
        self.skip = on_bad == "skip"
        self.count = 0
        self.first = ""

    def add(self, problem: str) -> None:
        """Notes a bad row.

        Raises:
            DataError: unless bad rows are skipped.
        """
        if not self.skip:
            raise DataError(f"{problem}. data.on_bad=skip leaves such rows out")
        self.first = self.first or problem
        self.count += 1

    def message(self) -> str:
        """How many were left out, and why the first one was."""
        return f"{self.count}; the first: {self.first}"
