"""A warm pool in numbers: what a sequence of targets would have done to the claims of a trace.

The pool behaves as the providers do: a claim takes a ready sandbox and the pool orders another at once. A claim that
finds none starts a sandbox of its own and waits for it (a cluster), or with `joins` takes the next that gets ready and
orders another (the local engine). A lower target gives up the newest starts first, then ready sandboxes. Starts take
the lead time: exactly, or lognormally spread around it, as on a machine that has other work.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass

import numpy as np

from gateway.autoscaler.forecast import Floats


@dataclass(frozen=True)
class Targets:
    """What a policy wants: `levels[i]` from `times[i]` on (seconds, rising)."""

    times: Floats
    levels: Floats

    def compact(self) -> Targets:
        """Only the changes."""
        if not len(self.times):
            return self
        keep = np.concatenate(([True], self.levels[1:] != self.levels[:-1]))
        return Targets(self.times[keep], self.levels[keep])


@dataclass(frozen=True)
class Outcome:
    """What came of it in the scored part. Idle sandbox-seconds are those of ready sandboxes that nobody has claimed and
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
        """1 when nobody came."""
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
        rank = q * self.claims - self.hits
        return float(np.sort(self.waits)[min(int(rank), len(self.waits) - 1)]) if rank > 0 and len(self.waits) else 0.0


def simulate(
    arrivals: Floats,
    targets: Targets,
    *,
    lead: float,
    scored_from: float,
    end: float,
    joins: bool = False,
    spread: float = 0.0,
) -> Outcome:
    """Run the pool. O(arrivals + target changes). `spread`: the standard deviation of the lead time's logarithm."""
    draw = np.random.default_rng(1).lognormal
    compact = targets.compact()
    claims_at, changes_at, levels = arrivals.tolist(), compact.times.tolist(), compact.levels.astype(int).tolist()
    ready, target, orders, hits, claims = 0, 0, 0, 0, 0
    idle = held = 0.0
    starting: list[tuple[float, float]] = []  # (ready at, ordered at), soonest first
    missed: list[float] = []
    waits: list[float] = []
    waiting: deque[float] = deque()  # since when, in order; only with joins
    before, at_claim, at_change = 0.0, 0, 0
    claims_at.append(end)
    changes_at.append(end)
    never = end + 1.0
    while True:
        claim, change = claims_at[at_claim], changes_at[at_change]
        now = min(claim, change, starting[0][0] if starting else never)
        if now > scored_from:
            passed = now - max(before, scored_from)
            idle += ready * passed
            held += (ready + len(starting)) * passed
        before = now
        if now >= end:
            break
        if starting and starting[0][0] <= now:
            starting.pop(0)
            if not waiting:
                ready += 1
            elif (since := waiting.popleft()) >= scored_from:
                waits.append(now - since)
        elif change <= now:
            target = levels[at_change]
            at_change += 1
            surplus = ready + len(starting) - len(waiting) - target
            while surplus > 0 and starting:
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
            if ready:
                ready -= 1
                hits += counted
            else:
                if counted:
                    missed.append(now)
                if joins:
                    waiting.append(now)
                elif counted:
                    waits.append(float(draw(math.log(lead), spread)) if spread else lead)
        short = target + len(waiting) - ready - len(starting)
        if short > 0:
            if spread:
                for each in draw(math.log(lead), spread, short).tolist():
                    insort(starting, (now + each, now))
            else:
                starting.extend([(now + lead, now)] * short)
            orders += short if now >= scored_from else 0
    miss_times = np.array(missed)
    worst = int((np.arange(len(missed)) - np.searchsorted(miss_times, miss_times - lead)).max()) + 1 if missed else 0
    return Outcome(claims, hits, idle, held, end - scored_from, orders, worst, miss_times, np.array(waits))
