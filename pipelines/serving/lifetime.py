"""The end of the process that holds the queues; it imports nothing heavy, for that process imports this file."""

import os
import signal
import threading
import time


def outlive_nobody(parent: int) -> None:
    """Runs in the process of the queues: it ignores signals meant for the server, and ends when the server has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
