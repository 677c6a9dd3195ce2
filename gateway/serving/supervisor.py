"""Several equal gateway processes on one port (`--workers N`), and the small process that keeps them running.

The supervisor serves nothing. It keeps the port, starts each worker as the process that it is itself with two more
flags, ends all in order, and starts again what dies. Workers share the port by SO_REUSEPORT: the kernel gives each new
connection to one of those that listen. They know nothing of each other but the store, as replicas on machines of their
own do; so this is for engines whose sandboxes every process reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import replace

from gateway.core.errors import SettingsError
from gateway.core.settings import Settings, make_state_dir
from gateway.serving.sockets import bind, reserve

logger = logging.getLogger(__name__)

MOST = 64
READY = b"\0"  # ends the banner of a worker, which is how the supervisor knows that it answers
_SHORTEST_S, _LONGEST_S, _STEADY_S = 1.0, 30.0, 60.0
_AFTER_DRAIN_S = 30.0  # for what a worker does once its last request is answered
_LARGEST_BANNER = 1 << 20


def check(settings: Settings) -> None:
    """Raises SettingsError with all reasons for which these settings cannot be served by several workers."""
    problems = []
    flag = f"--workers {settings.workers}"
    if settings.workers > MOST:
        problems.append(f"{flag}: at most {MOST}; beyond that run further gateways over the same store")
    if settings.engine == "local":
        problems.append(
            f"{flag}: local sandboxes are reached by one process only, so each worker would fill a pool of its own and "
            "pass most requests on to another. Leave --workers out, or use --engine kubernetes"
        )
    if settings.store.partition(":")[0] in ("", "sqlite"):
        problems.append(f"{flag}: needs a store that all workers share; name one, as in --store redis://HOST/0")
    if settings.worker_port:
        last = settings.worker_port + settings.workers - 1
        if last > 65535 or settings.worker_port <= settings.port <= last:
            problems.append(
                f"--worker-port {settings.worker_port}: the workers' own ports would be {settings.worker_port} to "
                f"{last}; choose ports up to 65535, without --port {settings.port} among them"
            )
    if problems:
        raise SettingsError(problems)


def settings_of(settings: Settings, number: int) -> Settings:
    """What worker `number` (from 1) runs with: a state folder of its own, snapshots where all have them."""
    return replace(
        settings,
        state_dir=settings.state_dir / f"worker-{number}",
        snapshots=settings.snapshots or str(settings.state_dir.absolute() / "snapshots"),
    )


def sockets_of(settings: Settings, number: int) -> list[socket.socket]:
    """Where worker `number` is to listen once it is ready: the shared port, and its own where asked for.

    Raises SettingsError that names the address.
    """
    sockets = [bind(settings.host, settings.port, shared=True)]
    if settings.worker_port:
        sockets.append(bind(settings.host, settings.worker_port + number - 1, flag="--worker-port"))
    return sockets


def end_with_supervisor(drain_timeout: float) -> None:
    """See to it, in a worker, that it does not outlive its supervisor, however that one ends.

    Its standard input is a pipe that nobody writes to. When the other end is gone it drains, as on SIGTERM; then it
    ends, whatever state its event loop is in. A thread, so that this holds when the loop does not turn.
    """

    def watch() -> None:
        try:
            os.read(0, 1)
        except OSError:
            pass  # as good as its end
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(drain_timeout + _AFTER_DRAIN_S)
        os._exit(1)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


def pause_before_restart(last_pause: float, lived: float) -> float:
    """Seconds until a worker that ended is started again. `lived`: how long it ran, in seconds.

    1, 2, 4 ... 30 while it dies young; 1 again once one has lived for a minute.
    """
    if not last_pause or lived >= _STEADY_S:
        return _SHORTEST_S
    return min(2 * last_pause, _LONGEST_S)


async def supervise(settings: Settings, program: Sequence[str]) -> int:
    """Run the workers until SIGTERM or SIGINT; returns the exit status. `program`: the command of this process.

    Raises SettingsError for the port and the state folder.
    """
    make_state_dir(settings.state_dir)
    with reserve(settings.host, settings.port) as reserved:
        command = [*program, "--port", str(reserved.getsockname()[1])]
        return await Supervisor(command, settings.workers, settings.drain_timeout + _AFTER_DRAIN_S).run()


class Supervisor:
    """The workers by number. `grace`: seconds that they may take to end once they were told to."""

    def __init__(self, command: Sequence[str], count: int, grace: float) -> None:
        self._command = command
        self._numbers = range(1, count + 1)
        self._grace = grace
        self._processes: dict[int, Process] = {}
        self._ending = asyncio.Event()
        self._failed = 0  # the status of a worker that ended before all were ready

    async def run(self) -> int:
        """Start all, say so, keep them running, end them in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve())
            await self._ending.wait()
            await self._wait_for_all()
        # By SIGTERM end those that were still starting.
        in_order = all(process.returncode in (0, -signal.SIGTERM) for process in self._processes.values())
        return self._failed or int(not in_order)

    async def _serve(self) -> None:
        # The first alone: what is wrong with the settings it says for all, and once.
        banner = await self._first_start(1)
        if not self._ending.is_set():
            await asyncio.gather(*(self._first_start(number) for number in self._numbers[1:]))
        if not self._ending.is_set():
            print(banner, flush=True)  # noqa: T201  # the command line's, said by the first worker
            await asyncio.gather(*(self._keep(number) for number in self._numbers))

    def _on_signal(self, number: int) -> None:
        # A worker that is still starting ends by SIGTERM without a word, and by SIGINT with a traceback.
        self._end(number if self._ending.is_set() else signal.SIGTERM)

    def _end(self, number: int = signal.SIGTERM) -> None:
        self._ending.set()
        for process in self._processes.values():
            _signal(process, number)

    async def _first_start(self, number: int) -> str:
        """Start a worker for the first time and wait until it answers; returns its banner.

        One that ends before ends all: it has said why, and trying again would hide it.
        """
        process = await self._start(number)
        banner = await _banner(process)
        if banner is None:
            status = await process.wait()
            if not self._ending.is_set():
                if status < 0:
                    logger.error("worker %d was ended by signal %d before it answered", number, -status)
                self._failed = max(status, 1)
                self._end()
        return banner or ""

    async def _keep(self, number: int) -> None:
        """Start a worker again whenever it ends, until all are to end."""
        loop = asyncio.get_running_loop()
        pause = 0.0
        began = loop.time()
        while True:
            process = self._processes[number]
            status = await process.wait()
            if self._ending.is_set():
                return
            pause = pause_before_restart(pause, loop.time() - began)
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            logger.error("worker %d (pid %d) ended %s; it starts again in %g s", number, process.pid, how, pause)
            try:
                async with asyncio.timeout(pause):
                    await self._ending.wait()
                return
            except TimeoutError:
                began = loop.time()
            try:
                process = await self._start(number)
            except OSError as error:  # no process or no memory left at the moment
                logger.error("worker %d cannot be started: %s", number, error)
                continue
            if await _banner(process) is not None:
                logger.warning("worker %d (pid %d) answers again", number, process.pid)

    async def _start(self, number: int) -> Process:
        # A session of its own: Ctrl-C in a terminal reaches the supervisor, which tells each worker once.
        process = self._processes[number] = await asyncio.create_subprocess_exec(
            *self._command,
            *("--as-worker", str(number)),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            limit=_LARGEST_BANNER,
        )
        if self._ending.is_set():
            _signal(process, signal.SIGTERM)  # the order came while it was being started
        return process

    async def _wait_for_all(self) -> None:
        """Until all have ended, by force when the grace is over."""
        processes = list(self._processes.values())
        try:
            async with asyncio.timeout(self._grace):
                await asyncio.gather(*(process.wait() for process in processes))
        except TimeoutError:
            for process in processes:
                if process.returncode is None:
                    logger.error("worker with pid %d did not end within %g s and is killed", process.pid, self._grace)
                    _signal(process, signal.SIGKILL)
                    await process.wait()


def _signal(process: Process, number: int) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it ended a moment ago
            process.send_signal(number)


async def _banner(process: Process) -> str | None:
    """What a worker says once it answers; None when it ended before."""
    assert process.stdout is not None
    try:
        return (await process.stdout.readuntil(READY)).removesuffix(READY).decode()
    except asyncio.IncompleteReadError:
        return None
