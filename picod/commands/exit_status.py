"""How a process ended, in the one form that every answer uses: exit code, name of the signal, and a sentence.

A process that a signal ended has the exit code 128 + its number, as shells report it (POSIX, "Exit Status for
Commands"). AgentCube's executor answers Go's -1 there, which does not say which signal it was.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

# Signals that an exit code above 128 stands for: that is how a shell or a wrapper reports its child's end. SIGINT and
# SIGTERM are left out, since programs exit with 130 and 143 by themselves when they are asked to end.
_REPORTED = (
    signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGKILL, signal.SIGSEGV, signal.SIGSYS,
    signal.SIGXCPU, signal.SIGXFSZ,
)  # fmt: skip
_MAX_COUNT_AGE_S = 1.0
_MAX_NOTE_AGE_S = 3.0


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """`code` is 0 to 255; `signal` a name such as SIGKILL, or empty; `cause` says what a signal means, or is empty."""

    code: int
    signal: str = ""
    cause: str = ""

    def fields(self) -> dict[str, object]:
        """`exit_code`, and `signal` where one ended it."""
        return {"exit_code": self.code, "signal": self.signal} if self.signal else {"exit_code": self.code}

    def sentence(self) -> str:
        """For a person: `exit status 3`, `killed by SIGKILL (out of memory)`."""
        if not self.signal:
            return f"exit status {self.code}"
        return f"killed by {self.signal}" + (f" ({self.cause})" if self.cause else "")


def signal_name(number: int) -> str:
    """SIGKILL for 9; SIG40 for a real-time signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


class OutOfMemory:
    """Whether the kernel has killed a process to free memory since a given moment.

    The counter is the machine's (/proc/vmstat), since a sandbox cannot see that of its own control group. So another
    sandbox that runs out of memory at the same time counts as well. The guess is right far more often than it is wrong:
    few other senders of SIGKILL exist in a sandbox, and picod knows when it was the sender.
    """

    def __init__(self) -> None:
        self._count: int | None = None
        self._counted_at = 0.0

    def began(self) -> int | None:
        """The count before a process starts, at most a second old: reading it costs 50 us. None where it is unknown."""
        now = time.monotonic()
        if now - self._counted_at > _MAX_COUNT_AGE_S:
            self._count, self._counted_at = _oom_kills(), now
        return self._count

    def happened(self, before: int | None) -> bool | None:
        """Whether there was a kill since `before`; None where it is unknown."""
        self._count, self._counted_at = _oom_kills(), time.monotonic()
        if before is None or self._count is None:
            return None
        return self._count > before


class OverLimit:
    """Why picod has just killed everything that runs, where it did."""

    def __init__(self) -> None:
        self._reason = ""
        self._noted_at = float("-inf")

    def note(self, reason: str) -> None:
        """Processes are about to be killed for this."""
        self._reason, self._noted_at = reason, time.monotonic()

    def cause(self) -> str:
        """The reason, for processes that end within a few seconds of it; else empty."""
        return self._reason if time.monotonic() - self._noted_at < _MAX_NOTE_AGE_S else ""


out_of_memory = OutOfMemory()
over_limit = OverLimit()


def exit_status(returncode: int, before: int | None, *, killed_by_us: bool = False) -> ExitStatus:
    """How a process ended, from `returncode` in Popen's notation and the `out_of_memory.began()` before it started.

    With `killed_by_us` the signal is known to be picod's own, and gets no cause.
    """
    if returncode >= 0:
        number = returncode - 128
        if number not in _REPORTED:
            return ExitStatus(returncode)
        code = returncode
    else:
        number = -returncode
        code = 128 + number
    cause = ""
    if number == signal.SIGKILL and not killed_by_us:
        cause = (
            over_limit.cause()
            or {True: "out of memory", False: "", None: "out of memory, perhaps"}[out_of_memory.happened(before)]
        )
    return ExitStatus(code, signal_name(number), cause)


def _oom_kills() -> int | None:
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def exit_fields(code: int | None) -> dict[str, object]:
    """`exit_code` and `signal` from Popen's notation: 128 + its number for a signal, both null while it runs."""
    if code is None or code >= 0:
        return {"exit_code": code, "signal": None}
    return {"exit_code": 128 - code, "signal": signal_name(-code)}
