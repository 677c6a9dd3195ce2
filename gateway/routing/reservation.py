"""A held request's right to a live sandbox: the slot that it has in the end, and how long each step took."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from gateway.core.model import StartKind
from gateway.routing.route import Route
from gateway.sessions.activation import Opened


@dataclass(frozen=True, slots=True)
class Reservation:
    """A slot on a live sandbox, to be given back by `route.leave`, and how the sandbox came to be. Times in seconds."""

    route: Route
    start: StartKind
    restored: str | None = None  # for x-wakegate-restored: "none" or the time of the snapshot
    queue_s: float = 0.0
    claim_s: float = 0.0
    restore_s: float = 0.0


class HeldRequest:
    """One held request's wait: first for a sandbox, then (`waits_for_slot`) for a slot of it."""

    def __init__(self) -> None:
        self.waits_for_slot = False
        self.slots = 0  # of the route that it waits for
        self._began = perf_counter()

    async def enter(self, route: Route, opened: Opened | None = None) -> Reservation:
        """Take a slot. `opened`: how the sandbox came to be, None: the route was live. Raises QueueFullError."""
        self.waits_for_slot, self.slots = True, route.slots
        await route.enter()
        waited = perf_counter() - self._began
        if opened is None:
            return Reservation(route, StartKind.LIVE, route.restored, queue_s=waited)
        # Of 3.0 s with a claim of 2.0 s and a restore of 0.8 s, 0.2 s were the queue. A request that joined the flight
        # late waited for less than the claim took, and so for no queue.
        queue_s = max(0.0, waited - opened.claim_s - opened.restore_s)
        return Reservation(route, opened.start, opened.restored, queue_s, opened.claim_s, opened.restore_s)
