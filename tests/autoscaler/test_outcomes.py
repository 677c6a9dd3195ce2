"""Forecasts beside what came: windows of one horizon, counted to the moment, bounded, and right nine times of ten."""

from __future__ import annotations

from itertools import pairwise

import httpx
import numpy as np
import pytest

from gateway.autoscaler.forecast import Forecast, negative_binomial
from gateway.autoscaler.outcomes import Outcomes
from gateway.autoscaler.pool import Pool
from gateway.autoscaler.settings import AutoscalerSettings
from tests.support.autoscaler import poisson, runtime
from tests.support.scripted import OpenScripted
from tests.support.waiting import eventually

START = 1e9


def made(at: float, horizon: float = 10.0) -> Forecast:
    return Forecast(at, horizon, 0.0, 0.9, 1, "")


def begin(outcomes: Outcomes, at: float, horizon: float = 10.0) -> None:
    outcomes.forecast(made(at, horizon), lambda: negative_binomial(3.0, 0.5, 40))


def test_nine_of_ten_outcomes_lie_within_the_band_of_steady_claims() -> None:
    """A Poisson process of a claim every five seconds: the mean is right, and so is the band, which is no wider."""
    pool = Pool.make(runtime(), AutoscalerSettings(default_lead=10.0), None)
    pool.restored = True
    times = poisson(0.2, 3 * 3600.0)
    for second in range(3 * 3600):
        within = times[(times > second - 1) & (times <= second)] + START
        pool.tick(START + second, len(within), 0, times=within.tolist())
    points = pool.outcomes.points()
    document = pool.outcomes.document()
    assert len(points) == 240, "no more are kept"
    assert all(after.at - before.at >= 15.0 for before, after in pairwise(points))
    assert {point.horizon for point in points} == {10.5}
    assert np.mean([point.came for point in points]) == pytest.approx(2.1, rel=0.15)
    assert np.mean([point.expected for point in points]) == pytest.approx(2.1, rel=0.15)
    assert 0.87 <= document["withinBand"] <= 0.99
    assert max(point.high for point in points) <= 8, "the band of two claims in ten seconds is a few claims wide"
    # Each claim is in one point's `claims`, whether or not a window was open when it came.
    last, first = points[-1], points[0]
    total = np.sum((times + START > first.at + 10.5) & (times + START <= last.at + 10.5))
    assert sum(point.claims for point in points[1:]) == pytest.approx(total, abs=5)


def test_claims_after_the_horizon_are_not_counted_to_it() -> None:
    """A tick comes later than a window ends: by their times two of three claims are in it."""
    outcomes = Outcomes()
    begin(outcomes, START)
    outcomes.count(START + 5.0, 1, 0, [START + 4.0], 2, 1)
    outcomes.count(START + 10.9, 2, 1, [START + 9.0, START + 10.5], 3, 2)
    (point,) = outcomes.points()
    assert (point.came, point.claims, point.misses, point.target, point.ready) == (2, 3, 1, 3, 2)
    assert (point.low, point.high) == (0, 7)


def test_only_a_forecast_in_fifteen_seconds_is_read() -> None:
    """The whole distribution costs more than a decision needs, so it is asked for by those that are kept alone."""
    outcomes, asked = Outcomes(), 0

    def ask() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        nonlocal asked
        asked += 1
        return np.array([1.0])

    for second in range(60):
        outcomes.count(START + second, 0, 0, (), 0, 0)
        outcomes.forecast(made(START + second, 2.0), ask)
    assert asked == 4


def test_window_over_which_the_clock_was_set_back_is_dropped() -> None:
    """What came within it cannot be told; the next forecast begins a new one at once."""
    outcomes = Outcomes()
    begin(outcomes, START)
    outcomes.count(START - 3600.0, 5, 0, (), 1, 1)
    begin(outcomes, START - 3600.0)
    outcomes.count(START - 3590.0, 1, 0, (), 1, 1)
    (point,) = outcomes.points()
    assert (point.at, point.came, point.claims) == (START - 3600.0, 1, 6)
    assert outcomes.document()["withinBand"] == 1.0


async def test_forecasts_are_answered_for_a_runtime_and_404_for_others(open_gateway: OpenScripted) -> None:
    """By name; before the first window is over there is no share. Parameters that are not known are refused."""
    served, _ = await open_gateway()
    await eventually(
        lambda: any(pool.decision is not None for pool in served.gateway.autoscaler.pools.values()), "looked at"
    )
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        answer = await client.get("/v1/autoscaler/my-interpreter/forecasts?namespace=default&kind=CodeInterpreter")
        assert answer.status_code == 200, answer.text
        assert answer.json()["band"] == [0.05, 0.95]
        for path, status in (("none/forecasts", 404), ("my-interpreter/forecasts?namespce=x", 400)):
            assert (await client.get(f"/v1/autoscaler/{path}")).status_code == status
