"""One thread that owns one sqlite connection, and the group commit in front of it.

The event loop hands in functions and awaits their answers. Whatever waits when the thread comes round is taken as one
batch: reads are answered first, then all writes share one transaction, so fifty sessions that are created at the same
moment cost one commit. A write is answered after its transaction is committed, never before.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.core.errors import StoreUnavailableError, WakegateError

T = TypeVar("T")

_JOBS_PER_BATCH = 256  # one transaction each: the first job waits for the others, about 25 ms for so many


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    writes: bool
    answer: asyncio.Future[Any]


_Outcome = tuple[_Job, Any, BaseException | None]


class SqliteThread:
    """Runs functions on a sqlite connection of its own.

    `connect` is called on the thread and gives a connection in autocommit mode. `translate` turns what sqlite raises
    into what callers are to see. Functions may be run twice (a batch that fails as a whole is tried one by one), so
    they must keep their effects inside the database; an error of ours must be raised before the function wrote.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], translate: Callable[[BaseException], BaseException]
    ) -> None:
        self._connect = connect
        self._translate = translate
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Open the connection. Raises what `connect` raised, translated."""
        if self._thread is not None:
            return
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        # A daemon: what was answered is committed, so an exit without aclose has nothing to wait for.
        thread = threading.Thread(target=self._main, args=(loop, opened), name="sqlite", daemon=True)
        thread.start()
        await opened
        self._thread = thread

    async def aclose(self) -> None:
        """Finish what was handed in, then close the connection."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What the function returns, outside any transaction."""
        return await self._submit(function, writes=False)

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What the function returns, once the transaction it ran in is committed."""
        return await self._submit(function, writes=True)

    async def _submit(self, function: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        if self._thread is None:
            raise StoreUnavailableError("the session store is not open")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(function, writes, answer))
        return await answer

    # On the thread.

    def _main(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[None]) -> None:
        try:
            connection = self._connect()
        except BaseException as error:
            _tell(loop, _fail, opened, self._translate(error))
            return
        _tell(loop, _succeed, opened)
        try:
            while (batch := self._next_batch()) is not None:
                self._serve(loop, connection, batch)
        finally:
            connection.close()

    def _next_batch(self) -> Sequence[_Job] | None:
        """At least one job; None when it is time to stop (and then nothing is left in the queue)."""
        first = self._jobs.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < _JOBS_PER_BATCH:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # seen too early: it is the last thing in the queue and stays so
                break
            batch.append(job)
        return batch

    def _serve(self, loop: asyncio.AbstractEventLoop, connection: sqlite3.Connection, batch: Sequence[_Job]) -> None:
        reads = [job for job in batch if not job.writes]
        writes = [job for job in batch if job.writes]
        if reads:
            _tell(loop, _deliver, [self._alone(connection, job) for job in reads])
        if writes:
            _tell(loop, _deliver, self._together(connection, writes))

    def _alone(self, connection: sqlite3.Connection, job: _Job) -> _Outcome:
        """Run one job; a write in a transaction of its own."""
        try:
            if not job.writes:
                return job, job.run(connection), None
            with _transaction(connection):
                value = job.run(connection)
        except Exception as error:
            return job, None, self._translate(error)
        return job, value, None

    def _together(self, connection: sqlite3.Connection, jobs: Sequence[_Job]) -> list[_Outcome]:
        if len(jobs) > 1:
            try:
                outcomes: list[_Outcome] = []
                with _transaction(connection):
                    for job in jobs:
                        try:
                            outcomes.append((job, job.run(connection), None))
                        except WakegateError as error:  # refused before it wrote anything: the others are unharmed
                            outcomes.append((job, None, error))
            except Exception:  # noqa: S110 — one job, or the commit, failed: each is run alone below
                pass
            else:
                return outcomes
        return [self._alone(connection, job) for job in jobs]


class _transaction:  # noqa: N801 — reads as the statement it stands for
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when anything was raised, the COMMIT itself included."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        # IMMEDIATE takes the write lock now: a transaction that began as a reader could not wait for it later.
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # a full disk may have rolled back already
                self._connection.execute("ROLLBACK")


# Back on the event loop. The caller may have been cancelled meanwhile; that is no error.


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        pass  # the loop was closed without aclose: no caller is left


def _deliver(outcomes: Sequence[_Outcome]) -> None:
    for job, value, error in outcomes:
        if error is None:
            _succeed(job.answer, value)
        else:
            _fail(job.answer, error)


def _succeed(answer: asyncio.Future[Any], value: Any = None) -> None:
    if not answer.done():
        answer.set_result(value)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
