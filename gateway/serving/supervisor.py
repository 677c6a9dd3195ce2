"""Several gateway processes on one port (`--workers N`), and the supervisor that keeps them running.

The supervisor serves no requests. It reserves the port, starts each worker with its own command line plus two flags,
restarts workers that die and stops all of them in order. Workers share the port with SO_REUSEPORT: the kernel gives
each new connection to one of the listening processes. Like replicas on separate machines, workers share nothing but the
store, so they need an engine whose sandboxes every process can reach.
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

MAX_WORKERS = 64
READY = b"\0"  # ends a worker's banner on stdout, and tells the supervisor that the worker answers
_MIN_RESTART_DELAY_S, _MAX_RESTART_DELAY_S = 1.0, 30.0
_STABLE_AFTER_S = 60.0  # a worker that ran this long starts again after the shortest delay
_AFTER_DRAIN_S = 30.0  # for what a worker does after its last request: hibernate sessions, flush, leave
_MAX_BANNER_BYTES = 1 << 20


def check(settings: Settings) -> None:
    """Raise SettingsError with every reason why these settings do not work with several workers."""
    problems = []
    flag = f"--workers {settings.workers}"
    if settings.workers > MAX_WORKERS:
        problems.append(f"{flag}: at most {MAX_WORKERS}; beyond that run further gateways on the same store")
    if settings.engine == "local":
        problems.append(
            f"{flag}: a local sandbox can be reached by one process only, so each worker would fill its own pool and "
            "forward most requests to another worker. Leave --workers out, or use --engine kubernetes"
        )
    if settings.store.partition(":")[0] in ("", "sqlite"):
        problems.append(f"{flag}: needs a store that all workers share, such as --store redis://HOST/0")
    if settings.audit_log == "-":
        problems.append(f"{flag}: --audit-log - is for one process; name a file, of which each worker has its own")
    if settings.worker_port:
        last = settings.worker_port + settings.workers - 1
        if last > 65535 or settings.worker_port <= settings.port <= last:
            problems.append(
                f"--worker-port {settings.worker_port}: the workers' extra ports would be {settings.worker_port} to "
                f"{last}; choose a range that ends at 65535 or below and does not contain --port {settings.port}"
            )
    if problems:
        raise SettingsError(problems)


def settings_of(settings: Settings, number: int) -> Settings:
    """The settings of worker `number` (from 1): a separate state folder, and the shared place for snapshots."""
    return replace(
        settings,
        state_dir=settings.state_dir / f"worker-{number}",
        snapshots=settings.snapshots or str(settings.state_dir.absolute() / "snapshots"),
        audit_log=settings.audit_log and f"{settings.audit_log}.worker-{number}",
    )


def sockets_of(settings: Settings, number: int) -> list[socket.socket]:
    """The sockets of worker `number`, bound but not listening: the shared port, and its extra port if there is one.

    Raises SettingsError that names the address.
    """
    sockets = [bind(settings.host, settings.port, shared=True)]
    if settings.worker_port:
        sockets.append(bind(settings.host, settings.worker_port + number - 1, flag="--worker-port"))
    return sockets


def end_with_supervisor(drain_timeout: float) -> None:
    """Called in a worker: make sure that it does not outlive its supervisor, even one killed by SIGKILL.

    The worker's standard input is a pipe that the supervisor holds and never writes to, so a read returns when the
    supervisor is dead. The worker then drains as on SIGTERM and exits after the drain timeout in any case. The read is
    in a thread, so that this works while the event loop is blocked. PR_SET_PDEATHSIG would not do: it is sent when the
    parent's thread ends, not its process, and a worker that calls prctl too late misses it.
    """

    def watch() -> None:
        try:
            os.read(0, 1)
        except OSError:
            pass  # a closed stdin counts as the supervisor's end
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(drain_timeout + _AFTER_DRAIN_S)
        os._exit(1)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


def pause_before_restart(last_pause: float, lived: float) -> float:
    """Seconds until a worker that ended is started again. `lived`: how long it ran, in seconds.

    1, 2, 4 ... 30 while it dies within a minute; 1 again after it ran for longer.
    """
    if not last_pause or lived >= _STABLE_AFTER_S:
        return _MIN_RESTART_DELAY_S
    return min(2 * last_pause, _MAX_RESTART_DELAY_S)


async def supervise(settings: Settings, program: Sequence[str]) -> int:
    """Run the workers until SIGTERM or SIGINT; returns the exit status. `program`: this process's command line.

    Raises SettingsError for the port and the state folder.
    """
    make_state_dir(settings.state_dir)
    with reserve(settings.host, settings.port) as reserved:
        command = [*program, "--port", str(reserved.getsockname()[1])]
        return await Supervisor(command, settings.workers, settings.drain_timeout + _AFTER_DRAIN_S).run()


class Supervisor:
    """Starts, watches and stops the workers. `grace`: seconds from SIGTERM until a worker is killed."""

    def __init__(self, command: Sequence[str], count: int, grace: float) -> None:
        self._command = command
        self._numbers = range(1, count + 1)
        self._grace = grace
        self._processes: dict[int, Process] = {}
        self._ending = asyncio.Event()
        self._failed = 0  # the status of a worker that ended before all were ready

    async def run(self) -> int:
        """Start all workers, print the banner once they answer, restart those that die, stop all on a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve())
            await self._ending.wait()
            await self._wait_for_all()
        # A worker that was still starting has no SIGTERM handler yet, so it ends with -SIGTERM.
        in_order = all(process.returncode in (0, -signal.SIGTERM) for process in self._processes.values())
        return self._failed or int(not in_order)

    async def _serve(self) -> None:
        # The first worker starts alone: a problem with the settings is then reported once, not N times.
        banner = await self._first_start(1)
        if not self._ending.is_set():
            await asyncio.gather(*(self._first_start(number) for number in self._numbers[1:]))
        if not self._ending.is_set():
            print(banner, flush=True)  # noqa: T201  # the first worker's, whose URL is that of all
            await asyncio.gather(*(self._keep(number) for number in self._numbers))

    def _on_signal(self, number: int) -> None:
        # A worker that is still starting ends silently on SIGTERM, but with a traceback on SIGINT.
        self._end(number if self._ending.is_set() else signal.SIGTERM)

    def _end(self, number: int = signal.SIGTERM) -> None:
        self._ending.set()
        for process in self._processes.values():
            _signal(process, number)

    async def _first_start(self, number: int) -> str:
        """Start a worker for the first time and wait until it answers; returns its banner.

        If it ends before that, all workers are stopped: it has logged the reason, which restarts would bury.
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
        """Restart a worker whenever it ends, until the supervisor is stopped."""
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
        # A new session: Ctrl-C in a terminal then reaches the supervisor only, which signals each worker once.
        process = self._processes[number] = await asyncio.create_subprocess_exec(
            *self._command,
            *("--as-worker", str(number)),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            limit=_MAX_BANNER_BYTES,
        )
        if self._ending.is_set():
            _signal(process, signal.SIGTERM)  # the supervisor was stopped while this worker was being started
        return process

    async def _wait_for_all(self) -> None:
        """Wait until all workers have ended; kill those that are left after the grace period."""
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
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            process.send_signal(number)


async def _banner(process: Process) -> str | None:
    """A worker's banner, read up to READY; None if the worker ended before it answered."""
    assert process.stdout is not None
    try:
        return (await process.stdout.readuntil(READY)).removesuffix(READY).decode()
    except asyncio.IncompleteReadError:
        return None
