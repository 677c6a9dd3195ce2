"""Refusals that repeat are recorded once in a while, with how many there were."""

from __future__ import annotations

from gateway.audit.repeats import EVERY_S, MAX_KNOWN, Repeats
from gateway.testing import ManualClock


def test_of_equal_events_one_is_recorded_in_each_interval_with_the_number_before_it() -> None:
    """Another tenant's is recorded beside it."""
    clock = ManualClock()
    repeats = Repeats(clock)
    assert [repeats.left_out("acme") for _ in range(4)] == [0, None, None, None]
    assert repeats.left_out("bolt") == 0
    clock.advance(EVERY_S)
    assert [repeats.left_out("acme"), repeats.left_out("acme"), repeats.left_out("bolt")] == [3, None, 0]


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    """Clients choose what is told apart."""
    repeats = Repeats(ManualClock())
    for number in range(MAX_KNOWN + 1):
        assert repeats.left_out(number) == 0
    assert repeats.left_out(0) == 0
    assert repeats.left_out(MAX_KNOWN) is None
