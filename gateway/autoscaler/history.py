"""Brings a Demand up to date from recorded claims: forecasters remember across restarts without a store of their own.

Two weeks of minutes teach the experts what the days look like (quarter hours, and minutes for the last three days);
the last hours' seconds are replayed as if live, so that mixture weights and shadow pools are learned again too. Quiet
runtimes go further back than busy ones: what their shadow pools know rests on few claims.
A busy runtime costs about a second, in slices, so the event loop is never held for more than a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.window import times_within

Buckets = Sequence[tuple[int, int]]  # (start, claims), oldest first
_QUIET_STEP_S = 600.0  # of time without claims that is observed in one step
_STEPS_A_SLICE = 16  # steps between yields
_MIN_LIVE_S, _MAX_LIVE_S = 2 * 3600.0, 6 * 3600.0  # seconds that are replayed as if live
_MAX_LIVE_BUCKETS = 3000  # busy seconds beyond which the least is enough


def _rebucketed(counts: Buckets, since: float, until: float, width: int) -> dict[int, int]:
    out: dict[int, int] = {}
    for start, claims in counts:
        if since <= start < until:
            at = start - start % width
            out[at] = out.get(at, 0) + claims
    return out


def live_since(seconds: Buckets, now: float) -> float:
    """From when on to replay single seconds: as far back as there are, but for a busy runtime two hours."""
    enough = float(seconds[-_MAX_LIVE_BUCKETS][0]) if len(seconds) >= _MAX_LIVE_BUCKETS else now - _MAX_LIVE_S
    return min(max(enough, now - _MAX_LIVE_S), now - _MIN_LIVE_S)


def _sound(counts: Buckets, now: float) -> Buckets:
    """What can have happened: a clock that was ahead leaves claims in the future, a damaged store leaves anything."""
    return [(start, claims) for start, claims in counts if claims > 0 and start < now]


def replay_history(
    demand: Demand, minutes: Buckets, seconds: Buckets, *, now: float, live_from: float
) -> Iterator[None]:
    """Teach `demand` all that came before `now`: minutes up to `live_from`, then seconds. Yields between slices."""
    minutes, seconds = _sound(minutes, now), _sound(seconds, now)
    first = min((start for start, _ in (*minutes[:1], *seconds[:1])), default=None)
    if first is None:
        return
    if first < live_from:
        yield from _learn_minutes(demand, minutes, float(first), live_from)
        at = live_from
    else:
        at = first - demand.tick
        demand.observe(at, 0, demand.tick)
    demand.forecast(at)
    steps = 0
    # Up to now, claims or not: a runtime that was busy five hours ago would else be as busy again after a restart.
    for end, claims in [*((start + 1.0, n) for start, n in seconds if start >= live_from), (now, 0)]:
        while demand.review_at < end:
            at = max(demand.review_at, at + demand.tick)
            if at >= end:
                break
            demand.observe(at, 0)
            demand.forecast(at)
            if (steps := steps + 1) % _STEPS_A_SLICE == 0:
                yield
        if claims:
            at = end
            demand.observe(end, claims, times=times_within(end - 1.0, claims))
            demand.forecast(end)
            if (steps := steps + 1) % _STEPS_A_SLICE == 0:
                yield


def _learn_minutes(demand: Demand, minutes: Buckets, first: float, until: float) -> Iterator[None]:
    """Teach the experts quarter hours, then from three days before the end on single minutes."""
    steps = 0
    recent = max(until - 3 * 86400.0, first)
    for width, since, end in ((900, first - 900.0, recent), (60, recent, until)):
        if end <= first:
            continue
        at = since
        for start, claims in [*sorted(_rebucketed(minutes, since, end, width).items()), (int(end), 0)]:
            bucket_end = min(float(start + width), end)
            while bucket_end - at > (width if claims else 0) + _QUIET_STEP_S:
                at += _QUIET_STEP_S
                demand.learn(at, _QUIET_STEP_S, 0)
                if (steps := steps + 1) % _STEPS_A_SLICE == 0:
                    yield
            if bucket_end > at:
                demand.learn(bucket_end, bucket_end - at, claims)
                at = bucket_end
            if (steps := steps + 1) % _STEPS_A_SLICE == 0:
                yield
