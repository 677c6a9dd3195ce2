"""One sandbox's process tree: started held, limited, released, watched and ended.

The order, which leaves no gap in which user code could run unlimited: spawn (bwrap stops at --block-fd, the plain form
at a `read` of a shell) -> put the held process in its control group and set its resource limits -> release it.

Three things ensure that it never outlives the gateway: bwrap asked the kernel for a SIGKILL when its parent ends
(the *thread* that spawned it, so spawning happens on the event loop's thread and never in an executor); picod holds the
read end of a pipe whose write end only the gateway has; and all of the tree lives in one pid namespace that ends with
its first process.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from gateway.provider.local import process_tags
from gateway.provider.local.descriptors import Descriptors, anonymous_file, kill, read_to_end, readable
from gateway.provider.local.mount_stage import AsUser

MAX_ERROR_BYTES = 4096  # of standard error, kept for error messages
# At most 320 kB/s: code in the sandbox can write to its standard error as fast as it likes.
_READ_BYTES, _READ_INTERVAL_S = 16 << 10, 0.05
_END_TIMEOUT_S = 10.0

Restrict = Callable[[int], Awaitable[None]]  # called with the pid of the held process; raises OSError


class StartFailedError(Exception):
    """A sandbox did not start; the text says why."""


class Process:
    """A running tree. `exited` resolves to the exit status (128 + n: ended by signal n) when it has ended."""

    def __init__(self, popen: subprocess.Popen[bytes], lifeline: int, errors: int, tag: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._popen = popen
        self._lifeline = lifeline
        self._inner: int | None = None  # pidfd of the namespace's first process
        self._ending = asyncio.Lock()
        # A pidfd is readable once its process has ended: no signal handler, and no thread per child, as asyncio's own
        # watcher has on Python 3.11.
        self._pidfd = os.pidfd_open(popen.pid)
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._errors = errors
        self._tail = b""
        os.set_blocking(errors, False)
        self._loop.add_reader(errors, self._on_errors)

    @property
    def pid(self) -> int:
        """The pid of the outermost process, bubblewrap's own where there is one."""
        return self._popen.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, or is about to as its namespace's first process has. Asks the kernel: 2 us.

        `exited` alone resolves a turn of the event loop after the end or later: 40 ms and more on a machine in which
        200 sandboxes are being woken, and in that time a claim would take a sandbox that is dead.
        """
        if self.exited.done():
            return True
        ended = select.poll()
        for pidfd in (self._pidfd, self._inner):
            if pidfd is not None:
                ended.register(pidfd, select.POLLIN)
        return bool(ended.poll(0))

    @classmethod
    async def start_bubblewrap(
        cls,
        bwrap: Path,
        arguments: Callable[[int, int], list[str]],
        listener: socket.socket,
        tag: str,
        restrict: Restrict,
        *,
        syscalls: bytes | None = None,
        inherited: Sequence[int] = (),
        as_user: AsUser | None = None,
    ) -> Process:
        """Start bwrap. `arguments(listener_fd, lifeline_fd)` are its arguments, `--`, and picod's command line.

        `syscalls` is the filter of seccomp.py; `inherited`: further descriptors that picod gets; None for `as_user` is
        the gateway's own user.
        Raises StartFailedError, OSError.
        """
        with Descriptors() as fds:
            lifeline, held_lifeline = fds.pipe()
            block, release = fds.pipe()
            info, info_write = fds.pipe()
            errors, errors_write = fds.pipe()
            args = arguments(listener.fileno(), lifeline)
            split = args.index("--")
            # Through an anonymous file, so that `ps` in the sandbox does not show the host's paths.
            hidden = fds.add(anonymous_file("arguments", "\0".join(args[:split]).encode() + b"\0"))
            handshake = ["--args", str(hidden), "--info-fd", str(info_write), "--block-fd", str(block)]
            filters = () if syscalls is None else (fds.add(anonymous_file("syscalls", syscalls)),)
            handshake += [word for each in filters for word in ("--seccomp", str(each))]
            words, entered = ((), ()) if as_user is None else (as_user.words, (as_user.namespace,))
            mapped, map_done = -1, -1
            if as_user is not None and as_user.maps:
                mapped, map_done = fds.pipe()
                handshake += ["--userns-block-fd", str(mapped)]
                entered = (*entered, mapped)
            if as_user is not None:
                os.fchown(errors_write, as_user.uid, as_user.uid)  # so that it can be opened as /dev/stderr
            popen = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec, about a millisecond, and on this very thread
                [*words, str(bwrap), *handshake, *args[split:]],
                stdin=subprocess.DEVNULL,
                stdout=errors_write,
                stderr=errors_write,
                env={process_tags.VARIABLE: tag},
                pass_fds=(listener.fileno(), lifeline, block, info_write, hidden, *filters, *inherited, *entered),
                start_new_session=True,
            )
            fds.keep(held_lifeline, errors)
            process = cls(popen, held_lifeline, errors, tag)
            fds.close(lifeline, block, info_write, errors_write, hidden, *filters, *(() if mapped < 0 else (mapped,)))
            try:
                info_json = await read_to_end(info)
                if not info_json:
                    raise StartFailedError(await process.failure())
                child = int(json.loads(info_json)["child-pid"])
                # Pinned while it stops at --block-fd: it cannot have ended, so the number is still its own.
                process._inner = os.pidfd_open(child)
                if as_user is not None and as_user.maps:
                    as_user.write_maps(child)
                    os.write(map_done, b"xx")  # bwrap reads one byte twice
                await restrict(child)
                os.write(release, b"x")
            except BaseException:
                await process.end()
                raise
            return process

    @property
    def inner(self) -> int | None:
        """A pidfd of the first process inside, where it has namespaces of its own."""
        return self._inner

    @classmethod
    async def start_unconfined(
        cls,
        arguments: Callable[[int, int], list[str]],
        listener: socket.socket,
        tag: str,
        restrict: Restrict,
        *,
        environment: Mapping[str, str],
        folder: Path,
    ) -> Process:
        """Start picod without isolation: its own session, limits and lifeline only. Raises OSError."""
        with Descriptors() as fds:
            lifeline, held_lifeline = fds.pipe()
            block, release = fds.pipe()
            errors, errors_write = fds.pipe()
            # `read` fails when the gateway dies before it has written, and then nothing is started. The program does
            # not inherit the pipe, else code would have an open end of it as standard input.
            held = ["/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sandbox"]
            popen = subprocess.Popen(  # noqa: ASYNC220 - as above
                [*held, *arguments(listener.fileno(), lifeline)],
                stdin=block,
                stdout=errors_write,
                stderr=errors_write,
                env={**environment, process_tags.VARIABLE: tag},
                cwd=folder,
                pass_fds=(listener.fileno(), lifeline),
                start_new_session=True,
            )
            fds.keep(held_lifeline, errors)
            process = cls(popen, held_lifeline, errors, tag)
            try:
                await restrict(popen.pid)
                os.write(release, b"\n")
            except BaseException:
                await process.end()
                raise
            return process

    async def failure(self) -> str:
        """Why it ended, with the end of its standard error. Waits up to 5 s for it to end."""
        try:
            async with asyncio.timeout(5.0):
                status = await asyncio.shield(self.exited)
        except TimeoutError:
            return f"it stopped answering: {self.error_output() or 'no message'}"
        return f"{describe_exit(status)}: {self.final_output() or 'no message'}"

    def final_output(self) -> str:
        """The end of the standard error of a tree that has ended, unread output included."""
        self._on_errors()
        # An agent's picod says again and again what it waits for, and last why it ends.
        _, again, last = self.error_output().rpartition("\nagent: ")
        return f"agent: {last}" if again else last

    def error_output(self) -> str:
        """The end of its standard error, as read until now."""
        return self._tail.decode(errors="replace").strip()

    async def end(self) -> None:
        """Kill all of it and wait until it is gone. Idempotent.

        Raises TimeoutError when the kernel does not end it (a process stuck in an uninterruptible call).
        """
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._inner is not None:
            kill(self._inner)  # the kernel then kills the namespace; bwrap, outside of it, sees that and exits
        elif not self.exited.done():
            try:
                os.killpg(self._popen.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself in between
        # Not wait_for: Python 3.11's swallows a cancellation that comes in the step in which the process ends.
        async with asyncio.timeout(_END_TIMEOUT_S):
            await asyncio.shield(self.exited)
        # An event loop has one reader for a descriptor: a second call at the same time would displace the first.
        async with self._ending:
            if self._inner is not None:
                # Usually gone before bwrap; if bwrap itself was killed, its child follows a moment later.
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await readable(self._inner)
                os.close(self._inner)
                self._inner = None
        self._close_errors()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._popen.wait()  # has ended: does not block, and leaves no zombie
        self.exited.set_result(status if status >= 0 else 128 - status)

    def _on_errors(self) -> None:
        if self._errors < 0:
            return
        try:
            data = os.read(self._errors, _READ_BYTES)
        except BlockingIOError:
            return
        self._tail = (self._tail + data)[-MAX_ERROR_BYTES:]
        # Not read for a moment: the pipe fills, and a program that floods it waits at its own write.
        self._loop.remove_reader(self._errors)
        if data:
            self._loop.call_later(_READ_INTERVAL_S, self._resume_errors)
        else:
            self._close_errors()

    def _resume_errors(self) -> None:
        if self._errors >= 0:
            self._loop.add_reader(self._errors, self._on_errors)

    def _close_errors(self) -> None:
        if self._errors >= 0:
            self._loop.remove_reader(self._errors)
            os.close(self._errors)
            self._errors = -1


def describe_exit(status: int) -> str:
    """An exit status for people, with the name of a signal."""
    if status > 128:
        try:
            return f"exited with status {status} ({signal.Signals(status - 128).name})"
        except ValueError:
            pass  # a status of its own choosing, not a signal
    return f"exited with status {status}"
