"""One periodic pass over everything that lasts, in place of a timer for each request.

Arming and cancelling a timer costs some 3 us, and most requests are answered long before a timer of theirs would fire.
"""

from __future__ import annotations

from typing import Protocol

TICK_S = 0.1


class Ticked(Protocol):
    """An exchange that is looked at while it lasts."""

    def tick(self, now: float) -> None:
        """Enforce what depends on time. `now` in loop time."""
        ...


class Ticker:
    """The exchanges under way. `add` and `discard` are the set's own methods: they run for each request."""

    def __init__(self) -> None:
        self._ticked: set[Ticked] = set()
        self.add = self._ticked.add
        self.discard = self._ticked.discard

    def __len__(self) -> int:
        return len(self._ticked)

    def tick(self, now: float) -> None:
        """Called every TICK_S seconds with the loop's time."""
        for one in list(self._ticked):
            one.tick(now)
