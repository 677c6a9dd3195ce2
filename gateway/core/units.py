"""Parsing and printing of units: Go durations ("1m30s"), Kubernetes quantities ("512Mi"), times, sizes.

Sources: Go `time.ParseDuration`; Kubernetes `resource.Quantity` serialisation format; RFC 3339.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

MAX_CHARS = 64  # of a duration or a quantity; realistic ones have up to about twenty

_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# Only ever matched at a given position. A search would try again from each digit of a long number that has no unit,
# which takes time quadratic in its length: 11 s for 16,000 digits.
_DURATION_TERM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_DAYS = re.compile(r"([0-9]{1,5})d")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[EPTGMk]i?|Ki|m|u|n)?")
_FACTORS = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3,
    "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as "15m", "2.5s", "1h30m" or "0", of at most 64 characters.

    Raises ValueError with an example of the right form.
    """
    if text == "0":
        return 0.0
    position, total = 0, 0.0
    while 0 < len(text) <= MAX_CHARS:
        term = _DURATION_TERM.match(text, position)
        if term is None:
            break
        total += float(term[1]) * _UNIT_SECONDS[term[2]]
        position = term.end()
        if position == len(text):
            return total
    raise ValueError(f"{_shown(text)} is not a duration; write a number with a unit, e.g. 30s, 15m or 1h30m")


def parse_lifetime(text: str) -> float:
    """Seconds of a duration that may also be whole days, such as "90d".

    Days are not part of Go's durations, which manifests use, because a day need not have 24 hours; here it has.
    Raises ValueError.
    """
    days = _DAYS.fullmatch(text)
    return float(days[1]) * 86400.0 if days is not None else parse_duration(text)


def parse_quantity(text: str) -> float:
    """The number a Kubernetes quantity stands for, e.g. "512Mi" -> 536870912.0, "250m" -> 0.25.

    Accepts at most 64 characters. Raises ValueError with an example of the right form.
    """
    match = _QUANTITY.fullmatch(text) if len(text) <= MAX_CHARS else None
    if match is None:
        raise ValueError(
            f"{_shown(text)} is not a quantity; write a number with an optional suffix, e.g. 512Mi, 2Gi or 500m"
        )
    number, suffix = match[1], match[2] or ""
    # "2e3" and "2E3" are exponents, "2E" and "2Ei" are exa and exbi.
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        return float(number + suffix)
    return float(number) * _FACTORS[suffix]


def _shown(text: str) -> str:
    """Text of any length, quoted and truncated for an error message."""
    return repr(text) if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]!r}... (more than {MAX_CHARS} characters)"


def readable_size(size: int) -> str:
    """A size in binary units, four digits: 4294967296 -> "4 GiB", 1500 -> "1.465 KiB"."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def rfc3339(seconds: float) -> str:
    """An epoch time as text, UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
