"""The meter: intervals and counts, added up by hour, tenant, runtime and session."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.model import SandboxId
from gateway.core.usage import HOUR_S, Quantity, Rows, UsageKey
from gateway.usage.meter import MAX_ROWS_PER_BATCH, OTHER_SESSIONS, Account, Meter, Moment, Size

T0 = 1_700_000_000.0 - 1_700_000_000.0 % HOUR_S
BOX = SandboxId("sb-1")
ACCOUNT = Account("acme", "code-interpreters/default/r", "1cpu-1024Mi", "s1")


def at(seconds: float) -> Moment:
    """That many seconds after T0, on both clocks."""
    return Moment(T0 + seconds, seconds)


def sums(batches: Sequence[Rows], *, sessions: bool = False) -> dict[str, float]:
    """All amounts by quantity, of the totals or of the sessions."""
    found: defaultdict[str, float] = defaultdict(float)
    for batch in batches:
        for key, amounts in batch.items():
            if bool(key.session) is sessions:
                for quantity, amount in amounts.items():
                    found[quantity] += amount
    return dict(found)


@given(st.lists(st.floats(0, 20_000), min_size=2, max_size=30))
def test_splits_of_an_interval_sum_to_the_whole(cuts: list[float]) -> None:
    """Ticks, takes and turns of hours at any points in between neither add nor lose a second."""
    cuts.sort()
    meter = Meter()
    meter.begin(BOX, ACCOUNT, at(cuts[0]))
    taken: list[Rows] = []
    for n, cut in enumerate(cuts[1:-1]):
        meter.tick(at(cut))
        if n % 3 == 0:
            taken += meter.take()
    meter.end(BOX, at(cuts[-1]))
    meter.end(BOX, at(cuts[-1] + 100))  # ended already
    meter.tick(at(cuts[-1] + 200))
    taken += meter.take()

    whole = cuts[-1] - cuts[0]
    for sessions in (False, True):
        assert sums(taken, sessions=sessions).get(Quantity.SANDBOX_SECONDS, 0.0) == pytest.approx(whole, abs=1e-6)


@given(st.floats(0, 10 * HOUR_S), st.floats(0, 3 * HOUR_S))
def test_no_hour_gets_more_than_it_has(start: float, length: float) -> None:
    """Each hour gets exactly its overlap with the interval."""
    meter = Meter()
    meter.span(ACCOUNT, Quantity.SANDBOX_SECONDS, length, T0 + start + length)
    got: Counter[int] = Counter()
    for batch in meter.take():
        for key, amounts in batch.items():
            if not key.session:
                got[int(key.hour - T0) // HOUR_S] += amounts[Quantity.SANDBOX_SECONDS]  # type: ignore[assignment]

    for hour, seconds in got.items():
        overlap = min(start + length, (hour + 1) * HOUR_S) - max(start, hour * HOUR_S)
        assert seconds == pytest.approx(overlap, abs=1e-5)
    assert sum(got.values()) == pytest.approx(length, abs=1e-5)


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=20), st.data())
def test_takeovers_count_each_second_once(lengths: list[float], data: st.DataObject) -> None:
    """Two meters that hold a session in turns count together what one would have."""
    meters = [Meter(), Meter()]
    times = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    for n, (start, end) in enumerate(pairwise(times)):
        meter = meters[n % 2]
        meter.begin(BOX, ACCOUNT, at(start))
        meter.tick(at(data.draw(st.floats(start, end))))
        meter.end(BOX, at(end))

    total = sum(sums(meter.take()).get(Quantity.SANDBOX_SECONDS, 0.0) for meter in meters)
    assert total == pytest.approx(times[-1])


def test_gap_in_which_another_gateway_may_have_counted_is_left_out() -> None:
    """A gateway that was suspended for longer than a takeover needs counts nothing of that time."""
    meter = Meter(longest_gap=4.0)
    meter.begin(BOX, ACCOUNT, at(0))
    meter.tick(at(2))
    meter.tick(at(62))
    meter.end(BOX, at(65))

    assert sums(meter.take()) == {Quantity.SANDBOX_SECONDS: 5.0}


def test_wall_clock_that_jumps_changes_no_length() -> None:
    """An hour forward or back moves later rows to another hour, and adds no second."""
    meter = Meter()
    meter.begin(BOX, ACCOUNT, Moment(T0 + 100, 100))
    meter.tick(Moment(T0 + 110 + HOUR_S, 110))
    meter.tick(Moment(T0 + 20, 120))

    assert sums(meter.take()) == {Quantity.SANDBOX_SECONDS: 20.0}


def test_idle_time_is_what_passed_since_the_last_use() -> None:
    """Of ten seconds of which the session was last used at the fourth, six are idle; never more than passed."""
    meter = Meter()
    meter.begin(BOX, ACCOUNT, at(0))
    meter.tick(at(10), lambda session: T0 + 4 if session == "s1" else None)
    meter.tick(at(20), lambda _: T0 + 4)
    meter.end(BOX, at(25), idle_since=T0 + 25)

    assert sums(meter.take()) == {Quantity.SANDBOX_SECONDS: 25.0, Quantity.IDLE_SECONDS: 16.0}


def test_cpu_time_is_cumulative_and_counts_after_the_end() -> None:
    """The last measurement of a sandbox that has ended counts what it used since the one before, once."""
    meter = Meter()
    meter.begin(BOX, ACCOUNT, at(0))
    meter.tick(at(10))
    meter.measured(BOX, 1.5, 100.0, at(10))
    meter.measured(BOX, 1.0, None, at(11))  # a process that left the tree took its time with it: not negative
    meter.end(BOX, at(12))
    meter.measured(BOX, 4.0, None, at(13))
    meter.measured(BOX, 4.0, None, at(14))
    meter.forget_ended([BOX])
    meter.measured(BOX, 9.0, 7.0, at(15))

    found = sums(meter.take())
    assert found[Quantity.CPU_SECONDS] == pytest.approx(4.0)
    assert found[Quantity.MEMORY_BYTE_SECONDS] == pytest.approx(1200.0)  # of the last two seconds too


def test_sessions_beyond_the_bound_share_a_row() -> None:
    """Rows of one hour stay bounded; the totals, and the sum over sessions, stay whole."""
    meter = Meter(max_sessions=2)
    for n in range(5):
        for _ in range(2):
            meter.add(Account("acme", "r", "", f"s{n}"), Quantity.REQUESTS, 1, T0 + 1)
    taken = meter.take()

    by_session = {key.session for batch in taken for key in batch}
    assert by_session == {"", "s0", "s1", OTHER_SESSIONS}
    assert sums(taken) == sums(taken, sessions=True) == {Quantity.REQUESTS: 10.0}


def test_batches_are_bounded_and_whole() -> None:
    """Many rows are handed out in batches that a store takes at once, each row in one of them."""
    meter = Meter()
    for n in range(MAX_ROWS_PER_BATCH * 2):
        meter.add(Account("acme", f"r{n}", ""), Quantity.REQUESTS, 1, T0)
    batches = meter.take()

    assert [len(batch) for batch in batches] == [MAX_ROWS_PER_BATCH] * 2
    assert len(set[UsageKey]().union(*batches)) == MAX_ROWS_PER_BATCH * 2
    assert meter.take() == []


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (Size(1, 1 << 30), "1cpu-1024Mi"),
        (Size(0.25, 100 << 20), "0.25cpu-100Mi"),
        (Size(), "0cpu-0Mi"),
        (Size(8, 64 << 30, 2), "8cpu-65536Mi-2gpu"),
    ],
)
def test_size_reads_back(size: Size, text: str) -> None:
    """The text of a size, which rows carry, says all of it."""
    assert str(size) == text
    assert Size.parse(text) == size
    assert Size.parse("(other)") == Size()
