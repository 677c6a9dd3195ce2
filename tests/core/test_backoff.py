"""How long is waited between tries."""

from __future__ import annotations

from gateway.core.backoff import backoff, jittered


def test_wait_doubles_up_to_its_longest() -> None:
    """And stays there, however many failures there were."""
    waits = [backoff(failures, first=0.5, longest=30.0) for failures in range(1, 9)]

    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff(10**6, first=0.5, longest=30.0) == 30.0


def test_jitter_takes_away_half_at_most() -> None:
    """A wait is never longer than asked for, and never next to nothing."""
    waits = [jittered(2.0) for _ in range(200)]

    assert all(1.0 <= wait <= 2.0 for wait in waits)
    assert len(set(waits)) > 100
