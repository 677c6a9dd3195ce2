"""A Python context: it starts a kernel on first use, interrupts it at the timeout, and replaces it when it dies.

kernel.py talks to the process; contexts.py has what all contexts share.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from picod.commands.exit_status import ExitStatus, exit_status
from picod.commands.stop import Stop, first_of
from picod.interpreter.contexts import Context, Outcome, Surroundings, stopped, timed_out
from picod.interpreter.kernel import Ahead, Kernel, KernelError, Listener
from picod.interpreter.replies import Reply
from picod.interpreter.state_files import StateFiles, read_report, remove

_INTERRUPT_TIMEOUT_S = 3.0  # from the interrupt until the process is killed
MAX_STATE_BYTES = 256 << 20  # of one context's pickle
_EXIT_WAIT_S = 0.5  # from the end of a connection to that of the process
_SAVE_TIMEOUT_S = 10.0
_LOAD_TIMEOUT_S = 60.0
_ENVIRONMENT_TIMEOUT_S = 5.0  # two lines in a kernel that is idle


class PythonContext(Context):
    """A context with one kernel process, started on first use or ahead of it with `begin`."""

    language = "python"

    def __init__(self, context_id: str, around: Surroundings) -> None:
        super().__init__(context_id, around)
        self._kernel: Kernel | None = None
        self._starting: asyncio.Task[Kernel] | None = None
        self._starts = 0

    def state(self) -> str:
        """`starting`, `idle`, or `none` while there is no process."""
        if self._starting is not None:
            return "starting"
        return "idle" if self._kernel is not None and self._kernel.alive else "none"

    def begin(self, ahead: Ahead | None = None) -> None:
        """Start the kernel without waiting for it. The next run raises what went wrong."""
        if self._starting is None and (self._kernel is None or not self._kernel.alive):
            self._starting = asyncio.create_task(self._start(ahead))
            self._starting.add_done_callback(_retrieve_error)

    async def _start(self, ahead: Ahead | None) -> Kernel:
        try:
            await self._drop_dead_kernel()
            self._starts += 1
            python = self._around.find("python3")
            if python is None:
                raise KernelError("there is no python3 in this sandbox")
            self._kernel = await Kernel.start(
                self._around.children,
                python,
                cwd_fd=self._around.workspace.fd,
                env=self._around.env,
                # A number for each start: the sockets of a kernel that was killed are still there.
                base=os.path.join(self._around.folder(), f"{self.id}.{self._starts}"),
                ahead=ahead,
            )
            return self._kernel
        finally:
            self._starting = None

    async def _drop_dead_kernel(self) -> None:
        """Forget a kernel that ended between two runs (a thread may call os._exit); the next run's notice says so."""
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            how = _how(await _exit_of(kernel))
            await kernel.kill(self._around.children)
            self._notice = f"the context was restarted without its variables: its process {how}"
            self.execution_count = 0

    async def _prepare(self) -> None:
        while not self._deleted:
            self.begin()
            starting = self._starting
            if starting is None:
                return
            await asyncio.wait({starting})
            if not starting.cancelled():  # `restart` cancels this start and begins another: wait for that one
                starting.result()
                return
        raise KernelError("the context was deleted")

    async def _run(
        self, code: str, timeout: float, listener: Listener, stop: Stop, env: Mapping[str, str], silent: bool
    ) -> Outcome:
        kernel = self._kernel
        assert kernel is not None
        if env:
            await self._ask(f"push_environment({dict(env)!r})", _ENVIRONMENT_TIMEOUT_S)
        running = asyncio.create_task(kernel.run(code, listener, silent=silent))
        await asyncio.sleep(0)  # the task sends the request: an interrupt from before it would be for an earlier run
        why = await first_of(running, stop, timeout)
        if why:
            if why in ("restarted", "deleted"):
                await kernel.kill(self._around.children)
            else:
                # The variables survive an interrupt, so it is tried first. C code that never returns to the
                # interpreter, or code that catches KeyboardInterrupt, needs the kill.
                await self._interrupt(kernel, running)
        reply = await running
        if reply is None:
            return await self._died(kernel, why, timeout)
        if env:
            await self._ask("pop_environment()", _ENVIRONMENT_TIMEOUT_S)
        # The number of a silent run is that of the run before it, less one: it has none of its own.
        return _finished(replace(reply, execution_count=None) if silent else reply, why, timeout)

    async def _interrupt(self, kernel: Kernel, running: asyncio.Task[Reply | None]) -> None:
        """Interrupt a run, and kill the process if that does not end it."""
        kernel.interrupt()
        await asyncio.wait({running}, timeout=_INTERRUPT_TIMEOUT_S)
        if running.done() and running.result() is not None:
            # The run may have ended by itself meanwhile. Once the kernel has answered something else, the signal is no
            # longer on its way, and cannot be taken for one of the next run's.
            settling = asyncio.create_task(kernel.run("", None))
            await asyncio.wait({settling}, timeout=_INTERRUPT_TIMEOUT_S)
            if settling.done():
                return
            settling.cancel()
        await kernel.kill(self._around.children)

    async def _died(self, kernel: Kernel, why: str, timeout: float) -> Outcome:
        status = None if why else await _exit_of(kernel)
        await kernel.kill(self._around.children)
        if self._kernel is kernel:
            self._kernel = None
        self.execution_count = 0
        ignored = "ignored the interrupt and was killed; the context's variables are lost"
        if why == "timeout":
            error = timed_out(timeout, ignored)
        elif why in ("restarted", "deleted"):
            error = stopped(why)
        else:
            value = f"the code {ignored}" if why else f"the context's process {_how(status)}; its variables are lost"
            error = {"name": "KernelDied", "value": value, "traceback": []}
        if why not in ("restarted", "deleted"):
            self._notice = f"the context was restarted without its variables: {error['value']}"
        if status is None:
            return Outcome(error, timed_out=why == "timeout")
        return Outcome(error, exit_code=status.code, signal=status.signal)

    async def _discard(self) -> None:
        starting = self._starting
        if starting is not None:
            starting.cancel()
            await asyncio.wait({starting})
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.kill(self._around.children)

    async def _save(self, files: StateFiles, scratch: str) -> dict[str, Any]:
        if self._kernel is None or not self._kernel.alive:
            return {"saved": 0, "unsaved": []}
        call = f"save({files.base!r}, {scratch!r}, {MAX_STATE_BYTES}, {_SAVE_TIMEOUT_S})"
        try:
            fault = await self._ask(call, 2 * _SAVE_TIMEOUT_S + _INTERRUPT_TIMEOUT_S)
            report = read_report(scratch, "saved")
        finally:
            remove(scratch, f"{scratch}.new", f"{files.base}.pickle.new", f"{files.base}.json.new")
        return report or {"saved": 0, "unsaved": [{"name": "*", "reason": fault or "its process gave no report"}]}

    async def _load(self, files: StateFiles) -> Mapping[str, Any]:
        report = await self._ask_to_load(files, is_fresh=False)
        if report.pop("stale", None):
            # The process started before the session's packages were there, and has loaded other versions of some.
            await self._discard()
            self.begin()
            await self._prepare()
            report = await self._ask_to_load(files, is_fresh=True)
            report.pop("stale", None)
        return report

    async def _ask_to_load(self, files: StateFiles, *, is_fresh: bool) -> dict[str, Any]:
        scratch = os.path.join(self._around.folder(), f"{self.id}.loaded")
        try:
            fault = await self._ask(f"load({files.base!r}, {scratch!r}, is_fresh={is_fresh})", _LOAD_TIMEOUT_S)
            report = read_report(scratch, "restored")
        finally:
            remove(scratch, f"{scratch}.new")
        return report or {"restored": 0, "unsaved": [{"name": "*", "reason": fault or "its process gave no report"}]}

    async def _ask(self, call: str, seconds: float) -> str:
        """Have the kernel evaluate a call of userside/state.py. Returns what went wrong; empty on success."""
        kernel = self._kernel
        assert kernel is not None
        asking = asyncio.create_task(kernel.run("", None, expressions={"_": f"__import__('_wakegate_state').{call}"}))
        await asyncio.wait({asking}, timeout=seconds)
        if not asking.done():
            kernel.interrupt()
            await asyncio.wait({asking}, timeout=_INTERRUPT_TIMEOUT_S)
        if not asking.done():
            asking.cancel()
            return "it took too long"
        reply = asking.result()
        if reply is None:
            return f"the context's process {_how(await _exit_of(kernel))}"
        answer = reply.expressions.get("_")
        if isinstance(answer, dict) and answer.get("status") == "error":
            return f"{answer.get('ename')}: {answer.get('evalue')}"[:300]
        return ""


def _finished(reply: Reply, why: str, timeout: float) -> Outcome:
    error = reply.error
    if why == "timeout":
        trace = error["traceback"] if error else []
        error = timed_out(timeout, "was interrupted; the context's variables are kept") | {"traceback": trace}
    return Outcome(error, reply.execution_count, timed_out=why == "timeout")


async def _exit_of(kernel: Kernel) -> ExitStatus | None:
    """How its process ended; None when it has not, though its connections have.

    Call it before killing the process. The end of its connections may be seen slightly before its exit.
    """
    await asyncio.wait({kernel.child.exited}, timeout=_EXIT_WAIT_S)
    if not kernel.child.exited.done():
        return None
    return exit_status(kernel.child.exited.result(), kernel.oom_kills_before)


def _how(status: ExitStatus | None) -> str:
    """How it ended, to follow the words `the context's process`."""
    if status is None:
        return "closed its connection and was killed"
    return f"was {status.sentence()}" if status.signal else f"ended with {status.sentence()}"


def _retrieve_error(starting: asyncio.Task[Kernel]) -> None:
    """Mark the task's exception as retrieved, so that asyncio does not log it; the next run raises it."""
    if not starting.cancelled():
        starting.exception()
