"""Cron expressions in a time zone: the five fields of cron(5), as Debian's cron reads them. Times are epoch seconds.

Where clocks are put forward, a job of an hour that is left out runs once when it would have been over; where they are
put back, one of an hour that comes twice runs once. Jobs of every minute or hour run as time passes.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_FIELDS = 5  # cronsim has a sixth, of seconds: an agent is no metronome
MAX_CHARS = 100
_REPEATED = timedelta(hours=4)  # longer than any period that repeats when clocks go back


def check_cron(expression: str, timezone: str) -> None:
    """Raise ValueError, with what is wrong, for an expression or a zone that there is not."""
    _zone(timezone)
    if len(expression) > MAX_CHARS or len(expression.split()) != _FIELDS:
        raise ValueError("expected minute, hour, day of month, month and day of week, such as `0 6 * * MON-FRI`")
    try:
        is_never = math.isinf(following(expression, timezone, 0.0))
    except (CronSimError, AssertionError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"is no cron expression: {error}") from None
    if is_never:
        raise ValueError("there is no such day in 50 years")


def following(expression: str, timezone: str, after: float) -> float:
    """The first time after `after`; infinite if there is none in 50 years."""
    start = datetime.fromtimestamp(math.floor(after), _zone(timezone))
    # cronsim counts on the clock of the wall: while an hour comes for the second time it finds the first time's again.
    times = (found.timestamp() for found in CronSim(expression, start))
    return next((found for found in times if found > after), math.inf)


def latest(expression: str, timezone: str, until: float) -> float:
    """The last time that is not after `until`; minus infinity if there is none in 50 years."""
    start = datetime.fromtimestamp(math.floor(until) + 1, _zone(timezone))
    if start.fold:
        start += _REPEATED  # 2:10 for the second time: 2:30 was before it
    times = (found.timestamp() for found in CronSim(expression, start, reverse=True))
    return next((found for found in times if found <= until), -math.inf)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):  # also of a name that leads out of the zones' folder, or to a folder
        raise ValueError("expected the name of a time zone such as Europe/Berlin") from None
