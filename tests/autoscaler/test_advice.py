"""Advice on single sessions follows from how long sessions stay silent."""

from __future__ import annotations

import numpy as np

from gateway.autoscaler.advice import GapHistogram


def seen(*gaps: float) -> GapHistogram:
    histogram = GapHistogram()
    for gap in gaps:
        histogram.observe(gap)
    return histogram


def test_short_gaps_are_waited_for() -> None:
    """Sessions that always come back within a minute are not hibernated before that."""
    advice = seen(*np.random.default_rng(1).uniform(20.0, 60.0, 400)).advise(900.0, wake_cost=600.0)

    assert 55.0 <= advice.hibernate_after <= 120.0


def test_long_gaps_are_not_waited_for() -> None:
    """Sessions that stay away for hours are hibernated soon."""
    advice = seen(*np.random.default_rng(1).uniform(7200.0, 20000.0, 400)).advise(900.0, wake_cost=60.0)

    assert advice.hibernate_after <= 10.0


def test_advice_never_exceeds_the_timeout_and_needs_evidence() -> None:
    """The runtime's own timeout is the longest wait, and the answer while little was seen."""
    assert seen(*[500.0] * 10).advise(900.0, wake_cost=60.0).hibernate_after == 900.0
    assert seen(*[5000.0] * 400).advise(900.0, wake_cost=1e9).hibernate_after <= 900.0


def test_waking_ahead_is_off_unless_asked_for() -> None:
    """Requests that come an hour later to the minute are worth waking for, when asked."""
    histogram = seen(*np.random.default_rng(1).uniform(3590.0, 3610.0, 400))

    assert histogram.advise(60.0, wake_cost=3000.0).wake_at is None
    advice = histogram.advise(60.0, wake_cost=3000.0, prewake=True)
    assert advice.wake_at is not None
    assert 2900.0 <= advice.wake_at <= 3600.0


def test_own_gaps_outweigh_those_of_other_sessions() -> None:
    """A session that always comes back after a minute is sat out, though most of its kind stay away for hours."""
    others = seen(*np.random.default_rng(1).uniform(7200.0, 20000.0, 400))

    assert others.advise(900.0, wake_cost=120.0).hibernate_after <= 10.0
    assert others.advise(900.0, wake_cost=120.0, own=[60.0] * 32).hibernate_after >= 60.0
