"""Problems of a document that a person wrote, noted in place of raised, and the values that a schema cannot bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.units import parse_duration, parse_quantity

_LONGEST_S = 1e9  # durations, so that every end is a date that can be shown
_LARGEST = 2.0**63


def named(value: Any) -> str:
    """A value as it stands in a message."""
    return "nothing" if value is None else repr(value)[:60]


def path_of(steps: Sequence[str | int]) -> str:
    """A field's path as people write it: `spec.ports[0].port`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{str(step)[:100]}" for step in steps)
    return text.removeprefix(".")


class Reader:
    """Notes what is wrong in one document, called `where` in messages."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.where = where
        self._problems = problems

    def note(self, path: str, problem: str) -> None:
        """A problem in its own words."""
        self._problems.append(f"{self.where}: {path}: {problem}")

    def problem(self, path: str, right: str, got: Any) -> None:
        """What is wrong at `path`, what would be right, and what was found."""
        self.note(path, f"{right}, got {named(got)}")

    def duration(self, parent: Mapping[str, Any], key: str, prefix: str, default: float) -> float:
        """Seconds of a duration such as 15m: above zero, and not for ever."""
        value = parent.get(key)
        if value is None:
            return default
        try:
            seconds = parse_duration(value)
        except ValueError:  # what a pattern lets through: a line's end
            seconds = -1.0
        if 0 < seconds < _LONGEST_S:
            return seconds
        self.problem(prefix + key, "expected a duration above zero such as 15m or 8h", value)
        return default

    def quantity(self, parent: Mapping[str, Any], key: str, prefix: str) -> float | None:
        """A quantity above zero such as 512Mi, None when it is absent."""
        value = parent.get(key)
        if value is None:
            return None
        try:
            number = parse_quantity(str(value))
        except ValueError:  # also -1 and nan, which YAML has as numbers
            number = 0.0
        if 0 < number < _LARGEST:
            return number
        self.problem(prefix + key, "expected a quantity above zero such as 512Mi or 500m", value)
        return None
