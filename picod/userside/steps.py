"""Run and catch calls in a thread without a Python frame below them: its work is a list of steps run by C code.

A script must not see the code that started it: in tracebacks, in sys._getframe, in the recursion limit. A frame of
`try: run() except BaseException` would be visible in all three. So the thread's first call is C code,
`list(chain.from_iterable(steps))`, which calls one step after the other, and a step that catches is C code as well
(`Caught`). Rejected: cutting our frames out of tracebacks afterwards, which changes neither sys._getframe nor what a
debugger shows; and a program in C, which would have to be built for each interpreter that a runtime brings along.
"""

from __future__ import annotations

import io

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

DONE = object()
"""Returned by a step that is over; the sentinel of its iterator."""


class Steps(list["Iterator[object]"]):
    """Iterators that are run to their end, one after the other; each may append more."""

    def call(self, step: Callable[[], object]) -> None:
        """Append a step that calls `step` until it returns DONE."""
        self.append(iter(step, DONE))


class _Over(StopIteration):
    """Ends a step's iterator. Python sets its __context__ to the exception of the call, as `close` raises it then."""


class _Buffer:
    """The buffer of the TextIOWrapper in `Caught`. It never reads or writes: its `close` ends the step."""

    closed = False

    def __init__(self) -> None:
        self.over = _Over()

    def readable(self) -> bool:
        """False, as are `writable` and `seekable`, which TextIOWrapper asks for."""
        return False

    writable = seekable = readable

    def close(self) -> NoReturn:
        """Called by TextIOWrapper.close after `flush`, also when that raised: end the step."""
        raise self.over


class Caught:
    """A call that catches everything, in C code only. `step` runs it, `error` returns what it raised.

    TextIOWrapper.close calls `self.flush()`, then `self.buffer.close()` even if flush raised. Here flush is the
    function to call, and the buffer's close raises StopIteration, whose __context__ is then the function's exception.
    """

    def __init__(self) -> None:
        self._buffer = _Buffer()
        self._wrapper = io.TextIOWrapper(self._buffer, encoding="utf-8")  # type: ignore[type-var]

    def step(self, function: Callable[[], object]) -> Iterator[object]:
        """An iterator that calls `function` once, when it is advanced."""
        self._wrapper.flush = function  # type: ignore[method-assign, assignment]
        return iter(self._wrapper.close, DONE)

    def error(self) -> BaseException | None:
        """The exception of the call, or None. Called once, after the step; it drops the references to it."""
        over = self._buffer.over
        error, over.__context__, over.__traceback__ = over.__context__, None, None
        self._wrapper.flush = None  # type: ignore[method-assign, assignment]
        self._buffer.closed = True  # else the wrapper's finaliser would call close, and so flush, again
        return error
