"""Signals that clients ask for: reading their names, and sending them to a command's process group."""

from __future__ import annotations

import os
import signal

from picod.commands.processes import Child
from picod.http.request import RequestError


def read_signal(value: object) -> signal.Signals:
    """A signal by number, `TERM` or `SIGTERM`. Raises RequestError 400."""
    try:
        if isinstance(value, str):
            return signal.Signals["SIG" + value.upper().removeprefix("SIG")]
        if isinstance(value, int) and not isinstance(value, bool):
            return signal.Signals(value)
    except (KeyError, ValueError):
        pass
    raise RequestError(400, f"signal: expected a name such as TERM or a number, not {str(value)[:40]!r}")


def send_signal(child: Child, number: signal.Signals) -> None:
    """Signal a command's process group. Only while it has not exited: later the pid may be another process's."""
    try:
        os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):
        pass
