"""How the commands that use a gateway write durations."""

from __future__ import annotations

import pytest

from gateway.cli.remote.screen import span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.9, "59s"),
        (89, "1m29s"),
        (120, "2m"),
        (11 * 60 + 40, "11m"),
        (3600 + 59, "1h"),
        (3 * 3600 + 5 * 60, "3h5m"),
        (23 * 3600 + 59 * 60, "23h"),
        (86400 * 2 + 3600 * 4, "2d4h"),
        (86400 * 30, "30d"),
    ],
)
def test_duration_is_cut_and_not_rounded_up(seconds: float, text: str) -> None:
    """What is 23 hours and 59 minutes old is not a day old; of few units the next one is shown too."""
    assert span(seconds) == text
