"""Background work: loops that run as long as the gateway does, and tasks that outlive the call that started them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from gateway.core.errors import WakegateError

logger = logging.getLogger(__name__)


@contextmanager
def keeping_cancellation() -> Iterator[None]:
    """Raise CancelledError at the end of the block if the block has swallowed a cancellation of this task.

    Python 3.11's asyncio.wait_for, with which redis-py writes, returns its result, or raises its error, when a
    cancellation comes in the step of the event loop in which that is there (mended in 3.12). Of 20,000 pings cancelled
    at a random step 5,000 went on. A loop that goes on runs for ever, and the end of the gateway waits for it.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()  # not 0 in what cleans up after a cancellation, which goes on
    try:
        yield
    except Exception as error:
        if task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError


async def every(interval: float, verb: Callable[[], Awaitable[Any]]) -> None:
    """Run a verb every `interval` seconds, starting one interval from now. A failure does not stop the loop.

    It is logged when its text differs from that of the previous run: a store that is down for an hour gives one line,
    not one every 5 s. An exception that is not a WakegateError is a bug, so its traceback is logged; the loop goes on,
    since a sweep that stops unseen fills the disk days later.
    """
    last_error = ""
    while True:
        await asyncio.sleep(interval)
        try:
            with keeping_cancellation():
                await verb()
            last_error = ""
        except WakegateError as error:
            if str(error) != last_error:
                logger.warning("%s: %s", _name(verb), error)
            last_error = str(error)
        except Exception as error:
            if repr(error) != last_error:
                logger.exception("%s failed", _name(verb))
            last_error = repr(error)


def _name(verb: Callable[..., Any]) -> str:
    if isinstance(verb, partial):
        verb = verb.func
    return getattr(verb, "__name__", repr(verb))


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a loop and wait until it has ended. If it had already failed, log the exception here."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    except Exception:
        logger.exception("background task %s failed", task.get_name())


class Tasks:
    """The tasks of one owner, cancelled when the owner closes."""

    def __init__(self) -> None:
        self.running = False  # for owners that start and stop: set by them once they have started
        # The event loop keeps weak references only: a task that nothing else refers to may be collected mid-run.
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Run a coroutine concurrently. Its exception is not logged here: the caller awaits the task or checks it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self) -> None:
        """Wait for the tasks that are running now, whether they succeed, fail or are cancelled."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Cancel every task and wait until each has ended."""
        self.running = False
        for task in list(self._tasks):
            task.cancel()
        await self.wait()
