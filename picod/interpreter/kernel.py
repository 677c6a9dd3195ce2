"""A Python kernel: its process, its two channels, and one run at a time.

The kernel's code is picod/userside/kernel.py, which runs on the python3 of user code. Results and the end of a run come
through its ZeroMQ channels (zmtp.py, jupyter.py), printed output through two pipes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from picod.commands.exit_status import out_of_memory
from picod.commands.live_run import Source
from picod.commands.pipe_reader import PipeReader
from picod.commands.processes import Child, Children
from picod.interpreter.jupyter import Message, MessageError, execute_request, read_message
from picod.interpreter.replies import Reply, read_reply
from picod.interpreter.zmtp import ZmtpConnection, ZmtpError

READY = b"\0wakegate: ready\n"  # as in userside/kernel.py
_PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "userside", "kernel.py")
_START_TIMEOUT_S = 60.0  # long, as many sandboxes may start at once on the same cores
_IDLE_TIMEOUT_S = 1.0  # without a byte, after the reply: `idle` never comes when code has closed the iopub channel
_WELCOME_TIMEOUT_S = 0.5
_MAX_START_OUTPUT_BYTES = 4096  # of each stream; the last line of stderr is in the error of a failed start


class KernelError(Exception):
    """A kernel that could not be started; the text says why."""


class Listener(Protocol):
    """Receives the output and the results of a run, in order."""

    def set_pipes(self, pipes: Iterable[Source]) -> None:
        """Called first, with the sources of output and results, which the listener may pause and resume."""

    def output(self, stream: str, data: bytes) -> None:
        """Bytes were printed to `stream`, which is stdout or stderr."""

    def result(self, data: Mapping[str, Any] | None, display_id: str, *, update: bool, is_value: bool = False) -> None:
        """A result as MIME type -> data; None if it was too large. `update` replaces the result of the same id.

        `is_value`: it is the value of the last expression, and not something that the code displayed.
        """

    def clear(self, *, wait: bool) -> None:
        """The code has cleared its results; with `wait` they stay until the next result."""

    def comm(self, kind: str, content: Mapping[str, Any], buffers: Sequence[bytes]) -> None:
        """A message of a comm, by which widgets talk to their front end: comm_open, comm_msg or comm_close."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """Options of a start ahead of use: the niceness, and modules to import once it serves."""

    nice: int
    modules: tuple[str, ...] = ()


class _Run:
    def __init__(self, listener: Listener | None) -> None:
        self.id = os.urandom(16).hex()
        self.listener = listener
        self.reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.idle = asyncio.Event()


class Kernel:
    """One running kernel process. Runs must not overlap; Context's lock ensures that."""

    def __init__(self, child: Child, stdout: PipeReader, stderr: PipeReader, key: bytes) -> None:
        self.child = child
        self.pipes = {"stdout": stdout, "stderr": stderr}
        self._key = key
        self._session = os.urandom(8).hex()
        self._shell: ZmtpConnection
        self._iopub: ZmtpConnection
        self._run: _Run | None = None
        self.oom_kills_before = out_of_memory.began()
        self._welcome = asyncio.Event()

    @classmethod
    async def start(
        cls,
        children: Children,
        python: bytes,
        *,
        cwd_fd: int,
        env: Mapping[bytes, bytes],
        base: str,
        ahead: Ahead | None = None,
    ) -> Kernel:
        """Start a kernel with connection file BASE.json and sockets BASE-1, BASE-2, ... Raises KernelError."""
        # Other processes of the sandbox can reach the sockets; without the key they cannot pose as the kernel.
        key = os.urandom(32).hex().encode()
        document: dict[str, object] = {
            "transport": "ipc",
            "ip": base,
            "key": key.decode(),
            "signature_scheme": "hmac-sha256",
        }
        ports = {f"{name}_port": number for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
        argv = [python, _PROGRAM.encode(), f"{base}.json".encode(), os.path.dirname(base).encode()]
        if ahead is not None:
            argv += [b"%d" % ahead.nice, *([",".join(ahead.modules).encode()] if ahead.modules else [])]
        ends: list[int] = []
        try:
            _write_json(f"{base}.json", document | ports)
            for _ in ("stdout", "stderr"):
                ends += os.pipe2(os.O_CLOEXEC)
            child = children.spawn(python, argv, cwd_fd=cwd_fd, env=env, stdout=ends[1], stderr=ends[3])
        except OSError as error:
            for fd in ends:
                os.close(fd)
            raise KernelError(f"the context's process could not be started: {error.strerror}") from error
        os.close(ends[1])
        os.close(ends[3])
        kernel = cls(child, PipeReader(ends[0]), PipeReader(ends[2]), key)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await kernel._wait_ready()
                await kernel._connect(base)
        except (OSError, ZmtpError, TimeoutError) as error:
            await kernel.kill(children)
            raise KernelError(f"the context's process did not answer: {error or 'it took too long'}") from error
        except BaseException:
            await kernel.kill(children)
            raise
        return kernel

    @property
    def alive(self) -> bool:
        """Whether its process runs and both channels are open."""
        return not (self.child.exited.done() or self._shell.closed.done() or self._iopub.closed.done())

    async def run(
        self,
        code: str,
        listener: Listener | None,
        *,
        expressions: Mapping[str, str] | None = None,
        silent: bool = False,
    ) -> Reply | None:
        """Run code to its end; None when the kernel ended before.

        `silent`, and without a listener, it is not in the history, does not count, and the value of its last expression
        is no result.
        """
        run = self._run = _Run(listener)
        self.oom_kills_before = out_of_memory.began()
        # Code can close a channel, kill its process, or do neither and never reply, which the caller's timeout ends.
        ends: set[asyncio.Future[Any]] = {run.reply, self.child.exited, self._shell.closed, self._iopub.closed}
        try:
            if listener is not None:
                listener.set_pipes((*self.pipes.values(), self._iopub))
            for name, pipe in self.pipes.items():
                pipe.attach(_output_to(listener, name) if listener is not None else _ignore)
            request = execute_request(
                self._key,
                self._session,
                run.id,
                code,
                silent=silent or listener is None,
                expressions=dict(expressions or {}),
            )
            try:
                self._shell.send(request)
            except ZmtpError:
                return None
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if run.reply.done():
                await self._wait_idle(run)
            for pipe in self.pipes.values():
                pipe.drain()
            return read_reply(run.reply.result()) if run.reply.done() else None
        finally:
            self._run = None
            self._iopub.resume()  # the listener may have paused it, and the next run's must find it open
            for pipe in self.pipes.values():
                pipe.detach()

    def interrupt(self) -> None:
        """Send SIGINT to the process group: KeyboardInterrupt in the code, SIGINT in the processes that it started."""
        try:
            os.killpg(self.child.pid, signal.SIGINT)
        except (ProcessLookupError, PermissionError):
            pass

    async def kill(self, children: Children) -> None:
        """Kill the process and all that it started, and close pipes and channels."""
        await children.kill(self.child)
        for pipe in self.pipes.values():
            pipe.close()
        for name in ("_shell", "_iopub"):
            connection: ZmtpConnection | None = getattr(self, name, None)
            if connection is not None:
                connection.close()

    async def _wait_ready(self) -> None:
        output, errors = bytearray(), bytearray()
        ready = asyncio.Event()

        def look(data: bytes) -> None:
            output.extend(data[: _MAX_START_OUTPUT_BYTES - len(output)])
            if READY in output:
                ready.set()

        self.pipes["stdout"].attach(look)
        self.pipes["stderr"].attach(lambda data: errors.extend(data[: _MAX_START_OUTPUT_BYTES - len(errors)]))
        waiting = asyncio.ensure_future(ready.wait())
        try:
            ends: set[asyncio.Future[Any]] = {waiting, self.child.exited}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not ready.is_set():
            self.pipes["stderr"].drain()
            lines = bytes(errors).decode(errors="replace").strip().splitlines()
            raise KernelError(
                f"the context's process ended as it started: {lines[-1] if lines else 'it printed nothing'}"
            )
        for pipe in self.pipes.values():
            pipe.detach()

    async def _connect(self, base: str) -> None:
        self._iopub = await ZmtpConnection.connect(f"{base}-2", "SUB", self._on_iopub)
        self._shell = await ZmtpConnection.connect(f"{base}-1", "DEALER", self._on_shell)
        # ZeroMQ drops what is published before the subscription arrives, so wait for a first message. ipykernel 7 sends
        # a welcome; older kernels do not, so an empty silent run makes them publish their status.
        while not self._welcome.is_set():
            try:
                async with asyncio.timeout(_WELCOME_TIMEOUT_S):
                    await self._welcome.wait()
            except TimeoutError:
                self._shell.send(execute_request(self._key, self._session, "", "", silent=True, expressions={}))

    async def _wait_idle(self, run: _Run) -> None:
        """Wait until everything that the run published is here; `idle` is the last of it.

        It may be behind 30 MB of results for a slow listener. While those come, or wait in a paused socket, only the
        run's own timeout limits it. Rejected: one second in all, which lost results on a busy machine.
        """
        while not run.idle.is_set():
            before = self._iopub.progress
            try:
                async with asyncio.timeout(_IDLE_TIMEOUT_S):
                    await run.idle.wait()
            except TimeoutError:
                if not self._iopub.is_paused and self._iopub.progress == before:
                    return

    def _on_shell(self, frames: list[bytes], cut: bool) -> None:
        message, run = self._read(frames, cut), self._run
        # Of this run only: the reply to one that was interrupted may still be on its way.
        if message is None or run is None or message.kind != "execute_reply" or message.parent != run.id:
            return
        if not run.reply.done():
            run.reply.set_result(message)

    def _on_iopub(self, frames: list[bytes], cut: bool) -> None:
        message, run = self._read(frames, cut), self._run
        if message is None:
            return
        if message.kind in ("iopub_welcome", "status"):
            self._welcome.set()
        if run is None:
            return
        content = message.content or {}
        match message.kind:
            case "status" if message.parent == run.id and content.get("execution_state") == "idle":
                run.idle.set()
            case "execute_result" | "display_data" | "update_display_data" if run.listener is not None:
                for pipe in self.pipes.values():
                    pipe.drain()  # output printed before a result must reach the listener before it
                data, transient = content.get("data"), content.get("transient")
                display_id = transient.get("display_id") if isinstance(transient, dict) else None
                run.listener.result(
                    data if isinstance(data, dict) else None,
                    display_id if isinstance(display_id, str) else "",
                    update=message.kind == "update_display_data",
                    is_value=message.kind == "execute_result",
                )
            case "clear_output" if run.listener is not None:
                run.listener.clear(wait=content.get("wait") is True)
            case "comm_open" | "comm_msg" | "comm_close" if run.listener is not None and message.content is not None:
                run.listener.comm(message.kind, content, message.buffers)

    def _read(self, frames: list[bytes], cut: bool) -> Message | None:
        try:
            return read_message(self._key, frames, cut=cut)
        except MessageError:
            return None


def _write_json(path: str, document: Mapping[str, object]) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(document, file)


def _output_to(listener: Listener, stream: str) -> Callable[[bytes], None]:
    return lambda data: listener.output(stream, data)


def _ignore(data: bytes) -> None:
    """Drop what a silent run prints."""
