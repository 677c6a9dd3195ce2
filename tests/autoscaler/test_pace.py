"""Slices of a pass are spread over a tick, however many there are."""

from __future__ import annotations

import pytest

from gateway.autoscaler.pace import SHORTEST_S, Pace


def run(pace: Pace, slices: int, took: float) -> float:
    """When the last pause is over, in seconds since the pass began at 100."""
    now = 100.0
    for _ in range(slices):
        now += took
        now += pace.pause(now)
    return now - 100.0


@pytest.mark.parametrize(("slices", "took"), [(150, 0.0), (150, 0.0003), (600, 0.0002)])
def test_slices_of_a_pass_are_spread(slices: int, took: float) -> None:
    """Whatever they take themselves, as long as there is time."""
    assert run(Pace(100.0, 0.75, slices), slices, took) == pytest.approx(0.75)


def test_pass_that_is_late_catches_up() -> None:
    """A slice that took long is followed by others at the shortest distance."""
    pace = Pace(100.0, 0.75, 100)
    assert pace.pause(100.4) == SHORTEST_S
    assert pace.slices == 1


@pytest.mark.parametrize(("spread", "expected", "slices"), [(0.0, 100, 100), (0.75, 0, 5), (0.75, 1, 1)])
def test_small_pass_is_soon_over(spread: float, expected: int, slices: int) -> None:
    """Without a spread, without a pass before it, and with few slices."""
    assert run(Pace(100.0, spread, expected), slices, 0.0) <= slices * 0.02 + 1e-9


def test_more_slices_than_expected_follow_closely() -> None:
    """A burst over all runtimes is not put off for long."""
    assert run(Pace(100.0, 0.75, 10), 200, 0.0) < 0.75 + 0.2
