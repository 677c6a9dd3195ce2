"""When the next slice of a pass may run, so that the looks at many pools are spread over a tick. Pure.

A request that is under way when a slice runs waits for it. Slices at short distances hit the same request two or three
times, on its way to the sandbox and back: of a thousand runtimes the pass of a second then shows in one request of a
hundred. Spread, each request meets one at most.
"""

from __future__ import annotations

SHORTEST_S = 0.001  # what the data path gets between two slices at least
_LONGEST_S = 0.02  # a pass over few pools is soon over


class Pace:
    """The pauses of one pass: from its beginning, the seconds to spread it over, and how many slices to expect.

    Slices beyond those expected follow at the shortest distance. A pass that is late catches up.
    """

    def __init__(self, began: float, spread: float, expected: int) -> None:
        """`began` on a monotonic clock. `spread` 0: all pauses are the shortest."""
        self._began, self._spread, self._expected = began, spread, expected
        self.slices = 0

    def pause(self, now: float) -> float:
        """Seconds until the slice after the one that has just run."""
        self.slices += 1
        share = min(self.slices / self._expected, 1.0) if self._expected else 0.0
        due = self._began + self._spread * share
        return min(max(due - now, SHORTEST_S), _LONGEST_S)
