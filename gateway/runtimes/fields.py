"""Collects the problems of a manifest, to report all at once, and reads values that a schema cannot bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.units import parse_duration, parse_quantity

_MAX_DURATION_S = 1e9  # 31 years, so that every deadline is a date that can be formatted
_MAX_QUANTITY = 2.0**63  # bytes: what the kernel's files of limits and prlimit take is a signed 64-bit number


def named(value: Any) -> str:
    """A value as error messages show it, at most 60 characters."""
    return "nothing" if value is None else repr(value)[:60]


def path_of(steps: Sequence[str | int]) -> str:
    """A field's path in the usual notation: `spec.ports[0].port`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{str(step)[:100]}" for step in steps)
    return text.removeprefix(".")


class Reader:
    """Reads values of one document and collects its problems. `where` names the document in messages."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.where = where
        self._problems = problems

    def note(self, path: str, problem: str) -> None:
        """Add a problem with any text."""
        self._problems.append(f"{self.where}: {path}: {problem}")

    def problem(self, path: str, right: str, got: Any) -> None:
        """Add a problem: what is expected at `path`, and what was found."""
        self.note(path, f"{right}, got {named(got)}")

    def duration(
        self, parent: Mapping[str, Any], key: str, prefix: str, default: float, *, zero: bool = False
    ) -> float:
        """Seconds of a duration such as 15m, above zero (or zero, where that means never) and below _MAX_DURATION_S."""
        value = parent.get(key)
        if value is None:
            return default
        try:
            seconds = parse_duration(value)
        except ValueError:  # `$` of the schema's pattern also matches before a final newline
            seconds = -1.0
        if 0 < seconds < _MAX_DURATION_S or (zero and seconds == 0):
            return seconds
        self.problem(prefix + key, "expected a duration above zero such as 15m or 8h", value)
        return default

    def quantity(self, parent: Mapping[str, Any], key: str, prefix: str) -> float | None:
        """A quantity above zero such as 512Mi; None if it is absent."""
        value = parent.get(key)
        if value is None:
            return None
        try:
            number = parse_quantity(str(value))
        except ValueError:  # also -1 and nan, which YAML has as numbers
            number = 0.0
        if 0 < number < _MAX_QUANTITY:
            return number
        self.problem(prefix + key, "expected a quantity above zero such as 512Mi or 500m", value)
        return None
