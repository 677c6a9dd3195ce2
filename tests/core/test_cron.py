"""Times of cron expressions where clocks are put forward and back, in zones of whole and of half hours."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from gateway.core.cron import following, latest

FORWARD = {"Europe/Berlin": (2026, 3, 29), "America/New_York": (2026, 3, 8), "Australia/Lord_Howe": (2026, 10, 4)}
BACK = {"Europe/Berlin": (2026, 10, 25), "America/New_York": (2026, 11, 1), "Australia/Lord_Howe": (2026, 4, 5)}


def midnight(zone: str, day: tuple[int, int, int]) -> float:
    return datetime(*day, tzinfo=ZoneInfo(zone)).timestamp()


def of_a_day(expression: str, zone: str, day: tuple[int, int, int]) -> list[str]:
    """Its times on a day, as a clock there shows them."""
    at, found = midnight(zone, day) - 1, list[str]()
    while True:
        at = following(expression, zone, at)
        shown = datetime.fromtimestamp(at, ZoneInfo(zone))
        if shown.timetuple()[:3] != day:
            return found
        found.append(f"{shown:%H:%M%z}")


@pytest.mark.parametrize(
    ("expression", "zone", "day", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", FORWARD, ["03:00+0200"]),
        ("15,45 2 * * *", "Europe/Berlin", FORWARD, ["03:00+0200"]),
        ("30 2-3 * * *", "Europe/Berlin", FORWARD, ["03:00+0200", "03:30+0200"]),
        ("30 2 * * *", "Europe/Berlin", BACK, ["02:30+0200"]),
        ("30 1-3 * * *", "Europe/Berlin", BACK, ["01:30+0200", "02:30+0200", "03:30+0100"]),
        ("30 1 * * *", "America/New_York", BACK, ["01:30-0400"]),
        ("15 2 * * *", "Australia/Lord_Howe", FORWARD, ["02:30+1100"]),
    ],
)
def test_a_time_that_clocks_skip_or_repeat_comes_once(
    expression: str, zone: str, day: dict[str, tuple[int, int, int]], expected: list[str]
) -> None:
    """Skipped: when it would have been over; repeated: the first time."""
    assert of_a_day(expression, zone, day[zone]) == expected


def test_what_runs_each_half_hour_runs_as_time_passes() -> None:
    """Two hours of a day have 25, and 23."""
    assert len(of_a_day("*/30 * * * *", "Europe/Berlin", BACK["Europe/Berlin"])) == 50
    assert len(of_a_day("*/30 * * * *", "Europe/Berlin", FORWARD["Europe/Berlin"])) == 46


@pytest.mark.parametrize("zone", FORWARD)
@pytest.mark.parametrize("days", [FORWARD, BACK], ids=["forward", "back"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "15,45 1 * * *", "30 1-3 * * *", "59 1 * * *", "0 * * * *"])
def test_at_each_moment_the_last_time_and_the_next_are_neighbours(
    expression: str, days: dict[str, tuple[int, int, int]], zone: str
) -> None:
    """Also while an hour comes for the second time: none is in the past, and none is forgotten."""
    first = midnight(zone, days[zone])
    times = [latest(expression, zone, first)]
    while times[-1] < first + timedelta(days=1).total_seconds():
        times.append(following(expression, zone, times[-1]))
    for minutes in range(0, 6 * 60, 10):
        at = first + minutes * 60
        assert following(expression, zone, at) == min(each for each in times if each > at)
        assert latest(expression, zone, at) == max(each for each in times if each <= at)
