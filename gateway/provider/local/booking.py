"""What runtimes request of this machine, booked before a sandbox starts: no more is promised than is there. Pure.

Only requests are booked: a runtime without any starts as long as there is memory, and is held to its limits. A booking
is of one sandbox, from its start until it is gone, be it warm or claimed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NewType

from gateway.core.model import Requests
from gateway.core.units import readable_size

BookingId = NewType("BookingId", int)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What may be booked. `gpus`: their names, each of which one sandbox has."""

    millicores: int
    memory: int  # bytes
    gpus: tuple[str, ...] = ()
    lacking: str = ""  # why there is no GPU


@dataclass(frozen=True, slots=True)
class Booking:
    """What one sandbox has; `gpus`: which ones."""

    id: BookingId
    requests: Requests
    gpus: tuple[str, ...] = ()


class Ledger:
    """The bookings of one machine."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._bookable = {"cpu": capacity.millicores, "memory": capacity.memory, "gpu": len(capacity.gpus)}
        self._bookings: dict[BookingId, Booking] = {}
        self._ending: set[BookingId] = set()
        self._ids = itertools.count(1)

    def book(self, requests: Requests) -> Booking | None:
        """Book it; None: there is no room now."""
        if self.short_of(requests):
            return None
        taken = {gpu for booking in self._bookings.values() for gpu in booking.gpus}
        free = [gpu for gpu in self.capacity.gpus if gpu not in taken]
        booking = Booking(BookingId(next(self._ids)), requests, tuple(free[: requests.gpus]))
        self._bookings[booking.id] = booking
        return booking

    def ends(self, booking: Booking | None) -> None:
        """It is given back in a moment: its sandbox is being ended."""
        if booking is not None and booking.id in self._bookings:
            self._ending.add(booking.id)

    def release(self, booking: Booking | None) -> None:
        """Give it back; a second time is no error."""
        if booking is not None:
            self._bookings.pop(booking.id, None)
            self._ending.discard(booking.id)

    def booked(self) -> Mapping[str, float]:
        """As MachineBookings has it."""
        return _in_cores(_amounts(self._bookings.values()))

    def bookable(self) -> Mapping[str, float]:
        """As MachineBookings has it."""
        return _in_cores(self._bookable)

    def short_of(self, requests: Requests, *, soon: bool = False, without: Iterable[Booking] = ()) -> str:
        """What is missing, in words; "" if it fits. `soon`: once those that end are gone; `without`: and these."""
        gone = {booking.id for booking in without} | (self._ending if soon else set())
        used = _amounts(booking for booking in self._bookings.values() if booking.id not in gone)
        return _missing(requests, self._bookable, used)

    def never_fits(self, requests: Requests) -> str:
        """What this machine lacks for it even when nothing else is booked; "" if it may fit."""
        missing = _missing(requests, self._bookable, {})
        why = self.capacity.lacking if requests.gpus > len(self.capacity.gpus) else ""
        return f"{missing} ({why})" if why else missing


def victims(ledger: Ledger, requests: Requests, warm: Sequence[Booking]) -> list[Booking]:
    """Which warm sandboxes to end so that a claim fits, of `warm`, the least needed first; none if that is not enough.

    No more than needed: one whose end does not help after all is spared.
    """
    if not ledger.short_of(requests, soon=True):
        return []
    chosen: list[Booking] = []
    for booking in warm:
        chosen.append(booking)
        if not ledger.short_of(requests, soon=True, without=chosen):
            break
    else:
        return []
    for booking in list(chosen):
        rest = [each for each in chosen if each is not booking]
        if not ledger.short_of(requests, soon=True, without=rest):
            chosen = rest
    return chosen


def _amounts(bookings: Iterable[Booking]) -> dict[str, float]:
    found = {"cpu": 0.0, "memory": 0.0, "gpu": 0.0}
    for booking in bookings:
        found["cpu"] += booking.requests.millicores
        found["memory"] += booking.requests.memory
        found["gpu"] += booking.requests.gpus
    return found


def _in_cores(amounts: Mapping[str, float]) -> dict[str, float]:
    return {**amounts, "cpu": amounts["cpu"] / 1000}


def _missing(requests: Requests, bookable: Mapping[str, float], used: Mapping[str, float]) -> str:
    wanted = {"cpu": requests.millicores, "memory": requests.memory, "gpu": requests.gpus}
    free = {name: max(0, bookable[name] - used.get(name, 0)) for name in wanted}
    return ", ".join(
        f"{name}: it requests {_shown(name, amount)}, and {_shown(name, free[name])} of "
        f"{_shown(name, bookable[name])} is free"
        for name, amount in wanted.items()
        if amount > free[name]
    )


def _shown(name: str, amount: float) -> str:
    if name == "memory":
        return readable_size(int(amount))
    return f"{amount / 1000:g}" if name == "cpu" else f"{amount:g}"
