"""A pool's decisions, without a process: who gets what, when to start, when to hold back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.provider.local.pool_state import EARLY_DEATH_S, MAX_BACKOFF_S, MAX_FAILED_STARTS, PoolState


def order(state: PoolState[str, str], now: float = 0.0) -> int:
    count = state.wanted(now)
    state.start_ordered(count)
    return count


def alive(_: str) -> bool:
    return True


def test_pool_orders_what_is_missing_once() -> None:
    """What is under way already is not ordered again."""
    state = PoolState[str, str](3)
    assert [order(state), order(state)] == [3, 0]
    assert state.start_succeeded("a", 0.1) is True
    assert order(state) == 0


def test_pool_orders_one_more_for_a_claim_than_the_pool_lacks() -> None:
    """A claim on an empty pool has a start of its own although refills are under way."""
    state = PoolState[str, str](2)
    order(state)
    state.waiters.append("w")
    assert order(state) == 1


def test_pool_gives_the_first_arrival_to_the_first_waiter() -> None:
    """Whichever sandbox is ready first serves the claim that came first; only then the pool fills."""
    state = PoolState[str, str](1)
    state.waiters.extend(["first", "second"])
    assert order(state) == 3
    assert [state.start_succeeded(name, 0.1) for name in "abc"] == ["first", "second", True]
    assert list(state.ready) == ["c"]


def test_pool_hands_out_the_oldest_and_skips_the_dead() -> None:
    """A sandbox that ended unnoticed is never handed out."""
    state = PoolState[str, str](3)
    state.ready.extend(["dead", "old", "new"])
    assert state.take(lambda sandbox: sandbox != "dead") == "old"
    assert list(state.ready) == ["new"]


def test_pool_refuses_surplus() -> None:
    """An arrival beyond the target is not kept; surplus starts are counted."""
    state = PoolState[str, str](2)
    order(state)
    assert state.resize(1) == []
    assert state.surplus() == 1
    state.start_succeeded("a", 0.1)
    assert state.start_succeeded("b", 0.1) is False


def test_pool_shrinks_from_the_newest() -> None:
    """The ones that have been well for longest stay."""
    state = PoolState[str, str](3)
    state.ready.extend(["a", "b", "c"])
    assert state.resize(1) == ["c", "b"]
    assert list(state.ready) == ["a"]


def test_pool_doubles_the_pause_and_tries_one_at_a_time() -> None:
    """Failures in a row: 0.5, 1, 2, ... 30 s between tries, one try each; a success resets the pause."""
    state, now, pauses = PoolState[str, str](4), 0.0, []
    assert order(state, now) == 4
    for _ in range(4):
        state.start_failed(now, "no bwrap")
    for _ in range(5):
        assert state.retry_at is not None
        assert order(state, state.retry_at - 0.001) == 0
        pauses.append(state.retry_at - now)
        now = state.retry_at
        assert order(state, now) == 1
        state.start_failed(now, "no bwrap")
    assert pauses == [4.0, 8.0, 16.0, MAX_BACKOFF_S, MAX_BACKOFF_S]
    assert (state.failures, state.last_error) == (9, "no bwrap")
    state.start_ordered(1)
    state.start_succeeded("a", 0.1)
    assert (state.failures, state.retry_at, state.last_error) == (0, None, "")
    assert order(state, now) == 3


def test_pool_refuses_claims_only_while_it_has_given_up() -> None:
    """Early failures let claims try; after enough in a row they are refused until the pause is over."""
    state = PoolState[str, str](0)
    for count in range(1, MAX_FAILED_STARTS + 1):
        assert state.refusal(0.0) is None
        state.waiters.append("w")
        assert order(state) == 1
        assert state.start_failed(0.0, "broken") == ["w"]
        assert state.failures == count
    assert state.refusal(0.5) == 1.5
    assert state.refusal(2.0) is None


def test_failed_start_refuses_only_waiters_that_nothing_serves() -> None:
    """Of three claims with three starts, one failure refuses one claim, the first; the others keep theirs."""
    state = PoolState[str, str](0)
    state.waiters.extend(["a", "b", "c"])
    assert order(state) == 3
    assert state.start_failed(0.0, "broken") == ["a"]
    assert state.start_succeeded("sandbox", 0.1) == "b"
    assert state.start_failed(0.0, "broken") == ["c"]


def test_early_deaths_hold_the_refill_back() -> None:
    """A sandbox that becomes ready and dies at once would else be restarted for ever; a start does not reset it."""
    state = PoolState[str, str](1)
    for pause in (0.5, 1.0, 2.0):
        state.start_ordered(1)
        state.start_succeeded("sandbox", 0.1)
        state.exited("sandbox", 0.2, 0.0, "died")
        assert state.retry_at == pause
        assert order(state, pause - 0.001) == 0
    state.start_ordered(1)
    state.start_succeeded("sandbox", 0.1)
    state.confirm_healthy(EARLY_DEATH_S)
    assert (state.failures, state.retry_at) == (0, None)


def test_late_death_is_replaced_at_once() -> None:
    """One that lived long enough is just replaced."""
    state = PoolState[str, str](1)
    state.start_ordered(1)
    state.start_succeeded("sandbox", 0.1)
    state.exited("sandbox", EARLY_DEATH_S, 100.0, "died")
    assert order(state, 100.0) == 1


def test_lead_time_is_a_quantile_of_recent_starts() -> None:
    """Nearest rank over the last starts; None before the first."""
    state = PoolState[str, str](200)
    assert state.lead_time(0.5) is None
    for number in range(1, 101):
        state.start_ordered(1)
        state.start_succeeded(str(number), float(number))
    assert state.lead_time(0.5) == 69.0  # of 37 .. 100
    assert state.lead_time(0.9) == 94.0


@given(st.lists(st.sampled_from(["claim", "arrive", "fail", "die", "grow", "shrink", "pass"]), max_size=60))
def test_pool_never_hands_a_sandbox_out_twice_and_keeps_count(steps: list[str]) -> None:
    """Whatever happens in whatever order: each sandbox goes to one place, starts are never negative nor unbounded."""
    state, now, made, claimed = PoolState[int, int](2), 0.0, 0, list[int]()
    state.start_ordered(state.wanted(now))
    for number, step in enumerate(steps):
        now += 0.1
        if step == "claim":
            sandbox = state.take(lambda _: True)
            if sandbox is None:
                state.waiters.append(-number)
            else:
                claimed.append(sandbox)
        elif step == "arrive" and state.starting:
            made += 1
            if state.start_succeeded(made, 0.1) not in (True, False):
                claimed.append(made)
        elif step == "fail" and state.starting:
            state.start_failed(now, "broken")
        elif step == "die" and state.ready:
            state.exited(state.ready[0], 0.0, now, "died")
        elif step in ("grow", "shrink"):
            state.resize(max(0, state.target + (1 if step == "grow" else -1)))
        elif step == "pass":
            now += 40.0
        state.start_ordered(state.wanted(now))
        assert 0 <= state.starting <= 20 + len(steps)
        assert len(claimed) == len(set(claimed))
        assert not set(claimed) & set(state.ready)
        assert len(state.ready) <= state.target
        assert len(state.waiters) <= state.starting or state.start_failures
