"""A thread's life as a list of steps, and calls that catch without a Python frame below what they call.

A script must not see the files that it was started by: in tracebacks, in sys._getframe, in the recursion limit. A frame
of `try: run() except BaseException` would be seen by all three. So the thread's first call is C code,
`list(chain.from_iterable(steps))`, which calls one step after the other, and a step that catches is C code as well
(`Caught`). Rejected: cutting our frames out of tracebacks afterwards, which neither sys._getframe nor a debugger
heeds; and a program in C, which would have to be built for each interpreter that a runtime brings along.
"""

from __future__ import annotations

import io

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

DONE = object()
"""What a step returns when it is over."""


class Steps(list["Iterator[object]"]):
    """Iterators that are run to their end, one after the other; each may append more."""

    def call(self, step: Callable[[], object]) -> None:
        """Append one that is done when it returns DONE."""
        self.append(iter(step, DONE))


class _Over(StopIteration):
    """A step is over; __context__ is what it raised."""


class _Buffer:
    """What a TextIOWrapper wraps here."""

    closed = False

    def __init__(self) -> None:
        self.over = _Over()

    def readable(self) -> bool:
        """Nothing is ever read or written."""
        return False

    writable = seekable = readable

    def close(self) -> NoReturn:
        """End the step."""
        raise self.over


class Caught:
    """A call without a frame below it. `step` runs it, `error` tells what it raised."""

    def __init__(self) -> None:
        self._buffer = _Buffer()
        self._wrapper = io.TextIOWrapper(self._buffer, encoding="utf-8")  # type: ignore[type-var]

    def step(self, function: Callable[[], object]) -> Iterator[object]:
        """The step that calls it."""
        self._wrapper.flush = function  # type: ignore[method-assign, assignment]
        return iter(self._wrapper.close, DONE)

    def error(self) -> BaseException | None:
        """What it raised, after the step. To be asked once."""
        over = self._buffer.over
        error, over.__context__, over.__traceback__ = over.__context__, None, None
        self._wrapper.flush = None  # type: ignore[method-assign, assignment]
        self._buffer.closed = True  # or the wrapper's finaliser would close, and so call, once more
        return error
