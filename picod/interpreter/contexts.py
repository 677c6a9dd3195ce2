"""Code contexts: places where state lives on from one run to the next, several to a session.

A Context queues runs, says how each ended, and looks after the state that was kept of it. What runs the code, two kinds
differ in: PythonContext (python_context.py) and BashContext (bash_context.py).
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from picod.commands.processes import Children
from picod.commands.stop import Stop
from picod.interpreter.kernel import Listener
from picod.interpreter.state_files import StateFiles

if TYPE_CHECKING:
    from picod.filesystem.paths import Workspace

MAX_QUEUED = 64  # runs that wait for one context


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `error` has name, value and traceback; `notice` says that the context began anew, and why.

    `restored` is there for the first run after a wake: how many variables came back, and which did not.
    """

    error: dict[str, Any] | None
    execution_count: int | None = None
    duration: float = 0.0
    notice: str = ""
    exit_code: int | None = None
    signal: str = ""
    timed_out: bool = False
    restored: Mapping[str, Any] | None = None

    def fields(self) -> dict[str, object]:
        """The part of the answer that this is."""
        fields: dict[str, object] = {
            "error": self.error,
            "execution_count": self.execution_count,
            "duration": self.duration,
        }
        if self.exit_code is not None:
            fields["exit_code"] = self.exit_code
        if self.signal:
            fields["signal"] = self.signal
        if self.timed_out:
            fields["timed_out"] = True
        if self.notice:
            fields["notice"] = self.notice
        if self.restored is not None:
            fields["restored"] = self.restored
        return fields


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every context's process starts from."""

    children: Children
    workspace: Workspace
    env: Mapping[bytes, bytes]
    find: Callable[[str], bytes | None]  # a program by name, as commands find it
    folder: Callable[[], str]  # where sockets and states lie, made when first asked for


class Context(ABC):
    """One context. `id` names it, `language` says of which kind it is."""

    language: str

    def __init__(self, context_id: str, around: Surroundings) -> None:
        self.id = context_id
        self.created_at = time.time()
        self.last_used_at = self.created_at
        self.busy = False
        self.waiting = 0
        self.execution_count = 0
        self._around = around
        self._turn = asyncio.Lock()
        self._stop: Stop | None = None
        self._notice = ""
        self._deleted = False
        self._kept: StateFiles | None = None  # what lies in the workspace of it
        self._expects = False  # ... and has not been read back

    @property
    def has_state(self) -> bool:
        """There is something to save."""
        return self.execution_count > 0 or self._expects

    def describe(self) -> dict[str, object]:
        """The context as the API shows it."""
        return {
            "id": self.id,
            "language": self.language,
            "state": "busy" if self.busy else "saved" if self._expects else self.state(),
            "execution_count": self.execution_count,
            "created_at": self.created_at,
            "last_used_at": self.last_used_at,
        }

    async def run(self, code: str, timeout: float, listener: Listener, stop: Stop) -> Outcome:
        """Run when it is this run's turn. Raises KernelError when the process cannot be started."""
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        try:
            if stop.reason or self._deleted:
                return Outcome(stopped(stop.reason or "deleted"))
            self.busy, self._stop = True, stop
            self.last_used_at = time.time()
            await self._prepare()
            restored = await self._take_up()
            notice, self._notice = self._notice, ""
            started = time.monotonic()
            outcome = await self._run(code, timeout, listener, stop)
            if outcome.execution_count is not None:
                self.execution_count = outcome.execution_count
            return replace(outcome, duration=time.monotonic() - started, notice=notice, restored=restored)
        finally:
            self.busy, self._stop = False, None
            self.last_used_at = time.time()
            self._turn.release()

    def interrupt(self) -> bool:
        """Ask the present run to end, its state kept. False when nothing runs."""
        if self._stop is None:
            return False
        self._stop.ask("interrupted")
        return True

    async def restart(self) -> None:
        """Begin anew: what runs is killed, all state is gone. Runs that wait go on in the new one."""
        if self._stop is not None:
            self._stop.ask("restarted")
        self._forget_kept()
        await self._discard()
        self.execution_count = 0
        self._notice = ""

    async def delete(self) -> None:
        """End it for good."""
        self._deleted = True
        if self._stop is not None:
            self._stop.ask("deleted")
        self._forget_kept()
        await self._discard()

    def expect(self, files: StateFiles) -> bool:
        """Read that state back before the next run. False when the context is in use and needs none."""
        if self.busy or self.has_state:
            return False
        self._kept, self._expects = files, True
        return True

    async def save(self, files: StateFiles, scratch: str) -> dict[str, Any]:
        """Write its state. Returns {"saved": n, "unsaved": [{"name", "reason"}]}. `scratch` names a file to use.

        Not while code runs in it: to wait for that might take for ever.
        """
        if self._turn.locked():
            return {"saved": 0, "unsaved": [{"name": "*", "reason": "code was running in it"}]}
        async with self._turn:
            if self._expects:  # not used since it came: its files stand as they are
                return {"saved": await asyncio.to_thread(files.count), "unsaved": []}
            try:
                files.make_folder()
                report = await self._save(files, scratch)
            except OSError as error:
                report = {"saved": 0, "unsaved": [{"name": "*", "reason": f"cannot be written: {error.strerror}"}]}
            self._kept = files
            return report

    async def _take_up(self) -> Mapping[str, Any] | None:
        """Read back what was kept; what is kept of a context that runs on is out of date, and goes."""
        kept, expects = self._kept, self._expects
        self._kept, self._expects = None, False
        if kept is None:
            return None
        if not expects:
            kept.drop()
            return None
        try:
            report = await self._load(kept)
        except BaseException:
            self._kept, self._expects = kept, True  # the next run tries again
            raise
        if any(entry["name"] == "*" for entry in report["unsaved"]):
            kept.set_aside()  # nothing came back, for want of memory or of time perhaps: they are all that there is
        else:
            kept.drop()
        return report

    def _forget_kept(self) -> None:
        if self._kept is not None:
            self._kept.drop()
        self._kept, self._expects = None, False

    @abstractmethod
    def state(self) -> str:
        """`idle`, or `none` while it has no process."""

    @abstractmethod
    async def _prepare(self) -> None:
        """Have a process. Raises KernelError."""

    @abstractmethod
    async def _run(self, code: str, timeout: float, listener: Listener, stop: Stop) -> Outcome:
        """Run now."""

    @abstractmethod
    async def _discard(self) -> None:
        """Kill the process, forget the state."""

    @abstractmethod
    async def _save(self, files: StateFiles, scratch: str) -> dict[str, Any]:
        """Write the state; see `save`. Raises OSError."""

    @abstractmethod
    async def _load(self, files: StateFiles) -> Mapping[str, Any]:
        """Read it back. Returns {"restored": n, "unsaved": [...]}."""


def timed_out(timeout: float, what: str) -> dict[str, Any]:
    """The error of a run that took too long; `what` became of it and its context."""
    value = f"the code ran longer than {timeout:g} second{'' if timeout == 1 else 's'} and {what}"
    return {"name": "TimeoutError", "value": value, "traceback": []}


def stopped(why: str) -> dict[str, Any]:
    """The error of a run that was ended from outside."""
    return {"name": "Interrupted", "value": f"the run was ended: {why}", "traceback": []}
