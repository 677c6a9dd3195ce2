"""A thread that owns a sqlite connection and commits writes in groups.

The event loop submits functions and awaits their results. The thread takes all queued jobs as one batch: it runs the
reads, then all writes in one transaction, so fifty sessions created at the same moment cost one commit. A write is
answered after its transaction is committed, never before. asyncio.to_thread for each call could not group writes.
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

_JOBS_PER_BATCH = 256  # the first write of a batch waits for the others: about 25 ms for this many


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    writes: bool
    answer: asyncio.Future[Any]


_Outcome = tuple[_Job, Any, BaseException | None]


class SqliteThread:
    """Runs functions on a sqlite connection that only this thread uses.

    `connect` is called on the thread and returns a connection in autocommit mode. `translate` maps sqlite's exceptions
    to those that callers see. A function may run twice (the jobs of a batch that fails are repeated one by one), so it
    must have no effects outside the database. It must raise a WakegateError before its first write: the job is then
    dropped from the batch without a rollback.
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
        # A daemon thread: answered writes are committed, so an exit without aclose has nothing to wait for.
        thread = threading.Thread(target=self._main, args=(loop, opened), name="sqlite", daemon=True)
        thread.start()
        await opened
        self._thread = thread

    async def aclose(self) -> None:
        """Run the jobs that are queued, then close the connection."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that only reads, outside any transaction, and return its result."""
        return await self._submit(function, writes=False)

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a transaction, and return its result after the commit."""
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
            _post(loop, _fail, opened, self._translate(error))
            return
        _post(loop, _succeed, opened)
        try:
            while (batch := self._next_batch()) is not None:
                self._serve(loop, connection, batch)
        finally:
            connection.close()

    def _next_batch(self) -> Sequence[_Job] | None:
        """Block until there is a job, then take all that are queued. None: stop, and the queue is empty."""
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
                self._jobs.put(None)  # the stop marker comes after all jobs: put it back, and run this batch first
                break
            batch.append(job)
        return batch

    def _serve(self, loop: asyncio.AbstractEventLoop, connection: sqlite3.Connection, batch: Sequence[_Job]) -> None:
        reads = [job for job in batch if not job.writes]
        writes = [job for job in batch if job.writes]
        if reads:
            _post(loop, _deliver, [self._alone(connection, job) for job in reads])
        if writes:
            _post(loop, _deliver, self._together(connection, writes))

    def _alone(self, connection: sqlite3.Connection, job: _Job) -> _Outcome:
        """Run one job; a write gets a separate transaction."""
        try:
            if not job.writes:
                return job, job.run(connection), None
            with _transaction(connection):
                value = job.run(connection)
        except Exception as error:
            return job, None, self._translate(error)
        return job, value, None

    def _together(self, connection: sqlite3.Connection, jobs: Sequence[_Job]) -> list[_Outcome]:
        """Run writes in one transaction; if it fails, repeat each one alone, so that a bad job fails alone."""
        if len(jobs) > 1:
            try:
                outcomes: list[_Outcome] = []
                with _transaction(connection):
                    for job in jobs:
                        try:
                            outcomes.append((job, job.run(connection), None))
                        except WakegateError as error:  # raised before the job's first write: nothing to undo
                            outcomes.append((job, None, error))
            except Exception:  # noqa: S110 — one job or the commit failed: each is run alone below
                pass
            else:
                return outcomes
        return [self._alone(connection, job) for job in jobs]


class _transaction:  # noqa: N801 — reads as the statement it stands for
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK if the block or the COMMIT raises."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        # IMMEDIATE takes the write lock now. A deferred transaction takes it at its first write, and if another process
        # wrote in between that fails with SQLITE_BUSY at once, without the busy timeout.
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # not if sqlite has rolled back itself, as on a full disk
                self._connection.execute("ROLLBACK")


# Delivery to the event loop. A caller that was cancelled in the meantime is not an error.


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        pass  # the loop was closed without aclose: there is no caller left


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
