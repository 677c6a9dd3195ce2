"""Steps, bursts, silences and set clocks in virtual time: what the whole loop makes of them, hours later too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.follower import Objective
from gateway.autoscaler.rates import RateBelief, prior_from
from gateway.autoscaler.replay.pool import Targets, simulate
from gateway.autoscaler.replay.scenarios import (
    BATCH,
    BURST_BEYOND_MAX,
    CLOCK_BACK,
    LOOSE_TARGET,
    QUICK_STARTS,
    RESTART_BUSY,
    RESTART_SILENT,
    SILENCE,
    STEP,
    STOP,
    Scenario,
    play,
)
from gateway.autoscaler.shadow import Shadow
from tests.support.autoscaler import poisson

pytestmark = pytest.mark.simulation


FLAPPING = tuple((7200.0 + 20.0 * step, 3.0 if step % 2 else -3.0) for step in range(180))


@pytest.mark.parametrize(
    "steps",
    [
        ((7200.0, -600.0),),
        ((7200.0, 1800.0),),
        ((7200.0, -86400.0),),
        ((7200.0, -1.7e9), (9000.0, 1.7e9)),
        FLAPPING,
    ],
    ids=["back", "forward", "a day back", "to 1970 and back", "to and fro by seconds"],
)
def test_clock_that_is_set_does_not_move_the_pool(steps: tuple[tuple[float, float], ...]) -> None:
    """Four hours from the step on, the pool is where it would be if the clock had been left alone."""
    alone = play(replace(CLOCK_BACK, clock=()))
    after_a_step = play(replace(CLOCK_BACK, clock=steps))

    for hour in range(2, 6):
        expected = alone.mean_target(hour * 3600.0, (hour + 1) * 3600.0)
        assert after_a_step.mean_target(hour * 3600.0, (hour + 1) * 3600.0) == pytest.approx(expected, rel=0.1)
    assert after_a_step.targets.levels.max() <= alone.targets.levels.max() + 2


def test_burst_beyond_the_maximum_is_given_up_when_nobody_comes() -> None:
    """While it lasts the pool is as large as may be; some hours later nothing is held, and the price stays bounded."""
    played = play(BURST_BEYOND_MAX)
    burst_ends = 4200.0

    assert played.target_at(burst_ends) >= 500
    released = played.released_after(burst_ends, 5)
    assert released is not None
    assert released < 2.5 * 3600.0
    assert played.mean_target(burst_ends + 2.5 * 3600.0, BURST_BEYOND_MAX.span) <= 5.0


def test_target_is_a_share_of_what_the_maximum_could_serve() -> None:
    """Twice as many claims as the maximum can serve, for hours: it holds the maximum, and no miss is too many."""
    crowd = replace(BURST_BEYOND_MAX, phases=((7200.0, 1.0),), scored_from=3600.0, most=5)

    assert play(crowd).mean_target(3600.0, 7200.0) >= 4.9


def test_surge_guard_stays_while_the_surge_does() -> None:
    """From .1 to 50 claims a second: once the pool has caught up it is not let go under full load."""
    played = play(STEP)

    assert played.outcome.hit_rate >= 0.99
    since = STEP.scored_from
    assert min(played.target_at(since + second) for second in range(500)) >= 500


@pytest.mark.parametrize(
    ("lead", "rate", "most"), [(0.25, 20.0, 1000), (1.0, 20.0, 1000), (60.0, 5.0, 1000), (10.0, 5.0, 30)]
)
def test_step_is_met_at_other_leads_and_maxima(lead: float, rate: float, most: int) -> None:
    """From .1 claims a second to many: three lead times later nothing misses that the maximum can serve, and twice the
    claims of a lead time, or an empty pool's first guess, are the most that is held.
    """
    begins = 1800.0 + max(3.0 * lead, 6.0)
    step = replace(STEP, phases=((1800.0, 0.1), (400.0, rate)), lead=lead, most=most, scored_from=begins)
    played = play(step)

    needed = rate * (lead + 1.0)
    if needed < most:
        assert played.outcome.hit_rate >= 0.99
        assert played.targets.levels.max() <= 2.0 * needed + 40.0
    else:
        assert played.mean_target(begins, step.span) >= 0.95 * most


@pytest.mark.parametrize(
    "scenario",
    [
        replace(STOP, phases=((900.0, 3.0), (7200.0, 0.0)), scored_from=900.0, lead=60.0),
        replace(STOP, phases=((900.0, 10.0), (7200.0, 0.0)), scored_from=900.0, lead=0.25),
        replace(SILENCE, phases=((5.0, 0.0), (1.0, 1.0), (7200.0, 0.0)), lead=60.0),
        replace(BURST_BEYOND_MAX, phases=((1800.0, 0.05), (300.0, 5.0), (14400.0, 0.0)), scored_from=1800.0, most=5),
        replace(
            BURST_BEYOND_MAX,
            phases=((1800.0, 0.05), (300.0, 5.0), (14400.0, 0.0)),
            scored_from=1800.0,
            most=100,
            lead=60.0,
        ),
        replace(BATCH, phases=((1800.0, 0.02), (1.0, 10_000.0), (7200.0, 0.0)), scored_from=1800.0),
        replace(BATCH, phases=((1800.0, 0.02), (1.0, 10_000.0), (7200.0, 0.0)), scored_from=1800.0, most=20, lead=0.25),
        RESTART_SILENT,
        replace(RESTART_SILENT, lead=60.0),
    ],
    ids=lambda scenario: f"{scenario.name}, lead {scenario.lead:g}, max {scenario.most}",
)
def test_pool_is_given_up_when_nobody_comes(scenario: Scenario) -> None:
    """Whatever came before, at other leads and maxima too: in the last half hour nothing is held."""
    assert play(scenario).mean_target(scenario.span - 1800.0, scenario.span) < 0.05


def test_gateway_that_starts_anew_among_claims_goes_on_as_before() -> None:
    """Two claims a second before and after: from two lead times on it misses what the target allows, and idles little
    more than the best fixed pool.
    """
    played = play(replace(RESTART_BUSY, phases=((2.5 * 3600.0, 2.0),)))

    assert played.outcome.hit_rate >= 0.98
    assert played.outcome.mean_idle <= 1.25 * played.fixed_idle


@pytest.mark.parametrize(("lead", "after"), [(0.25, 20.0), (10.0, 20.0), (10.0, 300.0), (60.0, 120.0)])
def test_gateway_that_starts_anew_in_a_burst_serves_the_rest_of_it(lead: float, after: float) -> None:
    """20 claims a second after half an hour of nearly none, of which the recorded claims tell: two and a half lead
    times after the start none misses, and an hour after the burst nothing is held.
    """
    restart = 1800.0 + after
    burst = replace(
        RESTART_BUSY, phases=((1800.0, 0.1), (600.0, 20.0), (5400.0, 0.0)), lead=lead, most=2000, restart=restart,
        scored_from=restart + 2.5 * lead + 5.0,
    )  # fmt: skip
    played = play(burst)

    assert played.outcome.hit_rate >= 0.99
    assert played.mean_target(burst.span - 1800.0, burst.span) < 0.05


@pytest.mark.parametrize("step", [-7200.0, -20.0, 20.0, 7200.0])
def test_clock_that_is_set_in_a_surge_changes_nothing_of_it(step: float) -> None:
    """Three minutes into 20 claims a second the clock is set: no more miss than without, and it is given up as soon."""
    alone = replace(STEP, phases=((1800.0, 0.1), (600.0, 20.0), (3600.0, 0.0)), scored_from=1830.0)
    played, stepped = play(alone), play(replace(alone, clock=((1980.0, step),)))

    assert stepped.outcome.hit_rate >= played.outcome.hit_rate - 0.01
    assert stepped.mean_target(4200.0, alone.span) < 0.5


@pytest.mark.parametrize("most", [0, 1])
def test_pool_of_none_or_one_is_sized(most: int) -> None:
    """A maximum of 0 or 1 beside a claim a second: it stays at that."""
    small = replace(STEP, phases=((600.0, 1.0),), most=most, scored_from=300.0)

    assert play(small).mean_target(300.0, 600.0) == pytest.approx(most, abs=0.05)


@pytest.mark.parametrize("lead", [10.0, 60.0])
@pytest.mark.parametrize("second", [1, 5, 20, 50])
def test_first_claim_of_a_new_runtime_orders_few(lead: float, second: int) -> None:
    """One claim in a runtime's first minute: after the minute for which nothing is decided it holds a handful."""
    demand = Demand(Objective(0.01), lead=lead, tick=1.0, most=512)
    levels = []
    for now in range(1, 300):
        demand.observe(1e9 + now, int(now == second))
        levels.append(demand.forecast(1e9 + now).level)

    assert max(levels[60:]) <= (3 if lead == 10.0 else 12)
    assert max(levels) <= 1.3 * lead + 5


def test_new_runtime_expects_what_others_have() -> None:
    """With busy runtimes beside it, a first claim is taken for the first of many; beside quiet ones it is not."""
    levels = []
    for rate in (0.001, 0.5):
        others = []
        for seed in range(6):
            other = RateBelief()
            for minute, claims in enumerate(np.random.default_rng(seed).poisson(60.0 * rate, 120).tolist()):
                other.observe(60.0 * (minute + 1), 60.0, claims)
            others.append(other)
        demand = Demand(Objective(0.01), lead=10.0, tick=1.0, most=512, prior=prior_from(others))
        for now in range(1, 62):
            demand.observe(1e9 + now, int(now == 61))
        levels.append(demand.forecast(1e9 + 61).alert)

    assert levels[0] + 2 <= levels[1] <= 30


@pytest.mark.parametrize(("lead", "miss_rate"), [(0.25, 0.05), (0.25, 0.2), (1.0, 0.02), (1.0, 0.1)])
def test_starts_quicker_than_ticks_meet_the_target(lead: float, miss_rate: float) -> None:
    """Claims have their times in the shadow pools: misses and idle time are about those that the target asks for."""
    played = play(replace(QUICK_STARTS, phases=((10800.0, 3.0),), lead=lead, miss_rate=miss_rate, scored_from=3600.0))

    assert 1.0 - played.outcome.hit_rate <= 1.5 * miss_rate
    assert played.outcome.mean_idle <= 1.1 * played.fixed_idle + 0.1


def test_shadow_pools_agree_with_the_simulator_within_a_tick() -> None:
    """Lead times of a quarter of a tick: what each constant serves is what it would have served."""
    arrivals = poisson(3.0, 4000.0)
    for joins in (False, True):
        shadow = Shadow(0.25, 4, joins=joins)
        ticks = np.split(arrivals, np.searchsorted(arrivals, np.arange(1.0, 4000.0)))
        for second, times in enumerate(ticks):
            shadow.observe(second + 1.0, 1.0, len(times), times.tolist())
        for column, size in zip(range(-5, 0), shadow.levels[-5:].astype(int).tolist(), strict=True):
            outcome = simulate(
                arrivals, Targets(np.array([-9.0]), np.array([float(size)])),
                lead=0.25, scored_from=0.0, end=4000.0, joins=joins,
            )  # fmt: skip
            assert shadow.served[column] / shadow.claims == pytest.approx(outcome.hit_rate, abs=0.03)
            assert shadow.idle[column] / shadow.span == pytest.approx(outcome.mean_idle, abs=0.05 * size + 0.02)


def test_surge_guard_does_not_answer_to_chance() -> None:
    """Steady claims of which one in five may miss cost little more than the best fixed pool."""
    played = play(LOOSE_TARGET)

    assert played.outcome.mean_idle <= 1.1 * played.fixed_idle
