"""A warm pool in numbers: what a sequence of targets would have done to the claims of a trace.

The pool behaves as the providers do: a claim takes a ready sandbox and the pool orders another at once. A claim that
finds none starts a sandbox of its own and waits for it (a cluster), or with `joins` takes the next that gets ready and
orders another (the local engine). A lower target gives up the newest starts first, then ready sandboxes; the local
engine ends ready ones only, and lets starts run on: one that is ready and not needed any more is deleted.
Starts take the lead time exactly, or as long as they were recorded to.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.leads import RecordedLeads


@dataclass(frozen=True)
class Targets:
    """What a policy wants: `levels[i]` from `times[i]` on (seconds, rising)."""

    times: Floats
    levels: Floats

    def capped(self, most: int) -> Targets:
        """The same within a maximum, which every policy has to keep to."""
        return Targets(self.times, np.minimum(self.levels, float(most)))

    def compact(self) -> Targets:
        """Drop entries that repeat the level before them."""
        if not len(self.times):
            return self
        keep = np.concatenate(([True], self.levels[1:] != self.levels[:-1]))
        return Targets(self.times[keep], self.levels[keep])


@dataclass(frozen=True)
class Outcome:
    """What came of it in the scored part. Idle sandbox-seconds are those of ready sandboxes that are not claimed and
    of starts that were given up; `held` also counts starts that were claimed later.
    """

    claims: int
    hits: int
    idle: float
    held: float
    span: float
    orders: int
    largest_shortfall: int  # most claims in one lead time that found the pool empty
    miss_times: Floats
    waits: Floats  # of the misses, seconds

    @property
    def hit_rate(self) -> float:
        """Share of claims served from the pool; 1 without claims."""
        return self.hits / self.claims if self.claims else 1.0

    @property
    def mean_idle(self) -> float:
        """Idle sandboxes in the mean."""
        return self.idle / self.span

    @property
    def mean_held(self) -> float:
        """Ready and starting sandboxes in the mean."""
        return self.held / self.span

    def wait(self, q: float) -> float:
        """The `q` quantile of the wait for a sandbox, seconds; a hit waits for nothing."""
        # Hits wait for nothing, so they are the lowest ranks: with 90 hits of 100 claims, the 95 % quantile is the
        # sixth of the ten waits.
        rank = q * self.claims - self.hits
        return float(np.sort(self.waits)[min(int(rank), len(self.waits) - 1)]) if rank > 0 and len(self.waits) else 0.0


class Control(Protocol):
    """Who sets the target while the pool runs, and may look at it (replay/live.py)."""

    begins: float  # the time of the first look

    def claim(self, now: float, ready: int) -> float:
        """A claim begins while so many are ready. Returns when the next look is due."""
        ...

    def arrived(self, lead: float) -> None:
        """A start is over; it took `lead` seconds."""
        ...

    def look(self, now: float, ready: int, starting: int) -> tuple[int, float]:
        """(target from now on, when the next look is due)."""
        ...


class _Schedule:
    """A control that plays back targets computed beforehand."""

    def __init__(self, targets: Targets) -> None:
        compact = targets.compact()
        self._times, self._levels = compact.times.tolist(), compact.levels.astype(int).tolist()
        self.begins = self._times[0] if self._times else math.inf
        self._at = 0

    def look(self, now: float, ready: int, starting: int) -> tuple[int, float]:
        """Return the next target, and the time of the one after it."""
        level, self._at = self._levels[self._at], self._at + 1
        return level, self._times[self._at] if self._at < len(self._times) else math.inf


def simulate(
    arrivals: Floats,
    targets: Targets | Control,
    *,
    lead: float,
    scored_from: float,
    end: float,
    joins: bool = False,
    leads: RecordedLeads | None = None,
) -> Outcome:
    """Run the pool. O(arrivals + target changes). `leads`: how long starts take, where that is not always `lead`."""
    control = None if isinstance(targets, Targets) else targets
    schedule = _Schedule(targets) if isinstance(targets, Targets) else targets
    claims_at = [*arrivals.tolist(), end]
    ready, target, orders, hits, claims = 0, 0, 0, 0, 0
    idle = held = 0.0
    starting: list[tuple[float, float]] = []  # (ready at, ordered at), soonest first
    missed: list[float] = []
    waits: list[float] = []
    waiting: deque[float] = deque()  # since when, in order; only with joins
    before, at_claim, change = 0.0, 0, schedule.begins
    while True:
        claim = claims_at[at_claim]
        # The next of three kinds of events. At equal times a start is over first, then the target changes, then the
        # claim comes: it finds what got ready at that very moment.
        now = min(claim, change, starting[0][0] if starting else end)
        if now > scored_from:
            passed = now - max(before, scored_from)
            idle += ready * passed
            held += (ready + len(starting)) * passed
        before = now
        if now >= end:
            break
        if starting and starting[0][0] <= now:
            ordered = starting.pop(0)[1]
            if control is not None:
                control.arrived(now - ordered)
            if waiting:
                if (since := waiting.popleft()) >= scored_from:
                    waits.append(now - since)
            # The local engine lets surplus starts run on, and throws them away here.
            elif not joins or ready < target:
                ready += 1
            elif now > scored_from:
                idle += now - ordered
        elif change <= now:
            target, change = schedule.look(now, ready, len(starting))
            surplus = (ready if joins else ready + len(starting)) - target
            while surplus > 0 and starting and not joins:
                spent = now - starting.pop()[1]
                surplus -= 1
                if now > scored_from:
                    idle += spent
            if surplus > 0:
                ready -= surplus
        else:
            at_claim += 1
            counted = now >= scored_from
            claims += counted
            if control is not None:
                change = control.claim(now, ready)
            if ready:
                ready -= 1
                hits += counted
            else:
                if counted:
                    missed.append(now)
                if joins:
                    waiting.append(now)
                elif counted:
                    waits.append(lead if leads is None else leads.at(now, 1)[0])
        # After each event, as the engines do: a claim is replaced at once and does not wait for the next look.
        short = target + len(waiting) - ready - len(starting)
        if short > 0:
            if leads is None:
                starting.extend([(now + lead, now)] * short)
            else:
                for each in leads.at(now, short):
                    insort(starting, (now + each, now))
            orders += short if now >= scored_from else 0
    miss_times = np.array(missed)
    worst = largest_shortfall(miss_times, lead)
    return Outcome(claims, hits, idle, held, end - scored_from, orders, worst, miss_times, np.array(waits))


def largest_shortfall(miss_times: Floats, lead: float) -> int:
    """The most misses within a lead time. Misses at 1, 2, 3 and 30 s with a lead time of 10 s: 3."""
    if not len(miss_times):
        return 0
    # For each miss, how many lie in the lead time up to it.
    return int((np.arange(len(miss_times)) - np.searchsorted(miss_times, miss_times - lead)).max()) + 1
