"""Code contexts: state that lives on from one run of code to the next, several to a session.

A Context queues runs, reports how each ended, and manages the files of its saved state. The subclasses run the code:
PythonContext (python_context.py) and BashContext (bash_context.py).
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

MAX_QUEUED = 64  # runs that may wait for one context; further ones get 429


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `error` has name, value and traceback; `notice` says that the context was restarted, and why.

    `restored` is set for the first run after a wake: {"restored": variables, "unsaved": [{"name", "reason"}]}.
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
        """This outcome as fields of the answer; those without a value are left out."""
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
    folder: Callable[[], str]  # of sockets and states, created on the first call


class Context(ABC):
    """One context: a queue of runs over state that persists. `language` is python or bash."""

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
        self._kept: StateFiles | None = None  # its saved state in the workspace
        self._expects = False  # whether `_kept` is still to be loaded

    @property
    def has_state(self) -> bool:
        """Whether `save` would write anything: a run has counted, or saved state is still to be loaded."""
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

    async def run(
        self,
        code: str,
        timeout: float,
        listener: Listener,
        stop: Stop,
        env: Mapping[str, str] | None = None,
        *,
        silent: bool = False,
    ) -> Outcome:
        """Run `code` after the runs queued before it. `timeout` is in seconds, without the wait.

        `env`: variables of its environment during this run. `silent`: a Python context keeps it out of its history and
        of its count. Raises KernelError.
        """
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        try:
            if stop.reason or self._deleted:  # while it waited for its turn
                return Outcome(stopped(stop.reason or "deleted"))
            self.busy, self._stop = True, stop
            self.last_used_at = time.time()
            # Restored now and not at the wake: most sessions use one of their contexts, and each load takes CPU time.
            await self._prepare()
            restored = await self._load_kept()
            notice, self._notice = self._notice, ""
            started = time.monotonic()
            outcome = await self._run(code, timeout, listener, stop, env or {}, silent)
            if outcome.execution_count is not None:
                self.execution_count = outcome.execution_count
            return replace(outcome, duration=time.monotonic() - started, notice=notice, restored=restored)
        finally:
            self.busy, self._stop = False, None
            self.last_used_at = time.time()
            self._turn.release()

    def interrupt(self) -> bool:
        """Interrupt the present run and keep the state. False when nothing runs."""
        if self._stop is None:
            return False
        self._stop.ask("interrupted")
        return True

    async def restart(self) -> None:
        """Kill what runs and drop all state. Queued runs then run in the new process."""
        # The run that is under way is told first, so that its error names the restart and not a process that died.
        if self._stop is not None:
            self._stop.ask("restarted")
        self._forget_kept()
        await self._discard()
        self.execution_count = 0
        self._notice = ""

    async def delete(self) -> None:
        """End the context: kill what runs, drop its state, refuse queued runs."""
        self._deleted = True
        if self._stop is not None:
            self._stop.ask("deleted")
        self._forget_kept()
        await self._discard()

    def expect(self, files: StateFiles) -> bool:
        """Load these files before the next run. False when the context is in use or has state of its own."""
        # What it has now is newer than the files: loading them would overwrite variables.
        if self.busy or self.has_state:
            return False
        self._kept, self._expects = files, True
        return True

    async def save(self, files: StateFiles, scratch: str) -> dict[str, Any]:
        """Write its state. Returns {"saved": n, "unsaved": [{"name", "reason"}]}. `scratch` is a path for the report.

        A context in which code runs is not saved: waiting for the code could last forever.
        """
        if self._turn.locked():
            return {"saved": 0, "unsaved": [{"name": "*", "reason": "code was running in it"}]}
        async with self._turn:
            if self._expects:  # not used since the wake: its files are still valid
                return {"saved": await asyncio.to_thread(files.count), "unsaved": []}
            try:
                files.make_folder()
                report = await self._save(files, scratch)
            except OSError as error:
                report = {"saved": 0, "unsaved": [{"name": "*", "reason": f"cannot be written: {error.strerror}"}]}
            self._kept = files  # the next run removes them: they are older than what it does
            return report

    async def _load_kept(self) -> Mapping[str, Any] | None:
        """Load the saved state if it is expected; else the context has run since the save: remove the old files."""
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
            kept.set_aside()  # nothing was loaded, perhaps for lack of memory or time: these files are the only copy
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
        """Start the process if there is none. Raises KernelError."""

    @abstractmethod
    async def _run(
        self, code: str, timeout: float, listener: Listener, stop: Stop, env: Mapping[str, str], silent: bool
    ) -> Outcome:
        """Run `code` in the prepared process; no other run is active."""

    @abstractmethod
    async def _discard(self) -> None:
        """Kill the process and drop the state outside the workspace."""

    @abstractmethod
    async def _save(self, files: StateFiles, scratch: str) -> dict[str, Any]:
        """Write the state; returns what `save` returns. Raises OSError."""

    @abstractmethod
    async def _load(self, files: StateFiles) -> Mapping[str, Any]:
        """Load the state from `files`. Returns {"restored": n, "unsaved": [...]}."""


def timed_out(timeout: float, what: str) -> dict[str, Any]:
    """The error of a run that exceeded its timeout; `what` says what happened to it and its context."""
    value = f"the code ran longer than {timeout:g} second{'' if timeout == 1 else 's'} and {what}"
    return {"name": "TimeoutError", "value": value, "traceback": []}


def stopped(why: str) -> dict[str, Any]:
    """The error of a run that was ended from outside."""
    return {"name": "Interrupted", "value": f"the run was ended: {why}", "traceback": []}
