"""Replays the idle gaps of sessions: advice on hibernating and waking ahead, beside fixed timeouts.

A policy decides how long a session that has become idle keeps its sandbox, and may wake it again before its next
request. What it costs are idle sandbox-seconds; what it spares are requests that wait for a wake. One number for both
needs a price of a wait (`wake_cost`), so the frontier is drawn over several.
"""

from __future__ import annotations

import csv
import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.autoscaler.advice import GapHistogram
from gateway.core.errors import BadRequestError

Gap = tuple[float, str, float]  # (when it began, session, seconds until the next request)
TIMEOUTS_S = (60.0, 300.0, 900.0, 1800.0)
WAKE_COSTS_S = (10.0, 30.0, 100.0, 300.0, 1000.0)
_LEAST_GAP_S = 1.0  # shorter ones are within a task; as sessions.py counts them
_OWN_GAPS = 32  # a session's latest, as sessions.py remembers them


@dataclass(frozen=True, slots=True)
class GapCost:
    """What one policy has cost, of all gaps after the warm-up."""

    policy: str
    gaps: int
    idle: float  # sandbox-seconds
    waits: int  # requests that waited for a wake
    wakes: int  # sandboxes started again, waited for or ahead


def fixed_timeout(gaps: Sequence[Gap], timeout: float, *, warm_up: float = 0.3) -> GapCost:
    """Hibernate after `timeout` seconds."""
    scored = [seconds for _, _, seconds in gaps[int(warm_up * len(gaps)) :]]
    waits = sum(seconds > timeout for seconds in scored)
    return GapCost(f"{timeout / 60.0:g} min", len(scored), sum(min(each, timeout) for each in scored), waits, waits)


def advised(
    gaps: Sequence[Gap], wake_cost: float, *, timeout: float = 1800.0, prewake: bool = False, warm_up: float = 0.3
) -> GapCost:
    """Hibernate, and with `prewake` wake, when GapHistogram advises it, at the latest after `timeout` seconds.

    A gap is learned when it ends: until then nobody knows how long it is.
    """
    histogram, own = GapHistogram(), dict[str, deque[float]]()
    running: list[tuple[float, str, float]] = []  # (ends at, session, seconds)
    idle, waits, wakes, first = 0.0, 0, 0, int(warm_up * len(gaps))
    for number, (began, session, seconds) in enumerate(gaps):
        while running and running[0][0] <= began:
            _, ended, length = heapq.heappop(running)
            histogram.observe(length)
            own.setdefault(ended, deque(maxlen=_OWN_GAPS)).append(length)
        heapq.heappush(running, (began + seconds, session, seconds))
        if number < first:
            continue
        advice = histogram.advise(timeout, wake_cost=wake_cost, own=tuple(own.get(session, ())), prewake=prewake)
        after, ahead = advice.hibernate_after, advice.wake_at
        idle += min(seconds, after)
        if seconds <= after:
            continue
        wakes += 1
        if ahead is None or seconds <= ahead:
            waits += 1
            continue
        # Awake again before the request, and asleep again if it does not come for as long as before.
        stay = max(after, advice.stay)
        idle += min(seconds - ahead, stay)
        if seconds - ahead > stay:
            waits, wakes = waits + 1, wakes + 1
    name = f"advice, wake worth {wake_cost:g} s" + (", wakes ahead" if prewake else "")
    return GapCost(name, len(gaps) - first, idle, waits, wakes)


def frontier(gaps: Sequence[Gap]) -> list[GapCost]:
    """Fixed timeouts, then advice at each price of a wait, then the same with waking ahead."""
    fixed = [fixed_timeout(gaps, timeout) for timeout in TIMEOUTS_S]
    return fixed + [advised(gaps, cost, prewake=ahead) for ahead in (False, True) for cost in WAKE_COSTS_S]


def idle_at_equal_waits(costs: Iterable[GapCost], waits: int) -> float:
    """Idle time of the fixed timeouts, mixed in time, that let as many requests wait."""
    points = sorted((each.waits, each.idle) for each in costs if each.policy.endswith(" min"))
    return float(np.interp(waits, [at for at, _ in points], [idle for _, idle in points]))


def table(name: str, costs: Sequence[GapCost]) -> str:
    """One law's frontier as a Markdown table."""
    head = ("policy", "idle s per gap", "requests that wait", "wakes per gap", "idle of fixed timeouts, equal waits")
    lines = [
        f"**{name}**, {costs[0].gaps} gaps",
        "",
        "| " + " | ".join(head) + " |",
        ("| " + "--- | " * len(head)).rstrip(),
    ]
    most, least = max(each.waits for each in costs[:4]), min(each.waits for each in costs[:4])
    for each in costs:
        base = idle_at_equal_waits(costs, each.waits)
        share = f"{each.idle / base:.2f}" if least <= each.waits <= most and base > 0.0 else "-"
        waits, wakes = each.waits / each.gaps, each.wakes / each.gaps
        lines.append(f"| {each.policy} | {each.idle / each.gaps:.1f} | {waits:.1%} | {wakes:.2f} | {share} |")
    return "\n".join(lines)


def read_gaps(path: Path) -> list[Gap]:
    """Gaps of a file with the header `session,at`: the times of requests in seconds. Raises BadRequestError."""
    last: dict[str, float] = {}
    found: list[Gap] = []
    try:
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    session, at = row["session"], float(row["at"])
                    if not math.isfinite(at):
                        raise ValueError
                except (KeyError, TypeError, ValueError):
                    raise BadRequestError(f"{path}:{number}: expected session,at with a time in seconds") from None
                if session in last and at - last[session] >= _LEAST_GAP_S:
                    found.append((last[session], session, at - last[session]))
                last[session] = max(at, last.get(session, at))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadRequestError(f"{path}: cannot be read ({error})") from error
    if not found:
        raise BadRequestError(f"{path}: holds no session with two requests")
    return sorted(found)


def made_gaps(law: str, sessions: int = 300, seed: int = 1) -> list[Gap]:
    """Gaps by a known law. `chat`: think times around 25 s, one in eight a pause of an hour or so; `office`: some
    minutes by day, a night in between; `agent`: a timer of ten minutes; `mixed`: sessions of all three.
    """
    rng = np.random.default_rng(seed)
    found: list[Gap] = []
    for number in range(sessions):
        kind = ("chat", "office", "agent")[number % 3] if law == "mixed" else law
        at = float(rng.random() * 3600.0)
        for _ in range(60):
            if kind == "chat":
                gap = float(rng.lognormal(3.2, 0.9) if rng.random() > 0.125 else rng.lognormal(8.2, 0.8))
            elif kind == "office":
                gap = float(rng.lognormal(5.0, 1.0) if rng.random() > 0.1 else 50_400.0 + 3600.0 * rng.normal())
            elif kind == "agent":
                gap = float(abs(600.0 + 5.0 * rng.normal()))
            else:
                raise BadRequestError(f"gaps of {law!r} are not known; there are {', '.join(LAWS)}")
            gap = max(gap, _LEAST_GAP_S)
            found.append((at, f"s{number}", gap))
            at += gap
    return sorted(found)


LAWS = ("chat", "office", "agent", "mixed")
