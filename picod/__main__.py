"""`python -m picod`: listen and serve, and at the end leave no process and no temporary file behind."""

from __future__ import annotations

import sys

if "ssl" not in sys.modules:
    # asyncio works without ssl if it cannot be imported. picod never speaks TLS, and OpenSSL costs each sandbox 17 ms
    # and 4 MB.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    import asyncio

    del sys.modules["ssl"]
else:
    import asyncio

import contextlib
import gc
import os
import signal
import socket

from picod.app import Picod
from picod.config import PicodConfig
from picod.filesystem import syscalls
from picod.http.server import Connection
from picod.services import Services

_BACKLOG = 1024
_OWN_FOLDER = ".wakegate"
_CANCEL_TIMEOUT_S = 1.0  # for requests that are cancelled at the end


def main() -> int:
    """Serve until SIGTERM, SIGINT or the end of the lifeline. Returns the exit status."""
    config = PicodConfig.from_args(sys.argv[1:], os.environ)
    # A gateway that was started with nohup, or in the background of a script, hands down that these are ignored, and
    # every command would inherit it: what a closed terminal leaves behind would run on.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    syscalls.keep_heap_small()
    try:
        if config.receive:
            from picod.receive import receive

            return asyncio.run(receive(config, _listen(config)))
        if config.code_uid is not None:
            from picod.filesystem.code_user import become_apart

            become_apart(config.code_uid)
        os.makedirs(config.workspace, exist_ok=True)
        if config.egress_fd is not None:
            from picod.ports.egress import hand_over

            hand_over(config.egress_fd)
        app = Picod(config)
        priority = app.services.commands.children.oom_priority
        if not priority.open() and config.oom_fd is not None:
            priority.receive(config.oom_fd)
        if not config.inspectable:
            # Before any code of a user runs, and not earlier: then this process's files in /proc would be root's.
            syscalls.deny_inspection()
        listener = _listen(config)
    except OSError as error:
        print(f"picod: cannot start: {error}", file=sys.stderr)  # noqa: T201 - the sandbox's log
        return 2
    asyncio.run(_serve(app, listener, config))
    return 0


def _listen(config: PicodConfig) -> socket.socket:
    if config.fd is not None:
        listener = socket.socket(fileno=config.fd)
        listener.setblocking(False)
        return listener
    if config.uds is not None:
        if os.path.exists(config.uds):  # of a picod that was killed: bind(2) refuses a path that is there
            os.unlink(config.uds)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(config.uds)
    else:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


async def _serve(app: Picod, listener: socket.socket, config: PicodConfig) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    # The first process of a pid namespace gets from within it only signals that it handles. Where a lifeline ends it,
    # it handles none, so that code cannot end it even as its own user.
    is_shielded = os.getpid() == 1 and config.lifeline_fd is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        if is_shielded:
            signal.signal(number, signal.SIG_DFL)
        else:
            loop.add_signal_handler(number, stop.set)
    if config.lifeline_fd is not None:
        _watch_lifeline(loop, app.services, config.lifeline_fd)
    tasks: set[asyncio.Task[None]] = set()
    server = await loop.create_server(lambda: Connection(app, tasks), sock=listener, backlog=_BACKLOG)
    app.start()
    gc.collect()
    gc.freeze()  # what was imported is never freed: later collections skip it
    await stop.wait()
    if config.linger and _has_files(config.workspace):
        stop.clear()
        with contextlib.suppress(TimeoutError):  # a second signal ends it at once
            await asyncio.wait_for(stop.wait(), config.linger)
    server.close()
    app.services.kill_all()
    for task in tasks:  # a cancelled request removes its temporary file
        task.cancel()
    await asyncio.wait(tasks, timeout=_CANCEL_TIMEOUT_S) if tasks else None
    app.services.close()


def _has_files(workspace: str) -> bool:
    """Whether there is more in the workspace than picod's own folder."""
    try:
        return bool(set(os.listdir(workspace)) - {_OWN_FOLDER})
    except OSError:
        return True


def _watch_lifeline(loop: asyncio.AbstractEventLoop, services: Services, lifeline: int) -> None:
    """Kill everything and exit at once when the lifeline closes: the parent has ended, even if by kill -9."""
    os.set_blocking(lifeline, False)

    def on_readable() -> None:
        try:
            if os.read(lifeline, 4096):
                return
        except BlockingIOError:
            return
        services.kill_all()
        services.close()
        os._exit(0)

    loop.add_reader(lifeline, on_readable)


if __name__ == "__main__":
    raise SystemExit(main())
