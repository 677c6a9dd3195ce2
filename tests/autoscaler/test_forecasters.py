"""Forecasters are calibrated on processes whose laws are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gateway.autoscaler.demand import make_experts
from gateway.autoscaler.empirical import FastSlow, RollingQuantile
from gateway.autoscaler.exciting import SelfExciting
from gateway.autoscaler.forecast import (
    Floats,
    Forecaster,
    negative_binomial,
    pinball,
    quantile_of,
    values_of_stock,
)
from gateway.autoscaler.mixture import Mixture
from gateway.autoscaler.rates import RATES, RateBelief, erlang_values, poisson_table
from gateway.autoscaler.seasonal import Timers, WeekProfile
from gateway.autoscaler.window import RollingCount
from tests.support.autoscaler import poisson

HORIZON = 10.0


def coverage(expert: Forecaster, arrivals: Floats, span: float, q: float, count: RollingCount | None = None) -> float:
    """The share of horizons in the second half with no more claims than the q quantile foretold at their start."""
    per_tick = np.bincount((arrivals // HORIZON).astype(int), minlength=int(span / HORIZON))
    covered = []
    for i, claims in enumerate(per_tick.tolist()):
        now = (i + 1) * HORIZON
        if i > len(per_tick) // 2:
            foretold = quantile_of(expert.probabilities(now - HORIZON, HORIZON, 128), q)
            covered.append(claims <= foretold)
        if count is not None:
            count.add(now, claims)
        expert.observe(now, HORIZON, claims)
    return float(np.mean(covered))


def gamma_poisson(span: float) -> Floats:
    """A rate that is drawn anew each minute: negative binomial counts, variance five times the mean or so."""
    rng = np.random.default_rng(5)
    return np.concatenate([60.0 * i + poisson(rng.gamma(1.0, 0.4), 60.0, 100 + i) for i in range(int(span / 60.0))])


def on_off(span: float) -> Floats:
    """Ten minutes at a claim a second, twenty without claims."""
    return np.concatenate([1800.0 * i + poisson(1.0, 600.0, i) for i in range(int(span / 1800.0))])


def wave(span: float) -> Floats:
    """A rate that goes from a claim in twenty seconds to fifteen and back within an hour."""
    at = poisson(0.8, span, 9)
    return at[np.random.default_rng(9).random(len(at)) * 0.8 < 0.4 + 0.35 * np.sin(2.0 * np.pi * at / 3600.0)]


LAWS = [lambda span: poisson(0.3, span), gamma_poisson, wave, on_off]
NAMES = ["poisson", "negative-binomial", "periodic", "on-off"]


@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_rate_belief_covers_what_it_promises(law: Callable[[float], Floats]) -> None:
    """The 98 % quantile covers about 98 % of horizons, whether the rate is steady, random, a wave or switched."""
    span = 86400.0

    assert 0.965 <= coverage(RateBelief(), law(span), span, 0.98) <= 0.995


@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_mixture_covers_what_it_promises(law: Callable[[float], Floats]) -> None:
    """All experts together, weighed by what they lost, are no worse calibrated than the best of them."""
    span, count = 43200.0, RollingCount(HORIZON)

    class Weighed(Mixture):
        def observe(self, now: float, elapsed: float, claims: int) -> None:
            super().observe(now, elapsed, claims)
            self.values(now, HORIZON, 128, 0.97)

    mixture = Weighed(RateBelief(), make_experts(count, 1.0))

    assert 0.955 <= coverage(mixture, law(span), span, 0.97, count) <= 0.998  # type: ignore[arg-type]


def test_rate_belief_does_not_promise_too_much_stock() -> None:
    """On steady Poisson claims its quantile is Poisson's own or one more."""
    expert = RateBelief()
    coverage(expert, poisson(0.3, 86400.0), 86400.0, 0.98)

    foretold = quantile_of(expert.probabilities(86400.0, HORIZON, 64), 0.98)
    exact = quantile_of(poisson_table(HORIZON, 64)[int(np.abs(RATES - 0.3).argmin())], 0.98)

    assert foretold - exact in (0, 1)


def test_rolling_quantile_is_calibrated_on_bursts() -> None:
    """Counts of the last hour foretell the next horizon of an over-dispersed process."""
    count = RollingCount(HORIZON)

    assert 0.95 <= coverage(RollingQuantile("h", 3600.0, count), gamma_poisson(43200.0), 43200.0, 0.97, count) <= 0.99


def test_fast_slow_learns_dispersion() -> None:
    """Over-dispersed claims are covered, because the dispersion is learned from its own errors."""
    assert 0.96 <= coverage(FastSlow(), gamma_poisson(43200.0), 43200.0, 0.98) <= 1.0


def test_week_profile_forecasts_the_busy_hour() -> None:
    """After some days, the hour that is always busy is foretold in the quiet before it."""
    expert = WeekProfile()
    for day in range(8):
        for quarter in range(96):
            expert.observe(day * 86400.0 + quarter * 900.0 + 1.0, 900.0, 450 if quarter in (40, 41, 42, 43) else 2)
    quiet, busy = 8 * 86400.0 + 39 * 900.0, 8 * 86400.0 + 40 * 900.0

    assert quantile_of(expert.probabilities(quiet, HORIZON, 64), 0.9) <= 1
    assert quantile_of(expert.probabilities(busy, HORIZON, 64), 0.5) >= 4


def test_timers_foresee_the_next_batch() -> None:
    """Ten claims every five minutes: nothing is foretold in between, all ten a horizon before; and it says when."""
    expert = Timers(HORIZON)
    for batch in range(20):
        expert.observe(300.0 * batch, 1.0, 10)
    last = 300.0 * 19

    assert quantile_of(expert.probabilities(last + 150.0, HORIZON, 64), 0.9) == 0
    assert quantile_of(expert.probabilities(last + 291.0, HORIZON, 64), 0.9) == 10
    assert expert.review_by(last + 20.0, HORIZON) == pytest.approx(last + 290.0)


def test_timers_forecast_nothing_on_random_gaps() -> None:
    """Poisson claims contain no timer, so no earlier tick is asked for."""
    expert = Timers(HORIZON)
    now = 0.0
    for at in poisson(1 / 60, 50000.0).tolist():
        now = at
        expert.observe(at, 1.0, 1)

    assert expert.review_by(now, HORIZON) == float("inf")


def test_distributions_sum_to_one() -> None:
    """Every expert's probabilities add up to one when the array is long enough."""
    count = RollingCount(HORIZON)
    experts: list[Forecaster] = [
        RateBelief(), RollingQuantile("h", 3600.0, count), FastSlow(), WeekProfile(), Timers(HORIZON),
    ]  # fmt: skip
    for at in range(1, 400):
        count.add(at * 10.0, at % 3)
        for expert in experts:
            expert.observe(at * 10.0, 10.0, at % 3)

    for expert in experts:
        assert expert.probabilities(4000.0, HORIZON, 512).sum() == pytest.approx(1.0, abs=0.02), expert.name


def test_negative_binomial_has_its_moments() -> None:
    """Mean and variance are what was asked for."""
    p = negative_binomial(4.0, 3.0, 400)
    k = np.arange(400)
    mean = float(p @ k)

    assert mean == pytest.approx(4.0, rel=1e-6)
    assert float(p @ (k - mean) ** 2) == pytest.approx(4.0 * 4.0, rel=1e-6)


def test_values_of_stock_come_close_to_erlang() -> None:
    """For Poisson claims the stock chosen from the distribution is the one chosen by Erlang's formula, within one."""
    for i in (20, 30, 40, 50):
        exact, found = erlang_values(HORIZON, 64)[i], values_of_stock(poisson_table(HORIZON, 64)[i])
        for threshold in (0.1, 0.01, 0.001):
            assert abs(int((exact > threshold).sum()) - int((found > threshold).sum())) <= 1


def test_pinball_is_least_at_the_quantile() -> None:
    """Mean pinball loss over a sample has its minimum at the sample's quantile."""
    sample = np.random.default_rng(1).poisson(6.0, 4000)
    losses = [np.mean([pinball(guess, seen, 0.95) for seen in sample]) for guess in range(20)]

    assert int(np.argmin(losses)) == int(np.quantile(sample, 0.95, method="higher"))


def test_mixture_gives_weight_to_the_expert_that_knows() -> None:
    """On batches from a timer the timer expert ends with most of the weight."""
    timers = Timers(HORIZON)
    mixture = Mixture(RateBelief(), [FastSlow(), timers])
    now = 0.0
    for step in range(1, 12000):
        now = step * 5.0
        mixture.observe(now, 5.0, 10 if step % 60 == 0 else 0)
        mixture.values(now, HORIZON, 64, 0.95)

    assert max(mixture.shares().items(), key=lambda item: item[1])[0] == "timers"
    assert sum(mixture.shares().values()) == pytest.approx(1.0, abs=0.01)


def test_last_day_is_remembered_by_the_minute() -> None:
    """A busy runtime's day is 1,440 samples, each for the time since the one before."""
    count = RollingCount(10.0)
    expert = RollingQuantile("last day", 86400.0, count)
    for second in range(0, 2 * 86400, 5):
        count.add(float(second), 1)
        expert.observe(float(second), 5.0, 1)

    assert len(expert._samples) <= 1441
    assert expert.probabilities(2 * 86400.0, 10.0, 8)[2] == pytest.approx(1.0, abs=0.01)


def test_bursts_expert_is_calibrated_and_expects_more_after_a_burst() -> None:
    """On steady claims its mean is theirs; where claims bring claims it expects several times as many after some."""
    steady, horizon = SelfExciting(), 10.0
    for second, claims in enumerate(np.random.default_rng(1).poisson(0.2, 20000).tolist()):
        steady.observe(second + 1.0, 1.0, claims)
    mean = float(steady.probabilities(20000.0, horizon, 64) @ np.arange(64))
    assert mean == pytest.approx(2.0, rel=0.35)

    bursts = SelfExciting()
    rng = np.random.default_rng(2)
    for _ in range(60):
        bursts.observe(0.0, 300.0, 0)
        for claims in rng.poisson(0.8, 20).tolist():
            bursts.observe(0.0, 1.0, claims)
    during = float(bursts.probabilities(0.0, horizon, 64) @ np.arange(64))
    bursts.observe(0.0, 300.0, 0)
    after = bursts.probabilities(0.0, horizon, 64)
    assert during > 4.0 * float(after @ np.arange(64))
    assert after.sum() == pytest.approx(1.0, abs=1e-3)
