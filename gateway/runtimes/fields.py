"""Typed look-ups in a document that a person wrote, noting every problem in place of stopping at the first.

Below the rooms that read manifests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.units import parse_duration, parse_quantity

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LONGEST_S = 1e9  # durations, so that every end is a date that can be shown
_LARGEST = 2.0**63


def named(value: Any) -> str:
    """A value as it stands in a message."""
    return "nothing" if value is None else repr(value)[:60]


class Reader:
    """Typed look-ups in one document that note problems in place of raising."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self._where = where
        self._problems = problems

    def problem(self, path: str, right: str, got: Any) -> None:
        """Note what is wrong at `path`, what would be right, and what was found."""
        self._problems.append(f"{self._where}: {path}: {right}, got {named(got)}")

    def mapping(
        self, parent: Mapping[str, Any], key: str, prefix: str = "", *, required: bool = False
    ) -> Mapping[str, Any]:
        """A mapping, empty when it is absent."""
        value = parent.get(key)
        if isinstance(value, Mapping):
            return value
        if value is not None or required:
            self.problem(prefix + key, "expected a mapping", value)
        return {}

    def sequence(self, parent: Mapping[str, Any], key: str, prefix: str) -> Sequence[Any]:
        """A list, empty when it is absent."""
        value = parent.get(key)
        if value is None or isinstance(value, list):
            return value or []
        self.problem(prefix + key, "expected a list", value)
        return []

    def text(self, parent: Mapping[str, Any], key: str, prefix: str) -> str:
        """Text, empty when it is absent."""
        value = parent.get(key)
        if value is None or isinstance(value, str):
            return value or ""
        self.problem(prefix + key, "expected text", value)
        return ""

    def label(self, parent: Mapping[str, Any], key: str, prefix: str, default: str | None = None) -> str:
        """A DNS label."""
        value = parent.get(key, default)
        if isinstance(value, str) and DNS_LABEL.fullmatch(value):
            return value
        self.problem(prefix + key, "expected a DNS label (a-z, 0-9 and -, at most 63)", value)
        return "invalid"

    def choice(self, parent: Mapping[str, Any], key: str, prefix: str, choices: tuple[str, ...], default: str) -> str:
        """One of `choices`."""
        value = parent.get(key, default)
        if value in choices:
            return str(value)
        self.problem(prefix + key, f"expected one of {', '.join(choices)}", value)
        return default

    def whole(self, parent: Mapping[str, Any], key: str, prefix: str, default: int, *, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = parent.get(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.problem(prefix + key, f"expected a whole number from {low} to {high}", value)
        return default

    def duration(self, parent: Mapping[str, Any], key: str, prefix: str, default: float) -> float:
        """Seconds of a duration such as 15m."""
        value = parent.get(key)
        if value is None:
            return default
        try:
            seconds = parse_duration(value) if isinstance(value, str) else -1.0
        except ValueError:
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
            number = parse_quantity(str(value)) if isinstance(value, str | int | float) else 0.0
        except ValueError:
            number = 0.0
        if 0 < number < _LARGEST:
            return number
        self.problem(prefix + key, "expected a quantity above zero such as 512Mi or 500m", value)
        return None
