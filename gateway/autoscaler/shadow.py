"""Simulates each stocking rule's pool on the real claims, to learn what each rule would have cost.

A rule is either "stock while another sandbox saves more than `threshold` claims per horizon", by the mixed forecast or
by a single expert's (the threshold is idle cost over the cost of a cold start, so 1 - threshold is the newsvendor's
quantile), or "always hold n". Every rule runs its own shadow pool: a loss system with the measured lead time, from
which its idle seconds and misses are read. A pool of 3 with a lead time of 2 s that gets 5 claims at once serves 3,
misses 2, and has 3 sandboxes again 2 s later.

follower.py chooses the rule to follow. Rejected: to compute idle time and misses from the forecast. A model that is
wrong promises a miss rate that it does not keep; the simulation counts what would have happened.

Source: base stock with lost sales as an Erlang loss system, Karush (1957) and Zipkin, "Foundations of Inventory
Management" (2000), 7.3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gateway.autoscaler.forecast import Floats, counts_up_to

THRESHOLDS: Floats = np.logspace(-0.6, -4.6, 17)
_MAX_MEMORY_S = 7 * 86400.0  # a rule's idle seconds and misses count for at most this long
_MIN_MEMORY_S = 3600.0  # and at least this long
# Claims. While fewer are remembered, none are forgotten early: at a miss rate of 1 %, 500 claims are 5 misses.
_MIN_REMEMBERED_CLAIMS = 500.0
# The latest third of all time counts: what a rule cost before the experts had learned is soon forgotten.
_AGE_TO_MEMORY = 3.0
_GROUPS_A_LEAD = 8  # claims that come closer together than this part of a lead time count as coming at once
_MAX_GROUPS = 64  # in one tick, so that a crowd costs no more
CHOICE_INTERVAL_S = 60.0  # between two choices of the rule to follow
# Misses that every minute may have. More than these in the worst minute, and more than in the second worst, are of one
# burst, which is no pattern yet (`Shadow.once`).
_FEW_MISSES = 10.0
A_FAMILY = len(THRESHOLDS)  # rules of one forecast
_NEGATED: Floats = -THRESHOLDS
QUANTILES: list[float] = (1.0 - THRESHOLDS).tolist()
_COLUMNS = np.arange(A_FAMILY)


@lru_cache(maxsize=16)
def _costs(size: int) -> Floats:
    """[n - 1, threshold]: what n sandboxes cost, in claims per horizon."""
    return (counts_up_to(size + 1)[1:])[:, None] * THRESHOLDS


def constant_levels(most: int) -> list[int]:
    """The constants that are tried, from 0 to `most` in steps that grow by a tenth: 65 numbers for up to 1,000."""
    levels = [0]
    while levels[-1] < most:
        levels.append(min(most, max(levels[-1] + 1, int(levels[-1] * 1.1))))
    return levels


class Chooser(Protocol):
    """Chooses a rule to follow, once per CHOICE_INTERVAL_S. A Protocol, as follower.py builds on this module."""

    @property
    def nearest(self) -> int:
        """The index in THRESHOLDS of the followed rule, or of the one closest to it."""

    @property
    def family(self) -> int:
        """Whose forecast is followed, an index of Shadow.families."""

    def choose(self, shadow: Shadow) -> None:
        """Choose again, by the tallies of `shadow`."""

    def add(self, idle: Floats, served: Floats) -> None:
        """Enter what each rule has idled and served since the last choice."""


@dataclass(slots=True)
class Total:
    """What all rules have cost since the beginning; nothing is forgotten."""

    served: Floats
    idle: Floats  # sandbox-seconds
    claims: float = 0.0
    span: float = 0.0  # seconds


class Shadow:
    """The pools of all rules. `observe` costs a dozen numpy calls on some 60 numbers, and five more for each group of
    claims where starts are quicker than ticks.

    A claim that finds the pool empty starts a sandbox of its own, or with `joins` takes the next one that gets ready
    and orders another for a later claim. The tallies do not depend on what the pools are for, so any number of
    followers may read them.
    """

    def __init__(self, lead: float, most: int, *, joins: bool = False, experts: Sequence[str] = ()) -> None:
        self.lead = lead
        self.families = ("", *experts)  # by whose forecast the rules stock: the mixture's first, then each expert's
        self.rules = A_FAMILY * len(self.families)  # how many rules have a forecast; the constants come after them
        self._joins = joins
        constants = np.array(constant_levels(most), dtype=np.float64)
        size = self.rules + len(constants)
        self.levels: Floats = np.concatenate((np.zeros(self.rules), constants))
        self.served: Floats = np.zeros(size)
        self.idle: Floats = np.zeros(size)  # sandbox-seconds
        self.claims = 0.0
        self.span = 0.0  # seconds remembered
        self._none: Floats = np.zeros(size)
        self.missed: Floats = self._none  # of the claims of the latest tick
        # Misses that do not count against a target: those of the worst minute beyond the second worst's. A rule that
        # misses 230 of a burst of 408, and at most 40 in any other minute, is judged as if it had missed 40 of it.
        self.once: Floats = self._none
        self.worst: Floats = np.zeros(size)  # misses in the worst minute, and in the second worst, fading
        self._second: Floats = np.zeros(size)
        self.total = Total(np.zeros(size), np.zeros(size))
        self._kept = Total(np.zeros(size), np.zeros(size))  # of the tallies, what was left after the last choice
        self.followers: list[Chooser] = []
        self._ready: Floats = self.levels.copy()
        self._wanted = [[0] * A_FAMILY for _ in self.families]  # the rules' levels as whole numbers
        self._orders: deque[tuple[float, Floats]] = deque()  # (ready at, sandboxes per rule), oldest first
        self._since = 0.0
        self.age = 0.0  # seconds observed in all
        self._watched = [(0, A_FAMILY - 1)]  # (family, threshold) of the rules that `top` is read at

    def observe(self, now: float, elapsed: float, claims: int, times: Sequence[float] = ()) -> None:
        """Add `claims` that came in the `elapsed` seconds until `now`, while the rules held `levels`.

        `times`: when they came, rising, where that is known. It matters where starts are quicker than ticks: at a lead
        of 0.25 s one sandbox serves four claims that come evenly in a second, and of four that are taken as coming
        together it misses three.
        """
        at, rest, missed = now - elapsed, claims, self._none
        for until, came in self._groups(now, at, times[:claims]):
            self._advance(at, until)
            missed = missed + self._claim(until, came)
            at, rest = until, rest - came
        self._advance(at, now)
        if rest:
            missed = missed + self._claim(now, rest)
        if claims:
            self.missed = missed
        self.claims += claims
        self.span += elapsed
        self._since += elapsed
        if self._since >= CHOICE_INTERVAL_S:
            self._choose()

    def _groups(self, now: float, since: float, times: Sequence[float]) -> Iterator[tuple[float, int]]:
        """(time, claims until then) of claims that came close together: within an eighth of the lead time."""
        if not len(times) or now - max(times[0], since) <= self.lead / _GROUPS_A_LEAD:
            return  # all are close to the end of the tick
        width = max(self.lead / _GROUPS_A_LEAD, (times[-1] - times[0]) / _MAX_GROUPS)
        first, came, last = times[0], 0, since
        for at in times:
            if came and at - first > width:
                yield last, came
                first, came = at, 0
            came, last = came + 1, min(max(at, last), now)
        yield last, came

    def _advance(self, since: float, until: float) -> None:
        """Let time pass: what is ready idles, what was ordered gets ready."""
        orders, ready = self._orders, self._ready
        # With joins, claims that wait make `ready` negative (two waiting: -2), which is no idle time. Without joins it
        # is never negative.
        self.idle += (np.maximum(ready, 0.0) if self._joins else ready) * (until - since)
        while orders and orders[0][0] <= until:
            at, arrived = orders.popleft()
            if self._joins:
                self.idle += (np.maximum(ready + arrived, 0.0) - np.maximum(ready, 0.0)) * (until - at)
            else:
                self.idle += arrived * (until - at)
            ready += arrived

    def _claim(self, now: float, claims: int) -> Floats:
        """Serve claims that come at `now`; returns how many each rule misses."""
        ready = self._ready
        served = np.minimum(np.maximum(ready, 0.0) if self._joins else ready, claims)
        self.served += served
        # Every pool refills as it is claimed from, without waiting for the next tick.
        taken = np.full(len(ready), float(claims)) if self._joins else served
        ready -= taken
        self._orders.append((now + self.lead, taken))
        return claims - served

    def shift(self, step: float) -> None:
        """The clock was set by `step` seconds: what is being started is ready as soon as before.

        Unshifted, after a step back by ten minutes, every shadow pool stands empty for ten minutes, every rule but the
        largest constants misses all claims, and the largest is followed until that is forgotten.
        """
        self._orders = deque((at + step, order) for at, order in self._orders)

    def _choose(self) -> None:
        self._add_up()
        self.age += self._since
        memory = min(max(self.age / _AGE_TO_MEMORY, _MIN_MEMORY_S), _MAX_MEMORY_S)
        if self.claims < _MIN_REMEMBERED_CLAIMS:
            memory = _MAX_MEMORY_S
        keep = 1.0 - min(self._since / memory, 1.0)
        self._since = 0.0
        self.served *= keep
        self.idle *= keep
        self.claims *= keep
        self.span *= keep
        self.worst *= keep
        self._second *= keep
        self.once = np.maximum(self.worst - np.maximum(self._second, _FEW_MISSES), 0.0)
        self._kept = Total(self.served.copy(), self.idle.copy(), self.claims, self.span)
        for follower in self.followers:
            follower.choose(self)
        self._watched = [
            (family, min(each.nearest + 4, A_FAMILY - 1))
            for each in self.followers
            for family in {0, each.family}
        ] or [(0, A_FAMILY - 1)]  # fmt: skip

    def _add_up(self) -> None:
        """Enter what came since the last choice into the totals and the accounts, and find the worst minute."""
        total, kept = self.total, self._kept
        idle, served = self.idle - kept.idle, self.served - kept.served
        missed = (self.claims - kept.claims) - served
        self._second = np.maximum(self._second, np.minimum(missed, self.worst))
        self.worst = np.maximum(self.worst, missed)
        total.idle += idle
        total.served += served
        total.claims += self.claims - kept.claims
        total.span += self.span - kept.span
        for follower in self.followers:
            follower.add(idle, served)

    def update(self, now: float, values: Floats, family: int = 0) -> None:
        """Set the levels of a family's rules from what each further sandbox would save (claims per horizon)."""
        if b"\x01" not in (values[1:] > values[:-1]).tobytes():  # any() takes five times as long for so few
            levels: npt.NDArray[np.int64] = (-values).searchsorted(_NEGATED)
        else:  # the best total, since a second mode may or may not be worth the way to it
            gain = values.cumsum()[:, None] - _costs(len(values))
            best = gain.argmax(axis=0)
            levels = (best + 1) * (gain[best, _COLUMNS] > 0.0)
        wanted: list[int] = levels.tolist()
        if wanted != self._wanted[family]:
            first = family * A_FAMILY
            self._move(now, first, self._wanted[family], wanted)
            self._wanted[family] = wanted
            self.levels[first : first + A_FAMILY] = levels

    def _move(self, now: float, first: int, before: list[int], wanted: list[int]) -> None:
        """Order missing sandboxes, cancel surplus ones, the latest orders first. Constants never move."""
        # Mostly one or two rules move by one: plain numbers are faster here than numpy on all of them.
        ordered: list[tuple[int, int]] = []
        for rule, (now_wanted, was) in enumerate(zip(wanted, before, strict=True), first):
            if now_wanted > was:
                ordered.append((rule, now_wanted - was))
            elif now_wanted < was:
                self._cancel(now, rule, was - now_wanted)
        if ordered:
            ready_at = now + self.lead
            if not self._orders or self._orders[-1][0] != ready_at:  # else a claim of this tick has ordered, too
                self._orders.append((ready_at, np.zeros(len(self.levels))))
            order = self._orders[-1][1]
            for rule, more in ordered:
                order[rule] += more

    def _cancel(self, now: float, rule: int, surplus: float) -> None:
        """Cancel starts, then ready sandboxes. A cancelled start counts as idle since its order."""
        for ready_at, order in reversed(self._orders):
            cancelled = min(order.item(rule), surplus)
            if cancelled > 0.0:
                order[rule] -= cancelled
                self.idle[rule] += cancelled * max(now - ready_at + self.lead, 0.0)
                surplus -= cancelled
                if surplus <= 0.0:
                    return
        self._ready[rule] -= surplus

    def constant_idle(self, served: float, of_served: Floats | None = None, of_idle: Floats | None = None) -> float:
        """The idle time of the constant that serves as many claims, interpolated between two constants. By the tallies,
        or by others of all rules.

        With constants that served 90 and 100 claims with 10 and 20 s of idle time, 95 claims cost 15 s.
        """
        by_level = (self.served if of_served is None else of_served)[self.rules :]
        idle = (self.idle if of_idle is None else of_idle)[self.rules :]
        at = int(by_level.searchsorted(min(served, float(by_level[-1])) - 1e-9))
        if at == 0:
            return 0.0
        share = (served - by_level[at - 1]) / (by_level[at] - by_level[at - 1])
        return float(idle[at - 1] + min(share, 1.0) * (idle[at] - idle[at - 1]))

    @property
    def top(self) -> int:
        """The highest level that may soon be followed; rarer rules may be cut off at the end of the distribution."""
        return max(self._wanted[family][rule] for family, rule in self._watched)
