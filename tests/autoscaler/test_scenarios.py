"""Steps, bursts, silences and set clocks in virtual time: what the whole loop makes of them, hours later too."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.autoscaler.replay.scenarios import CLOCK_BACK, play


@pytest.mark.parametrize("steps", [((7200.0, -600.0),), ((7200.0, 1800.0),), ((7200.0, -86400.0),)])
def test_clock_that_is_set_does_not_move_the_pool(steps: tuple[tuple[float, float], ...]) -> None:
    """Four hours from the step on, the pool is where it would be if the clock had been left alone."""
    alone = play(replace(CLOCK_BACK, clock=()))
    after_a_step = play(replace(CLOCK_BACK, clock=steps))

    for hour in range(2, 6):
        expected = alone.mean_target(hour * 3600.0, (hour + 1) * 3600.0)
        assert after_a_step.mean_target(hour * 3600.0, (hour + 1) * 3600.0) == pytest.approx(expected, rel=0.1)
    assert after_a_step.targets.levels.max() <= alone.targets.levels.max() + 2
