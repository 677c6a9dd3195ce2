"""The command line `wakegate`: commands of this machine (`command`), and those that use a gateway (`remote`).

May import every other package; slow imports are inside the functions that need them. `registry` names the commands.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
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
    _mend_streams()
    try:
        return _run(argv)
    except KeyboardInterrupt:  # while modules are imported, half a second in which people notice a wrong word
        return 130


def _run(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] == "help":  # as git, go and docker take it
        words = argv = [*words[1:], "--help"]
    if "_WAKEGATE_COMPLETE" in os.environ:
        from gateway.cli.remote.app import complete

        return complete()
    from gateway.cli.registry import COMMANDS

    if words and words[0] in COMMANDS:
        from gateway.cli.remote.app import run as run_remote

        return run_remote(words)
    from gateway.cli.lean_imports import without_rich

    # By default the collector runs each 700 objects. Imports make 500,000 and no garbage: to look for some takes 50 ms.
    gc.set_threshold(20_000, 20, 20)
    with without_rich():
        from gateway.cli.command import main as run

    return run(argv)


def _mend_streams() -> None:
    """Open what the caller has closed (`>&-`), and print what its character set lacks as an escape.

    Without the first sys.stdout is None, and whatever is opened next gets its number; without the second a table with
    an ellipsis, or a person's name, is a traceback where the locale is not of UTF-8.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115 — for the whole process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end(number: int, _: Any) -> None:
    raise SystemExit(128 + number)  # as shells report it
