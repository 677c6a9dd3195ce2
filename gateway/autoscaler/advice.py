"""Advice on single sessions, from how long sessions of a runtime stay idle: when to hibernate, when to wake ahead.

Waiting `d` seconds before hibernating costs min(gap, d) idle sandbox-seconds, plus a wake whenever the gap is longer
than d. With the gaps of the past the best d is read off directly. That is the ski-rental problem with a known
distribution (Karlin et al., "Competitive randomized algorithms for nonuniform problems", 1994), used as a keep-alive
policy with pre-warming window by Shahrad et al., "Serverless in the Wild" (ATC 2020). A session's own gaps count
beside those of its runtime's other sessions. `sessions` collects the gaps and, if settings say so, acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.autoscaler.forecast import Floats

_EDGES_S: Floats = np.logspace(0.0, 6.0, 73)  # seconds, 1 s to 11 days, 12 per decade
_MIN_GAPS = 50.0  # gaps before advice differs from the default
_GAP_RETENTION = 0.999  # of the past at each new gap: about the last thousand count
_RUNTIME_GAPS = 20.0  # gaps that the runtime's distribution counts for beside a session's own


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do with a session that has just become idle; times in seconds after its last activity."""

    hibernate_after: float
    wake_at: float | None  # None: wait for the request
    why: str
    stay: float = 0.0  # how long to stay awake for the request, once woken ahead


class GapHistogram:
    """Gaps between requests of one runtime's sessions. O(1) per gap, 73 numbers."""

    def __init__(self) -> None:
        self._counts: Floats = np.zeros(len(_EDGES_S) + 1)

    def observe(self, gap: float) -> None:
        """Count a gap of `gap` seconds, after which the session was used again."""
        self._counts *= _GAP_RETENTION
        self._counts[np.searchsorted(_EDGES_S, gap)] += 1.0

    @property
    def seen(self) -> float:
        """Number of gaps that still count, after forgetting."""
        return float(self._counts.sum())

    def advise(
        self,
        default: float,
        *,
        wake_cost: float,
        own: Sequence[float] = (),
        least: float = 5.0,
        prewake: bool = False,
        wake_time: float = 1.0,
    ) -> Advice:
        """Advice for a session.

        `default`: the runtime's timeout, also the longest wait advised. `wake_cost`: idle sandbox-seconds one wake
        is worth. `own`: this session's latest gaps. `prewake`: also look for a time at which the next request is so
        likely that waking ahead of it pays.
        """
        total = self.seen
        if total < _MIN_GAPS:
            return Advice(default, None, f"{total:.0f} idle gaps seen; it advises from {_MIN_GAPS:.0f} on")
        share = self._counts / total
        if own:
            mine = np.bincount(np.searchsorted(_EDGES_S, own), minlength=len(share))
            share = (_RUNTIME_GAPS * share + mine) / (_RUNTIME_GAPS + len(own))
        mids = np.concatenate(([0.5], np.sqrt(_EDGES_S[:-1] * _EDGES_S[1:]), [_EDGES_S[-1]]))
        # After waiting to edge i: gaps in bins <= i were sat out, the others cost the whole wait and a wake.
        sat_out = np.cumsum(share * mids)[:-1]
        longer = 1.0 - np.cumsum(share)[:-1]
        cost = sat_out + longer * (_EDGES_S + wake_cost)
        allowed = (least <= _EDGES_S) & (default >= _EDGES_S)
        if not allowed.any():
            return Advice(default, None, "the timeout is shorter than any advice")
        best = int(np.where(allowed, cost, np.inf).argmin())
        after = float(_EDGES_S[best])
        shorter = 1.0 - float(longer[best])
        why = f"{shorter:.0%} of idle gaps are shorter than {after:.0f} s; a wake is worth {wake_cost:.0f} s of idling"
        at, until = self._wake_between(share, best, wake_cost, wake_time) if prewake else (None, 0.0)
        return Advice(after, at, why, 0.0 if at is None else until - at)

    def _wake_between(
        self, share: Floats, after: int, wake_cost: float, wake_time: float
    ) -> tuple[float | None, float]:
        """The first bin beyond `after` in which the chance of the request pays for idling through the bin: when to wake
        for it, and its end.
        """
        left = 1.0 - float(share[: after + 1].sum())
        for i in range(after + 1, len(_EDGES_S)):
            if left <= 1e-9:
                break
            width = float(_EDGES_S[i] - _EDGES_S[i - 1])
            if float(share[i]) / left * wake_cost > width:
                return max(float(_EDGES_S[i - 1]) - wake_time, 0.0), float(_EDGES_S[i])
            left -= float(share[i])
        return None, 0.0
