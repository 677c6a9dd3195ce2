"""What was forecast of one pool, and what came: an hour and more of both, for those who look at a chart. No I/O."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gateway.autoscaler.forecast import Floats, Forecast, quantile_of

BAND = (0.05, 0.95)  # nine of ten outcomes are within it if the forecasts are right
_MOST = 240  # points: an hour of a busy pool, four of one that is looked at once a minute
# Seconds between the starts of two windows. A busy pool makes a forecast a second, and 240 of those would be four
# minutes; one of 15 s costs a fifteenth as many readings of the whole distribution, which a decision does not need.
_APART_S = 15.0


class Point(NamedTuple):
    """One forecast and its outcome."""

    at: float  # epoch seconds: when the forecast was made
    horizon: float  # seconds after it that the forecast, its band and `came` are of
    expected: float  # claims
    low: float  # claims; fewer than this in one of twenty horizons
    high: float  # claims; more than this in one of twenty
    came: float  # claims within the horizon
    claims: float  # claims since the point before this one, within its horizon or not
    misses: float  # those of them that found no sandbox ready
    target: float  # sandboxes, when the horizon was over
    ready: float


class Outcomes:
    """The latest points of one pool. 240 of them are 19 KB, so a thousand busy pools 19 MB: floats in one array, as the
    same numbers in tuples are 340 bytes a point and four times that.
    """

    __slots__ = ("_claims", "_misses", "_numbers", "_open", "_since")

    def __init__(self) -> None:
        self._numbers = array("d")
        self._open: Point | None = None  # the window that now is: `came` grows
        self._claims = self._misses = 0  # since the last point
        self._since = -1e18  # when the last window began

    def count(self, now: float, claims: int, misses: int, times: Sequence[float], target: int, ready: int) -> None:
        """`claims` came since the last call, at `times` as far as those are known; ends a window that is over."""
        self._claims += claims
        self._misses += misses
        window = self._open
        if window is None:
            return
        if now < window.at:  # the clock was set back: what came within the horizon cannot be told
            self._open, self._since = None, -1e18
            return
        end = window.at + window.horizon
        if claims:
            # A tick comes up to a second after the end, which of a horizon of a second would count half as much again.
            late = sum(at > end for at in times) if now > end else 0
            window = self._open = window._replace(came=window.came + max(claims - late, 0))
        if now >= end:
            self._open = None
            done = window._replace(claims=self._claims, misses=self._misses, target=target, ready=ready)
            self._claims = self._misses = 0
            self._numbers.extend(done)
            del self._numbers[: -_MOST * len(Point._fields)]

    def forecast(self, made: Forecast, probabilities: Callable[[], Floats]) -> None:
        """A forecast was made: one of each 15 s begins a window, unless one is open. `probabilities` of 0, 1, 2, ...
        claims are read for that one alone.
        """
        if self._open is not None or 0.0 <= made.made_at - self._since < _APART_S:
            return
        of = probabilities()
        low, high = (quantile_of(of, share) for share in BAND)
        mean = float(sum(count * share for count, share in enumerate(of.tolist())))
        self._open = Point(made.made_at, made.horizon, mean, low, high, 0, 0, 0, 0, 0)
        self._since = made.made_at

    def points(self) -> list[Point]:
        """Oldest first; the window that is open is not among them."""
        width = len(Point._fields)
        return [Point(*self._numbers[start : start + width]) for start in range(0, len(self._numbers), width)]

    def document(self) -> dict[str, Any]:
        """For GET /v1/autoscaler/{runtime}/forecasts. Times are epoch seconds."""
        points = self.points()
        within = sum(point.low <= point.came <= point.high for point in points)
        return {
            "band": list(BAND),
            # Counts are whole: where few claims come the share is above nine tenths, as 0 may be 97 % by itself.
            "withinBand": round(within / len(points), 4) if points else None,
            "points": [{**point._asdict(), "expected": round(point.expected, 4)} for point in points],
        }
