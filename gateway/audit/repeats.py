"""Leaves out refusals that repeat: a client over its limit that asks in a loop must not fill the disk with them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from gateway.core.clock import Clock

EVERY_S = 10.0
MAX_KNOWN = 1024


class Repeats:
    """Of equal events one is let through in each EVERY_S; it tells how many were left out since the one before it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # until when, and how many were left out

    def left_out(self, event: Hashable) -> int | None:
        """How many equal ones were left out before this one; None: it is to be left out as well."""
        now = self._clock.monotonic()
        until, count = self._known.get(event, (now, 0))
        if now < until:
            self._known[event] = (until, count + 1)
            return None
        self._known[event] = (now + EVERY_S, 0)
        self._known.move_to_end(event)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return count
