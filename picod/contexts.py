"""Code contexts: places where state lives on from one run to the next, several to a session.

A Context queues runs, watches their time, says how each ended, and has its process replaced when it died. What the
process is, two kinds differ in: PythonContext (a kernel, kernel.py) and BashContext (bash.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from picod.bash import SCRIPT
from picod.kernel import Kernel, KernelError, Listener, Reply
from picod.outlet import Outlet
from picod.processes import Child, Children

if TYPE_CHECKING:
    from picod.paths import Workspace

_INTERRUPT_PATIENCE = 3.0  # seconds from the interrupt until the process is killed
MAX_QUEUED = 64  # runs that wait for one context


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `error` has name, value and traceback; `notice` says that the context began anew, and why."""

    error: dict[str, Any] | None
    execution_count: int | None
    duration: float
    notice: str = ""
    exit_code: int | None = None
    timed_out: bool = False

    def fields(self) -> dict[str, object]:
        """The part of the answer that this is."""
        fields: dict[str, object] = {
            "error": self.error,
            "execution_count": self.execution_count,
            "duration": self.duration,
        }
        if self.exit_code is not None:
            fields["exit_code"] = self.exit_code
        if self.timed_out:
            fields["timed_out"] = True
        if self.notice:
            fields["notice"] = self.notice
        return fields


class Stop:
    """Asks a run to end early; the first reason stands."""

    def __init__(self) -> None:
        self.reason = ""
        self._asked = asyncio.Event()

    def ask(self, reason: str) -> None:
        """`interrupted`, `restarted`, `left`: what the run's error will be named after."""
        if not self._asked.is_set():
            self.reason = reason
            self._asked.set()

    async def wait(self) -> None:
        """Until it is asked for."""
        await self._asked.wait()


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

    @property
    def deleted(self) -> bool:
        """It takes no more runs."""
        return self._deleted

    def describe(self) -> dict[str, object]:
        """The context as the API shows it."""
        return {
            "id": self.id,
            "language": self.language,
            "state": "busy" if self.busy else self.state(),
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
                return Outcome(_stopped(stop.reason or "deleted"), None, 0.0)
            self.busy, self._stop = True, stop
            self.last_used_at = time.time()
            await self._prepare()
            notice, self._notice = self._notice, ""
            started = time.monotonic()
            outcome = await self._run(code, timeout, listener, stop)
            if outcome.execution_count is not None:
                self.execution_count = outcome.execution_count
            return Outcome(
                outcome.error,
                outcome.execution_count,
                time.monotonic() - started,
                notice,
                outcome.exit_code,
                outcome.timed_out,
            )
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
        await self._discard()
        self.execution_count = 0
        self._notice = ""

    async def delete(self) -> None:
        """End it for good."""
        self._deleted = True
        if self._stop is not None:
            self._stop.ask("deleted")
        await self._discard()

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


class PythonContext(Context):
    """A kernel that starts when it is first needed, or ahead with `begin`."""

    language = "python"

    def __init__(self, context_id: str, around: Surroundings) -> None:
        super().__init__(context_id, around)
        self._kernel: Kernel | None = None
        self._starting: asyncio.Task[Kernel] | None = None
        self._starts = 0

    def state(self) -> str:
        """See above."""
        if self._starting is not None:
            return "starting"
        return "idle" if self._kernel is not None and self._kernel.alive else "none"

    def begin(self, nice: int | None = None) -> None:
        """Have the kernel started, without waiting; whoever asks for a run is told when that fails."""
        if self._starting is None and (self._kernel is None or not self._kernel.alive):
            self._starting = asyncio.create_task(self._start(nice))
            self._starting.add_done_callback(_look_at)

    async def _start(self, nice: int | None) -> Kernel:
        try:
            await self._drop_dead()
            self._starts += 1
            python = self._around.find("python3")
            if python is None:
                raise KernelError("there is no python3 in this sandbox")
            self._kernel = await Kernel.start(
                self._around.children,
                python,
                cwd_fd=self._around.workspace.fd,
                env=self._around.env,
                base=os.path.join(self._around.folder(), f"{self.id}.{self._starts}"),
                nice=nice,
            )
            return self._kernel
        finally:
            self._starting = None

    async def _drop_dead(self) -> None:
        """The kernel ended between two runs (`exit()` does that, after its answer)."""
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.kill(self._around.children)
            self._notice = f"the context began anew, without its variables: its process {_how_ended(kernel)}"
            self.execution_count = 0

    async def _prepare(self) -> None:
        self.begin()
        if self._starting is not None:
            await asyncio.shield(self._starting)

    async def _run(self, code: str, timeout: float, listener: Listener, stop: Stop) -> Outcome:
        kernel = self._kernel
        assert kernel is not None
        running = asyncio.create_task(kernel.run(code, listener))
        why = await _first_of(running, stop, timeout)
        if why:
            if why in ("restarted", "deleted"):
                await kernel.kill(self._around.children)
            else:
                kernel.interrupt()
                await asyncio.wait({running}, timeout=_INTERRUPT_PATIENCE)
                if not running.done():
                    await kernel.kill(self._around.children)
        reply = await running
        if reply is None:
            return await self._died(kernel, why, timeout)
        return _finished(reply, why, timeout)

    async def _died(self, kernel: Kernel, why: str, timeout: float) -> Outcome:
        await kernel.kill(self._around.children)
        if self._kernel is kernel:
            self._kernel = None
        self.execution_count = 0
        how = _how_ended(kernel)
        if why == "timeout":
            error = _timed_out(timeout, "did not heed the interrupt and was killed with the context's variables")
        elif why in ("restarted", "deleted"):
            error = _stopped(why)
        elif why:
            error = {
                "name": "KernelDied",
                "value": "the code did not heed the interrupt and was killed with the context's variables",
                "traceback": [],
            }
        else:
            error = {
                "name": "KernelDied",
                "value": f"the context's process {how}; its variables are lost, the next run begins anew",
                "traceback": [],
            }
        if why not in ("restarted", "deleted"):
            self._notice = f"the context began anew, without its variables: {error['value']}"
        return Outcome(error, None, 0.0, timed_out=why == "timeout")

    async def _discard(self) -> None:
        starting = self._starting
        if starting is not None:
            starting.cancel()
            await asyncio.wait({starting})
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.kill(self._around.children)


class BashContext(Context):
    """A file that holds the state, and a bash for each run."""

    language = "bash"

    @property
    def state_file(self) -> str:
        """Where the state is, outside of the workspace."""
        return os.path.join(self._around.folder(), f"{self.id}.bash")

    def state(self) -> str:
        """Always idle: there is no process to wait for."""
        return "idle"

    async def _prepare(self) -> None:
        if self._around.find("bash") is None:
            raise KernelError("there is no bash in this sandbox")

    async def _run(self, code: str, timeout: float, listener: Listener, stop: Stop) -> Outcome:
        code_file = f"{self.state_file}.code"
        _write(code_file, code)
        child, outlets = self._spawn(code_file)
        try:
            for name, outlet in outlets.items():
                outlet.attach(_to(listener, name))
            why = await _first_of(child.exited, stop, timeout)
            if why:
                await self._around.children.kill(child)
        finally:
            if not child.exited.done():
                await self._around.children.kill(child)
            for outlet in outlets.values():
                outlet.drain()
                outlet.detach()  # what a background job still prints is read and dropped until it ends
        code_number = child.exited.result()
        count = self.execution_count + 1
        if why == "timeout":
            error: dict[str, Any] | None = _timed_out(timeout, "was killed; the context is as it was before")
        elif why:
            error = _stopped(why)
        elif code_number:
            error = {"name": "ExitStatus", "value": f"exit status {code_number}", "traceback": []}
        else:
            error = None
        timed_out = why == "timeout"
        return Outcome(error, count, 0.0, exit_code=124 if timed_out else code_number, timed_out=timed_out)

    def _spawn(self, code_file: str) -> tuple[Child, dict[str, Outlet]]:
        bash = self._around.find("bash")
        if bash is None:
            raise KernelError("there is no bash in this sandbox")
        argv = [bash, b"--noprofile", b"--norc", b"-c", SCRIPT.encode(), b"bash"]
        argv += [self.state_file.encode(), code_file.encode()]
        ends: list[int] = []
        try:
            for _ in ("stdout", "stderr"):
                ends += os.pipe2(os.O_CLOEXEC)
            child = self._around.children.spawn(
                bash, argv, cwd_fd=self._around.workspace.fd, env=self._around.env, stdout=ends[1], stderr=ends[3]
            )
        except OSError as error:
            for fd in ends:
                os.close(fd)
            raise KernelError(f"bash could not be started: {error.strerror}") from error
        os.close(ends[1])
        os.close(ends[3])
        return child, {"stdout": Outlet(ends[0]), "stderr": Outlet(ends[2])}

    async def _discard(self) -> None:
        async with self._turn:
            try:
                os.unlink(self.state_file)
            except FileNotFoundError:
                pass


def _to(listener: Listener, stream: str) -> Callable[[bytes], None]:
    return lambda data: listener.output(stream, data)


async def _first_of(running: asyncio.Future[Any], stop: Stop, timeout: float) -> str:
    """Wait for a run. Why it should end early: `timeout`, the stop's reason, or empty when it ended by itself."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return ""
        return stop.reason or "timeout"
    finally:
        stopping.cancel()


def _finished(reply: Reply, why: str, timeout: float) -> Outcome:
    error = reply.error
    if why == "timeout":
        trace = error["traceback"] if error else []
        error = _timed_out(timeout, "was interrupted; the context's variables are kept") | {"traceback": trace}
    return Outcome(error, reply.execution_count, 0.0, timed_out=why == "timeout")


def _timed_out(timeout: float, what: str) -> dict[str, Any]:
    return {
        "name": "TimeoutError",
        "value": f"the code ran longer than {timeout:g} seconds and {what}",
        "traceback": [],
    }


def _stopped(why: str) -> dict[str, Any]:
    return {"name": "Interrupted", "value": f"the run was ended: {why}", "traceback": []}


def _how_ended(kernel: Kernel) -> str:
    if not kernel.child.exited.done():
        return "broke off its connection"
    code = kernel.child.exited.result()
    if code >= 0:
        return f"ended with exit status {code}"
    name = _signal_name(-code)
    return f"was ended by {name}" + (" (out of memory, perhaps)" if name == "SIGKILL" else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _write(path: str, code: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(code.encode())


def _look_at(starting: asyncio.Task[Kernel]) -> None:
    """Its error is news to nobody: the next run tries again and says it."""
    if not starting.cancelled():
        starting.exception()
