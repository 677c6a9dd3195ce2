"""Scripts on a preloaded interpreter: picod's side of the fork server.

`python3 SCRIPT`, `python3 -c` and `python3 -m` of /api/execute run in a child of userside/forkserver.py, which has
imported the runtime's preloaded modules. This module keeps the server running with one forked child ready, and sends
it orders; preload_rules.py decides what may run there. For everything else, and for whatever fails before user code has
begun, `run` returns None and the command is spawned like any other.

The server runs as the session's user, who may kill, stop or take it over. So nothing that it reports is trusted: the
pid of a child comes from the kernel (SO_PASSCRED) and must be a child of picod, and its exit status is what waitpid
returns. A server that does not answer within _STEP_TIMEOUT_S is killed and started again after a delay that doubles.
"""

from __future__ import annotations

import asyncio
import marshal
import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from picod.commands.command_spec import find_executable
from picod.commands.preload_rules import is_script, may_share
from picod.commands.processes import Child, Children

_SERVER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "userside", "forkserver.py")
_STEP_TIMEOUT_S = 2.0  # for each step of handing an order over; a fork takes a few milliseconds
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 60.0  # before a server that ended is started again
_MAX_ORDER_BYTES = 128 << 10  # the socket takes no larger message
_MAX_REPLY_BYTES = 64 << 10
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_WAITS, _RUNS, _STALE = b"w", b"r", b"s"


@dataclass(eq=False)
class _ReadyChild:
    """A forked child that has no order yet; `child` is None until it has reported."""

    socket: socket.socket
    child: Child | None = None


class Preload:
    """The fork server of one picod. All methods are for the loop's thread."""

    def __init__(
        self,
        children: Children,
        modules: Sequence[str],
        env: Mapping[bytes, bytes],
        root_fd: int,
        *,
        delay: float,
    ) -> None:
        self._children = children
        self._modules = modules
        self._env = env
        self._root_fd = root_fd
        self._delay = delay
        self._executable = b""
        self._server: Child | None = None
        self._control: socket.socket | None = None
        self._looked_at: frozenset[bytes] | None = None  # None: not ready
        self._pending: set[_ReadyChild] = set()
        self._ready: deque[_ReadyChild] = deque()
        self._wanted: deque[asyncio.Future[bool]] = deque()
        self._backoff = _FIRST_BACKOFF_S
        self._started_at = 0.0
        self._killing: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Schedule the server's start for after the sandbox's own. Without modules there is no server."""
        if self._modules:
            asyncio.get_running_loop().call_later(self._delay, self._start_server)

    async def run(
        self,
        executable: bytes,
        command: Sequence[bytes],
        *,
        cwd_fd: int,
        env: Mapping[bytes, bytes],
        stdout: int,
        stderr: int,
    ) -> Child | None:
        """Run a script in a forked child, as Children.spawn would; None if it did not begin and must be spawned."""
        if self._looked_at is None or executable != self._executable or not is_script(command):
            return None
        if not may_share(env, self._env, self._looked_at):
            return None
        # marshal is built in: the server imports nothing for it that scripts would find imported. Every Python 3 reads
        # version 2, whichever one picod runs on.
        order = marshal.dumps((list(command), list(env.items())), 2)
        if len(order) > _MAX_ORDER_BYTES:
            return None
        waiting = await self._next_child()
        if waiting is None or waiting.child is None:
            return None
        child = waiting.child
        reply = b""
        try:
            self._children.mark(child)  # before its order: what the script forks inherits the mark
            socket.send_fds(waiting.socket, [order], [cwd_fd, stdout, stderr])
            async with asyncio.timeout(_STEP_TIMEOUT_S):
                reply = await asyncio.get_running_loop().sock_recv(waiting.socket, 1)
        except (OSError, TimeoutError):
            pass
        finally:
            began = await self._release(waiting, child, began=reply in (_RUNS, _STALE))
        if not began:
            return None
        if reply == _STALE:
            self._end_server()
        else:
            self._keep_one()
        return child

    async def _release(self, waiting: _ReadyChild, child: Child, *, began: bool) -> bool:
        """Close a child's socket; kill it if its user code has not begun. Returns whether it had begun after all."""
        try:
            if not began:
                await self._children.kill(child)
                # User code that began just before the kill may have done something: it must not run a second time.
                began = waiting.socket.recv(1) in (_RUNS, _STALE)
        except OSError:
            pass
        finally:
            waiting.socket.close()
            self._children.quiet.discard(child.pid)
        return began

    # Children that wait for an order.

    async def _next_child(self) -> _ReadyChild | None:
        deadline = time.monotonic() + _STEP_TIMEOUT_S
        while self._looked_at is not None:
            while self._ready:
                waiting = self._ready.popleft()
                if waiting.child is not None and not waiting.child.exited.done():
                    return waiting
                self._drop(waiting)
            # One child for each that waits: a fork that is under way may be meant for an earlier one.
            if len(self._pending) <= len(self._wanted) and not self._order_child():
                return None
            wanted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._wanted.append(wanted)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    if not await wanted:
                        return None
            except TimeoutError:
                self._end_server()
                return None
            finally:
                if wanted in self._wanted:
                    self._wanted.remove(wanted)
        return None

    def _keep_one(self) -> None:
        """Have one child ready beyond those that commands are waiting for."""
        if self._looked_at is not None and len(self._ready) + len(self._pending) <= len(self._wanted):
            self._order_child()

    def _order_child(self) -> bool:
        """Ask the server to fork one more child. Returns whether it could be asked."""
        assert self._control is not None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        except OSError:
            return False  # no descriptors left
        theirs.setblocking(True)
        with theirs:
            waiting = _ReadyChild(ours)
            try:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:
                ours.close()
                self._end_server()
                return False
        self._pending.add(waiting)
        asyncio.get_running_loop().add_reader(ours, self._on_child, waiting)
        return True

    def _on_child(self, waiting: _ReadyChild) -> None:
        asyncio.get_running_loop().remove_reader(waiting.socket)
        self._pending.discard(waiting)
        try:
            reply, ancillary, _, _ = waiting.socket.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError:
            reply, ancillary = b"", []
        pid = next((_CREDENTIALS.unpack(data)[0] for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS), 0)
        waiting.child = self._children.adopt(pid) if reply == _WAITS else None
        if waiting.child is None:  # the fork failed (too many processes), or another process answered
            self._drop(waiting)
        else:
            self._children.quiet.add(waiting.child.pid)
            self._ready.append(waiting)
        self._wake_one(came=waiting.child is not None)

    def _wake_one(self, *, came: bool) -> None:
        """Wake the first command that waits for a child: one is ready, or (not `came`) none will be."""
        while self._wanted:
            wanted = self._wanted.popleft()
            if not wanted.done():
                wanted.set_result(came)
                return

    def _drop(self, waiting: _ReadyChild) -> None:
        """Close a child's socket, upon which a child that was not tampered with exits."""
        asyncio.get_running_loop().remove_reader(waiting.socket)
        waiting.socket.close()
        if waiting.child is not None:
            self._children.quiet.discard(waiting.child.pid)

    # The server.

    def _start_server(self) -> None:
        executable = find_executable(b"python3", self._env.get(b"PATH", b""), self._root_fd)
        if executable is None or any(name.startswith(b"PYTHON") for name in self._env):
            _log("off: commands have no python3 on their PATH, or PYTHON* variables")
            return
        self._executable = executable
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        theirs.setblocking(True)
        read_end, write_end = os.pipe()  # its streams must be pipes, as a command's are, though they are not read
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)  # one in the workspace would keep that folder busy
        argv = [b"python3", os.fsencode(_SERVER), b"%d" % theirs.fileno(), executable, b"1"]
        argv += [module.encode() for module in self._modules]
        try:
            self._server = self._children.spawn(
                executable, argv, cwd_fd=root, env=self._env, stdout=write_end, stderr=write_end,
                keep=(theirs.fileno(),),
            )  # fmt: skip
        except OSError as error:
            _log(f"off: {executable.decode(errors='replace')} cannot be started: {error.strerror}")
            control.close()
            return
        finally:
            for descriptor in (read_end, write_end, root):
                os.close(descriptor)
            theirs.close()
        self._children.quiet.add(self._server.pid)
        self._started_at = time.monotonic()
        self._control = control
        self._server.exited.add_done_callback(self._on_end)
        asyncio.get_running_loop().add_reader(control, self._on_control)

    def _on_control(self) -> None:
        """Read the server's first message: that it is ready, or why it cannot be."""
        assert self._control is not None
        try:
            reply = self._control.recv(_MAX_REPLY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            reply = b""
        word, _, names = reply.partition(b"\n")
        asyncio.get_running_loop().remove_reader(self._control)
        if word == b"ready":
            self._looked_at = frozenset(names.split(b"\n"))
            self._order_child()
        elif reply:
            _log(f"off: {reply[:4000].decode(errors='replace')}")
            self._modules = ()

    def _end_server(self) -> None:
        """Kill a server that does not answer in time; `_on_end` starts another."""
        self._looked_at = None
        if self._server is not None and not self._server.exited.done():
            task = asyncio.ensure_future(self._children.kill(self._server))
            self._killing.add(task)
            task.add_done_callback(self._killing.discard)

    def _on_end(self, _: asyncio.Future[int]) -> None:
        loop = asyncio.get_running_loop()
        self._looked_at = None
        if self._server is not None:
            self._children.quiet.discard(self._server.pid)
        if self._control is not None:
            loop.remove_reader(self._control)
            self._control.close()
        self._server = self._control = None
        for waiting in (*self._pending, *self._ready):
            self._drop(waiting)
        self._pending.clear()
        self._ready.clear()
        while self._wanted:
            self._wake_one(came=False)
        if self._modules:
            served_well = time.monotonic() - self._started_at > _MAX_BACKOFF_S
            self._backoff = _FIRST_BACKOFF_S if served_well else min(self._backoff * 2, _MAX_BACKOFF_S)
            loop.call_later(self._backoff, self._start_server)


def _log(text: str) -> None:
    print(f"picod: preload: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the sandbox's log
