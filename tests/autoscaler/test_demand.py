"""Demand and its shadow pools: the wanted miss rate is met, gaps and clock steps do no harm."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.follower import Follower, Objective
from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.history import live_since, replay_history
from gateway.autoscaler.rates import _moves
from gateway.autoscaler.replay import synthetic
from gateway.autoscaler.replay.pool import Targets, simulate
from gateway.autoscaler.scaler import Observed, ScalerSpec, decide
from gateway.autoscaler.shadow import A_FAMILY, Shadow, constant_levels
from tests.support.autoscaler import poisson

pytestmark = pytest.mark.simulation

LEAD = 10.0


def made(miss_rate: float = 0.02, *, joins: bool = False) -> Demand:
    return Demand(Objective(miss_rate), lead=LEAD, tick=1.0, most=64, joins=joins)


def follow(demand: Demand, arrivals: Floats, start: float, end: float) -> Targets:
    """Ticks over the arrivals, as the loop would; the levels it wanted."""
    counts = np.bincount((arrivals - start).astype(int), minlength=int(end - start))
    times, levels = [], []
    for second, claims in enumerate(counts.tolist()):
        now = start + second + 1.0
        if demand.due(now, claims):
            demand.observe(now, claims)
            times.append(now)
            levels.append(float(demand.forecast(now).level))
    return Targets(np.array(times), np.array(levels))


@pytest.mark.parametrize("joins", [False, True], ids=["cold", "join"])
def test_miss_rate_is_met_as_measured(joins: bool) -> None:
    """Two misses in a hundred are asked for, and between half a miss and three come, in either kind of pool."""
    arrivals = poisson(0.2, 28800.0)
    targets = follow(made(joins=joins), arrivals, 0.0, 28800.0)
    outcome = simulate(arrivals, targets, lead=LEAD, scored_from=10800.0, end=28800.0, joins=joins)

    assert 0.005 <= 1.0 - outcome.hit_rate <= 0.03


def test_costs_decide_in_place_of_a_miss_rate() -> None:
    """The dearer a cold start, the more is held; and what is followed costs little more than any constant pool does."""
    arrivals, span = poisson(0.2, 28800.0), 18000.0
    held = []
    for cost in (5.0, 50.0, 500.0):
        demand = Demand(Objective(cold_start_cost=cost), lead=LEAD, tick=1.0, most=32)

        def price(targets: Targets, cost: float = cost) -> tuple[float, float]:
            outcome = simulate(arrivals, targets, lead=LEAD, scored_from=10800.0, end=28800.0)
            return outcome.idle + cost * (outcome.claims - outcome.hits), outcome.mean_idle

        paid, idle = price(follow(demand, arrivals, 0.0, 28800.0))
        best = min(price(Targets(np.array([0.0]), np.array([float(n)])))[0] for n in range(12))
        held.append(idle)
        assert paid <= 1.1 * best + 0.02 * span

    assert held[0] < held[1] < held[2]


def test_shadow_pools_agree_with_the_simulator() -> None:
    """What a shadow counts for constant pools is what the simulator finds for them."""
    arrivals = poisson(0.3, 20000.0)
    shadow = Shadow(LEAD, 8)
    counts = np.bincount(arrivals.astype(int), minlength=20000)
    for second, claims in enumerate(counts.tolist()):
        shadow.observe(second + 1.0, 1.0, claims)
    constants = shadow.levels[-9:].astype(int).tolist()

    for column, size in zip(range(-9, 0), constants, strict=True):
        outcome = simulate(
            arrivals, Targets(np.array([-LEAD - 1.0]), np.array([float(size)])), lead=LEAD, scored_from=0.0, end=20000.0
        )
        assert shadow.served[column] / shadow.claims == pytest.approx(outcome.hit_rate, abs=0.03)
        assert shadow.idle[column] / shadow.span == pytest.approx(outcome.mean_idle, abs=0.25)


def test_constants_price_a_rule_by_the_claims_it_serves() -> None:
    """A level costs what it idles, what lies between two a mixture; of some that serve as many, the least counts."""
    arrivals = poisson(0.3, 20000.0)
    shadow = Shadow(LEAD, 40)
    for second, claims in enumerate(np.bincount(arrivals.astype(int), minlength=20000).tolist()):
        shadow.observe(second + 1.0, 1.0, claims)
    served, idle = shadow.served[-len(constant_levels(40)) :], shadow.idle[-len(constant_levels(40)) :]

    assert shadow.constant_idle(0.0) == 0.0
    assert shadow.constant_idle(float(served[3])) == pytest.approx(idle[3])
    assert shadow.constant_idle(float(served[3] + served[4]) / 2.0) == pytest.approx((idle[3] + idle[4]) / 2.0)
    assert served[-1] == served[-2]
    smallest = int(np.flatnonzero(served == served[-1])[0])
    assert shadow.constant_idle(float(served[-1])) == pytest.approx(idle[smallest])


@pytest.mark.parametrize(("name", "foreseen"), [("steps", True), ("batches", False)])
def test_forecasts_are_followed_only_where_they_beat_constants(name: str, foreseen: bool) -> None:
    """Rates that stay for minutes are followed; batches at random moments get one level all the time."""
    trace = synthetic.make(name).cut(43200.0)
    demand = made(0.05)
    follow(demand, trace.arrivals, 0.0, 43200.0)

    assert demand.follower.describe().startswith("quantile" if foreseen else "constant")
    forecast = demand.forecast(43200.0)
    assert forecast.constant is not foreseen
    decision = decide(ScalerSpec(max=10_000), Observed(target=0), forecast, 43200.0)
    assert decision.rule == ("forecast" if foreseen else "constant")


@pytest.mark.parametrize(("name", "foreseen"), [("steps", True), ("batches", False)])
def test_followed_rule_is_compared_with_the_best_of_the_other_kind(name: str, foreseen: bool) -> None:
    """What each would cost is per hour of what the shadow pools remember, and the followed one is the cheaper."""
    demand = made(0.05)
    followed, other = demand.follower.compared()
    assert (followed.idle, followed.misses, followed.miss_rate, other) == (0.0, 0.0, None, None)
    follow(demand, synthetic.make(name).cut(43200.0).arrivals, 0.0, 43200.0)
    followed, other = demand.follower.compared()

    assert other is not None
    assert (followed.constant, other.constant) == (not foreseen, foreseen)
    assert (followed.quantile is None, other.quantile is None) == (not foreseen, foreseen)
    shadow, rule = demand.shadow, demand.follower.rule
    assert followed.level == int(shadow.levels[rule])
    assert followed.idle == pytest.approx(shadow.idle[rule] * 3600.0 / shadow.span)
    assert followed.misses == pytest.approx((shadow.claims - shadow.served[rule]) * 3600.0 / shadow.span)
    assert followed.miss_rate == pytest.approx(demand.follower.miss_rate())
    if foreseen:
        assert followed.idle < other.idle


def test_quiet_runtime_scales_to_zero() -> None:
    """After a day without claims and with a minimum of 0, nothing is held."""
    demand = made()
    follow(demand, poisson(0.1, 7200.0), 0.0, 7200.0)
    assert demand.forecast(7200.0).level > 0

    follow(demand, np.zeros(0), 7200.0, 7200.0 + 86400.0)

    assert demand.forecast(7200.0 + 86400.0).level == 0


def test_burst_raises_the_level_within_a_tick() -> None:
    """Claims far above the forecast lift what is asked for in a surge at once, even while a constant is followed."""
    demand = made()
    follow(demand, poisson(0.02, 7200.0), 0.0, 7200.0)
    before = demand.forecast(7200.0).level

    demand.observe(7201.0, 12)

    assert demand.forecast(7201.0).alert >= before + 5


@pytest.mark.parametrize("step", [-3600.0, -1.0, 7200.0], ids=["an hour back", "a second back", "two hours ahead"])
def test_clock_step_loses_the_last_horizon_only(step: float) -> None:
    """After a step of the clock the level is near what it was, nothing raises, and ticks go on."""
    demand = made()
    follow(demand, poisson(0.2, 7200.0), 0.0, 7200.0)
    before = demand.forecast(7200.0).level
    now = 7200.0 + step

    demand.observe(now, 0)
    after = demand.forecast(now).level

    assert abs(after - before) <= 2
    follow(demand, now + poisson(0.2, 600.0, 9), now, now + 600.0)
    assert demand.forecast(now + 600.0).level > 0


def test_history_restores_what_was_known() -> None:
    """A Demand built from recorded claims asks for the same size as one that saw them live, within one sandbox."""
    start, end = 1_700_000_000.0 - 1_700_000_000.0 % 86400.0, 21600.0
    arrivals = start + poisson(0.15, end)
    seen = made()
    follow(seen, arrivals, start, start + end)
    restored = made()
    seconds, counts = np.unique(arrivals.astype(int), return_counts=True)
    minutes, per_minute = np.unique(arrivals.astype(int) // 60 * 60, return_counts=True)
    live_from = start + end - 7200.0

    slices = list(
        replay_history(
            restored,
            list(zip(minutes.tolist(), per_minute.tolist(), strict=True)),
            [(s, n) for s, n in zip(seconds.tolist(), counts.tolist(), strict=True) if s >= live_from],
            now=start + end,
            live_from=live_from,
        )
    )

    assert len(slices) > 50, "it yields so that the event loop can serve in between"
    restored.observe(start + end, 0)
    assert abs(restored.forecast(start + end).level - seen.forecast(start + end).level) <= 1


def test_history_restores_the_weights_of_the_mixture() -> None:
    """Ten claims every five minutes: after a restart the expert for timers has its weight before any new claim."""
    now = 1_700_000_000.0
    batches = [(int(now) - 300 * i, 10) for i in range(1, 73)][::-1]
    restored = made()
    fresh = restored.mixture.shares()
    for _ in replay_history(
        restored, [(at - at % 60, n) for at, n in batches], batches, now=now, live_from=now - 21600
    ):
        pass
    shares = restored.mixture.shares()

    assert max(shares, key=lambda name: shares[name]) == "timers"
    assert max(fresh, key=lambda name: fresh[name]) != "timers"


def test_quiet_runtimes_are_replayed_further_back() -> None:
    """Of a busy runtime two hours are enough, of a quiet one all seconds that are kept count."""
    now = 1_700_000_000.0

    assert live_since([], now) == now - 6 * 3600.0
    assert live_since([(int(now) - 20000 + 100 * i, 1) for i in range(200)], now) == now - 6 * 3600.0
    assert live_since([(int(now) - 20000 + i, 1) for i in range(20000)], now) == now - 2 * 3600.0
    assert live_since([(int(now) - 15000 + 5 * i, 1) for i in range(3000)], now) == now - 15000.0


def test_history_with_gaps_and_without_anything_is_read() -> None:
    """No history, days without claims, and a single claim long ago are all accepted."""
    for minutes in ([], [(600, 3)], [(600, 3), (86400 * 9, 5)]):
        demand = made()
        for _ in replay_history(demand, minutes, [], now=86400.0 * 13, live_from=86400.0 * 13 - 7200.0):
            pass
        demand.observe(86400.0 * 13, 0)
        forecast = demand.forecast(86400.0 * 13)
        assert forecast.level <= 1 or forecast.observed < 60.0, "decide() holds the starting size for the first minute"


def test_time_without_claims_in_history_is_learned() -> None:
    """Four days without records after a busy hour count as days without claims."""
    end = 5.0 * 86400.0
    demand = made()
    busy = [(86400 + 60 * minute, 60) for minute in range(60)]
    for _ in replay_history(demand, [(0, 1), *busy, (int(end), 0)], [], now=end + 60.0, live_from=end + 60.0):
        pass
    demand.observe(end + 61.0, 0)

    assert demand.forecast(end + 61.0).level <= 1


def test_level_does_not_flap_on_steady_demand() -> None:
    """With a claim every five seconds to the second the level stays within one sandbox."""
    demand = made()
    follow(demand, np.arange(2.5, 20000.0, 5.0), 0.0, 20000.0)

    levels = follow(demand, np.arange(20002.5, 24000.0, 5.0), 20000.0, 24000.0).levels

    assert levels.max() - levels.min() <= 1


def test_pool_that_may_hold_nothing_is_forecast_like_any() -> None:
    """A runtime without a warm pool has claims as well; looking at it must not stop the pass over all the others."""
    demand = Demand(Objective(0.02), lead=LEAD, tick=1.0, most=0)
    for second in range(300):
        demand.observe(second + 1.0, 1)
        forecast = demand.forecast(second + 1.0)
    assert forecast.observed == 300.0


def test_ticks_of_uneven_length_leave_little_behind() -> None:
    """What is computed for a length is kept, and a gateway's ticks are never quite alike."""
    _moves.cache_clear()
    demand, now = Demand(Objective(0.02), lead=LEAD, tick=1.0, most=8), 1e9
    random = np.random.default_rng(1)
    for _ in range(500):
        now += 1.0 + float(random.uniform(0.0, 0.02))
        demand.observe(now, 0)
    assert _moves.cache_info().currsize < 20


@pytest.mark.parametrize(("saving", "followed"), [(0.03, 0), (0.2, 2)], ids=["a little", "much"])
def test_rule_of_one_expert_is_followed_when_it_is_much_cheaper(saving: float, followed: int) -> None:
    """A rule of the second expert that idles less than the mixture's is followed only beyond its handicap."""
    shadow = Shadow(LEAD, 8, experts=["one", "other"])
    follower = Follower(Objective(0.05), shadow)
    shadow.claims, shadow.span, shadow.age = 10_000.0, 86400.0, 10 * 86400.0
    shadow.served[:] = 9_600.0
    shadow.idle[:] = 1e6
    shadow.idle[2 * A_FAMILY + 3] *= 1.0 - saving
    shadow.served[shadow.rules :] = 9_000.0
    shadow.served[-1] = 10_000.0
    shadow.idle[-1] = 3e6
    follower.choose(shadow)

    assert follower.family == followed
    assert follower.describe().endswith("of other") == bool(followed)

    shadow.age = 1000.0
    newcomer = Follower(Objective(0.05), shadow)
    newcomer.choose(shadow)
    assert newcomer.family == 0, "after a quarter of an hour nothing is proven"


def test_history_of_quick_starts_is_not_taken_for_crowds() -> None:
    """At a lead of a quarter of a second the claims of a recorded second did not come at once: as small a pool is
    restored as was learned live.
    """
    now, arrivals = 1_700_000_000.0, poisson(3.0, 3600.0)
    start = now - 3600.0
    live = Demand(Objective(0.05), lead=0.25, tick=1.0, most=64)
    ticks = np.split(arrivals, np.searchsorted(arrivals, np.arange(1.0, 3600.0)))
    for second, times in enumerate(ticks):
        live.observe(start + second + 1.0, len(times), times=(start + times).tolist())
        live.forecast(start + second + 1.0)
    restored = Demand(Objective(0.05), lead=0.25, tick=1.0, most=64)
    seconds = [(int(start) + second, len(times)) for second, times in enumerate(ticks) if len(times)]
    for _ in replay_history(restored, [], seconds, now=now, live_from=start):
        pass

    assert abs(restored.forecast(now).level - live.forecast(now).level) <= 1


def test_rule_of_one_expert_is_not_followed_for_missing_more() -> None:
    """It idles less than the mixture's cheapest rule within the target, but for claims that it does not serve."""
    shadow = Shadow(LEAD, 8, experts=["one"])
    follower = Follower(Objective(0.05), shadow)
    shadow.claims, shadow.span, shadow.age = 10_000.0, 86400.0, 10 * 86400.0
    shadow.served[:A_FAMILY] = np.linspace(9_000.0, 9_960.0, A_FAMILY)
    shadow.idle[:A_FAMILY] = np.linspace(1e5, 1.7e6, A_FAMILY)
    shadow.served[A_FAMILY : shadow.rules] = 9_505.0
    shadow.idle[A_FAMILY : shadow.rules] = 0.98 * np.interp(9_505.0, shadow.served[:A_FAMILY], shadow.idle[:A_FAMILY])
    shadow.served[-1], shadow.idle[-1] = 10_000.0, 9e6
    follower.choose(shadow)

    assert follower.family == 0


def test_one_burst_is_no_pattern_and_two_are() -> None:
    """A claim a second, and 300 at once: after the first time the pool is as large as for the others, after the second
    it is ready for a third.
    """
    levels = []
    for bursts in ([600.0], [600.0, 1500.0]):
        arrivals = np.sort(np.concatenate((poisson(1.0, 3000.0), *(at + np.linspace(0.0, 3.0, 300) for at in bursts))))
        demand = Demand(Objective(0.01), lead=LEAD, tick=1.0, most=512)
        levels.append(follow(demand, arrivals, 0.0, 3000.0).levels[-1])

    assert levels[0] <= 60
    assert levels[1] >= 200


def test_batches_are_not_waited_for_at_more_than_the_ceiling() -> None:
    """14 claims at once each six hours: to hold 14 in between costs 21,600 idle seconds a claim, more than the 20,000
    that may be paid, after each batch and not only once the hours have passed.
    """
    arrivals = np.concatenate([600.0 + 21_600.0 * batch + np.linspace(0.0, 40.0, 14) for batch in range(4)])
    demand = Demand(Objective(0.01), lead=60.0, tick=1.0, most=64)
    targets = follow(demand, arrivals, 0.0, 86_400.0)

    held = simulate(arrivals, targets, lead=60.0, scored_from=25_200.0, end=86_400.0).mean_idle
    assert held <= 2.0


def test_memory_of_a_busy_runtime_is_bounded() -> None:
    """Eight days of minutes and two minutes of two claims a second are kept in less than a megabyte, with all tables;
    the eighth day adds next to nothing.
    """
    made()  # what all runtimes share is made before
    counts, held = np.random.default_rng(1).poisson(30.0, 8 * 1440).tolist(), []
    tracemalloc.start()
    try:
        demand = made()
        for minute, claims in enumerate(counts):
            demand.learn(60.0 * (minute + 1), 60.0, claims)
            if minute in (7 * 1440, 8 * 1440 - 1):
                held.append(tracemalloc.get_traced_memory()[0])
        for second in range(120):
            demand.observe(8 * 86400.0 + second + 1.0, 2)
            demand.forecast(8 * 86400.0 + second + 1.0)
        held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()

    assert held[1] <= 1.1 * held[0]
    assert held[2] <= 0.9e6
