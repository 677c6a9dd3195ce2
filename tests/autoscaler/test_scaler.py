"""decide() and the budget: limits, order, hysteresis, breaker, and a sentence that agrees with the numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.autoscaler.expectations import Expectations
from gateway.autoscaler.forecast import Forecast, quantile_of
from gateway.autoscaler.scaler import Observed, ScalerSpec, decide, share_budget
from gateway.core.model import PoolMode

NOW = 1000.0
SPEC = ScalerSpec(min=1, max=20, lower_after=0.0)


def foretold(level: int, **more: float) -> Forecast:
    return Forecast(
        NOW, 11.0, 0.5, 0.99, level, "quantile 0.99", observed=more.get("observed", 3600.0), alert=level + 4
    )


specs = st.builds(
    lambda low, room, lower: ScalerSpec(min=low, max=low + room, lower_after=lower),
    st.integers(0, 20), st.integers(0, 10) | st.integers(0, 100), st.sampled_from([0.0, 30.0]),
)  # fmt: skip
seen = st.builds(
    Observed,
    target=st.integers(0, 200),
    recent_claims=st.integers(0, 200),
    recent_misses=st.integers(0, 50),
    failures=st.integers(0, 10),
    lower_since=st.none() | st.floats(0.0, 2000.0),
    lower_to=st.integers(0, 200),
    tried_at=st.none() | st.floats(0.0, 2000.0),
)
forecasts = st.none() | st.builds(
    lambda at, level: foretold(level)._replace(made_at=at), st.floats(0.0, 2000.0), st.integers(0, 300)
)


@given(specs, seen, forecasts)
@example(ScalerSpec(min=2, max=5), Observed(3), foretold(6))
@example(ScalerSpec(min=2, max=5), Observed(3), foretold(1))
@example(ScalerSpec(min=2, max=5), Observed(9, recent_claims=9), None)
def test_decision_stays_within_limits(spec: ScalerSpec, observed: Observed, forecast: Forecast | None) -> None:
    """Whatever is seen and foretold, the target lies within [min, max], and there is a sentence about it."""
    decision = decide(spec, observed, forecast, NOW)

    assert spec.min <= decision.target <= spec.max
    assert decision.why.endswith(".")


@given(specs, seen, st.integers(0, 300), st.integers(0, 300))
def test_decision_is_monotone_in_the_level(spec: ScalerSpec, observed: Observed, one: int, other: int) -> None:
    """A higher quantile, so a higher level, never gives a lower target."""
    low, high = sorted((one, other))

    assert decide(spec, observed, foretold(low), NOW).target <= decide(spec, observed, foretold(high), NOW).target


@given(
    specs,
    seen,
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40),
    st.floats(0.01, 0.9999),
    st.floats(0.01, 0.9999),
)
def test_decision_is_monotone_in_the_quantile(
    spec: ScalerSpec, observed: Observed, weights: list[float], one: float, other: float
) -> None:
    """Of any distribution, a higher quantile never gives a lower level, nor a lower target.

    The surge guard is left out: it answers to a level that has failed, so the lower level of two may fail, and the
    pool then go up beyond what the higher one asks for.
    """
    observed = observed._replace(recent_misses=0)
    probabilities = np.array(weights) / max(sum(weights), 1e-9)
    low, high = (quantile_of(probabilities, q) for q in sorted((one, other)))

    assert low <= high
    assert decide(spec, observed, foretold(low), NOW).target <= decide(spec, observed, foretold(high), NOW).target


@given(st.integers(0, 20), st.sampled_from([0.0, 30.0]))
def test_decision_does_not_flap_on_constant_demand(level: int, lower_after: float) -> None:
    """With one forecast for ever, the target changes at most once after the first step."""
    spec = replace(SPEC, lower_after=lower_after)
    observed = Observed(target=7)
    targets = []
    for tick in range(120):
        now = NOW + tick
        decision = decide(spec, observed, foretold(level)._replace(made_at=now), now)
        observed = Observed(decision.target, lower_since=decision.lower_since, lower_to=decision.lower_to)
        targets.append(decision.target)

    assert sum(a != b for a, b in itertools.pairwise(targets)) <= 1
    assert targets[-1] == max(level, 1)


def test_decision_steps_up_at_once_and_down_late() -> None:
    """A rise is followed in the same tick; a fall when it has stood for `lower_after`, to the highest level since."""
    spec = replace(SPEC, lower_after=30.0)
    assert decide(spec, Observed(2), foretold(9), NOW).target == 9

    waiting = decide(spec, Observed(9), foretold(2), NOW)
    assert (waiting.target, waiting.rule, waiting.lower_since) == (9, "hold", NOW)
    later = decide(spec, Observed(9, lower_since=NOW - 31.0, lower_to=4), foretold(2), NOW)
    assert later.target == 4


def test_decision_without_forecast_keeps_what_claims_needed() -> None:
    """A stale or absent forecast falls back to the claims of the last horizon."""
    for forecast in (None, foretold(15)._replace(made_at=NOW - 500.0), foretold(15)._replace(made_at=NOW + 500.0)):
        decision = decide(SPEC, Observed(3, recent_claims=5), forecast, NOW)
        assert (decision.target, decision.rule) == (6, "fallback")


def test_decision_holds_the_starting_size_while_learning() -> None:
    """A runtime that has just begun keeps warmPoolSize, not what a forecaster without data believes."""
    decision = decide(replace(SPEC, fixed=3), Observed(3), foretold(15, observed=20.0), NOW)

    assert (decision.target, decision.rule) == (3, "learning")


def test_decision_follows_a_surge() -> None:
    """Claims beyond the level that found the pool empty lift it to what came, or what is expected to follow."""
    decision = decide(SPEC, Observed(2, recent_claims=10, recent_misses=4), foretold(2), NOW)

    assert (decision.target, decision.rule) == (10, "surge")


def test_decision_scales_to_zero_where_min_allows() -> None:
    """A level of 0 is a target of 0 with min 0, and min otherwise."""
    assert decide(replace(SPEC, min=0), Observed(3), foretold(0), NOW).target == 0
    assert decide(SPEC, Observed(3), foretold(0), NOW).target == 1


def test_breaker_lets_one_try_through_per_cooldown() -> None:
    """Ten minutes of failing creates with a want of 20: at most one order per 30 seconds, with the error shown."""
    spec = ScalerSpec(min=0, max=20)
    observed = Observed(target=2, failures=5, last_error="no space left on device")
    raises, decision = 0, None
    for second in range(600):
        now = NOW + second
        decision = decide(spec, observed, foretold(20)._replace(made_at=now), now)
        raises += decision.target > observed.target
        # The provider shows what it is left with: the try failed, the target is given back.
        observed = observed._replace(target=2, tried_at=decision.tried_at)

    assert decision is not None
    assert decision.rule == "breaker"
    assert "no space left on device" in decision.why
    assert raises <= 21


def test_breaker_does_not_stop_a_pool_from_shrinking() -> None:
    """Failing creates do not keep a pool larger than demand needs."""
    assert decide(SPEC, Observed(9, failures=8), foretold(2), NOW).target == 2


def test_fixed_mode_is_fixed() -> None:
    """Mode fixed follows its size, whatever is foretold."""
    assert decide(replace(SPEC, mode=PoolMode.FIXED, fixed=4), Observed(1), foretold(12), NOW).target == 4


@given(st.dictionaries(st.integers(0, 8), st.tuples(st.integers(0, 30), st.integers(0, 3))), st.integers(0, 100))
def test_budget_is_kept(pools: dict[int, tuple[int, int]], budget: int) -> None:
    """The sum stays within the budget, except for floors; no pool gets more than wanted nor less than its floor."""
    wanted = {key: want for key, (want, _) in pools.items()}
    floors = {key: min(floor, want) for key, (want, floor) in pools.items()}
    given_ = share_budget(budget, wanted, floors, {key: [1.0 / (n + 1) for n in range(40)] for key in wanted})

    assert sum(given_.values()) <= max(budget, sum(floors.values()))
    assert all(floors[key] <= given_[key] <= wanted[key] for key in wanted)
    assert sum(given_.values()) == sum(wanted.values()) or sum(given_.values()) >= min(budget, sum(wanted.values()))


def test_budget_goes_where_it_is_worth_most() -> None:
    """Of two pools that want five each, the busy one keeps more."""
    shared = share_budget(5, {"busy": 5, "quiet": 5}, {}, {"busy": [9, 8, 7, 6, 5], "quiet": [6.5, 0.1, 0.1, 0.1, 0.1]})

    assert shared == {"busy": 4, "quiet": 1}


def test_expectations_keep_slow_creates_from_being_ordered_twice() -> None:
    """A provider that shows its old target for a while gets one order, and another after the expiry."""
    expectations: Expectations[str] = Expectations(expiry=60.0)
    orders = []
    for second in range(100):
        if expectations.should_order("pool", 5, 2, NOW + second):
            expectations.ordered("pool", 5, NOW + second)
            orders.append(second)

    assert orders == [0, 60]
    assert not expectations.should_order("pool", 5, 5, NOW + 101.0)
