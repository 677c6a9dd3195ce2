"""The command line `wakegate`: serve, doctor, prune, uninstall, replay.

May import every other package; slow imports are inside the functions that need them. Start with `command`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    SIGTERM ends it from the first moment on. The kernel gives the first process of a container, which a gateway is, no
    signal that it has no handler for; the imports below take seconds on a busy node, and a SIGTERM that was lost then
    left a gateway that served, and led, until its grace of 16 minutes was over.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    from gateway.cli.command import main as run

    return run(argv)


def _end(number: int, _: Any) -> None:
    raise SystemExit(128 + number)  # as shells report it
