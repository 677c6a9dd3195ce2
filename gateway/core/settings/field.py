"""One setting: a dataclass field whose metadata says how it is parsed, bounded and explained."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    kind: str,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field with its help text and its bounds.

    `kind` is text, int, size, duration, path, paths or flag. `low` and `high` bound numbers, ends included.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "kind": kind,
            "choices": choices,
            "metavar": metavar or kind.upper(),
            "low": low,
            "high": high,
        },
    )
