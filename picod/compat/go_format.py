"""Go's notations for durations, times and file modes, which AgentCube's clients parse and send. Pure."""

from __future__ import annotations

import re
import stat
import time

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_MAX_NS = (1 << 63) - 1
_MAX_CHARS = 64  # of a duration, which may come from a body of many megabytes


class DurationError(ValueError):
    """The text is not a duration; the message is that of Go's time.ParseDuration."""


def parse_duration(text: str) -> float:
    """The seconds in a duration such as `30s`, `500ms`, `2.5s`, `1m30s`, `-1s`, `0`. Raises DurationError.

    The grammar is that of Go's time.ParseDuration, for a text of at most 64 characters.
    """
    if len(text) > _MAX_CHARS:
        raise DurationError(f'time: invalid duration "{text[:_MAX_CHARS]}..."')
    position = 1 if text[:1] in ("+", "-") else 0
    if text[position:] == "0":
        return 0.0
    if position == len(text):
        raise DurationError(f'time: invalid duration "{text}"')
    # Whole nanoseconds, as Go counts: a float loses them from 104 days on (2**53 ns).
    total = 0
    while position < len(text):
        match = _TERM.match(text, position)
        assert match is not None
        whole, fraction, unit = match[1], match[2] or "", match[3]
        if not whole and not fraction:
            raise DurationError(f'time: invalid duration "{text}"')
        if not unit:
            raise DurationError(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS_NS:
            raise DurationError(f'time: unknown unit "{unit}" in duration "{text}"')
        if len(whole) > 20:
            raise DurationError(f'time: invalid duration "{text}"')
        fraction = fraction[:18]  # finer than a nanosecond of the largest unit
        total += int(whole or "0") * _UNITS_NS[unit] + int(fraction or "0") * _UNITS_NS[unit] // 10 ** len(fraction)
        position = match.end()
    if total > _MAX_NS:
        raise DurationError(f'time: invalid duration "{text}"')
    return -total / 1e9 if text[0] == "-" else total / 1e9


def format_duration(seconds: float) -> str:
    """A duration as Go prints it: `996.6ms`, `1m30.5s`, `2h0m0s`, `0s`."""
    ns = round(seconds * 1e9)
    if ns == 0:
        return "0s"
    if ns < 1_000_000_000:  # below a second Go changes the unit: 1.5ms, 20µs; above, it is always h, m and s
        unit = next(unit for unit in ("ms", "\u00b5s", "ns") if ns >= _UNITS_NS[unit])
        return _trimmed(ns, _UNITS_NS[unit]) + unit
    minutes, rest = divmod(ns, _UNITS_NS["m"])
    text = _trimmed(rest, _UNITS_NS["s"]) + "s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{minutes}m{text}"
        if hours:
            text = f"{hours}h{text}"
    return text


def _trimmed(ns: int, unit: int) -> str:
    whole, rest = divmod(ns, unit)
    digits = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def format_time(ns: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 in UTC, without trailing zeros in the fraction."""
    seconds, rest = divmod(ns, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


_TYPE_LETTERS = (
    (stat.S_IFDIR, "d"),
    (stat.S_IFLNK, "L"),
    (stat.S_IFBLK, "D"),
    (stat.S_IFIFO, "p"),
    (stat.S_IFSOCK, "S"),
    (stat.S_IFCHR, "Dc"),
)


def format_mode(mode: int) -> str:
    """A mode as Go prints an fs.FileMode: type letters (`d`, `L`, ..., `u`, `g`, `t`), then nine permission letters."""
    letters = next((letter for kind, letter in _TYPE_LETTERS if stat.S_IFMT(mode) == kind), "")
    head, tail = letters[:1], letters[1:]
    setids = ("u" if mode & stat.S_ISUID else "") + ("g" if mode & stat.S_ISGID else "")
    sticky = "t" if mode & stat.S_ISVTX else ""
    permissions = "".join(letter if mode & (0o400 >> index) else "-" for index, letter in enumerate("rwxrwxrwx"))
    return (head + setids + tail + sticky or "-") + permissions
