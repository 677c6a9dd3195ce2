"""What differs between two manifests, field by field, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_DIFFERENCES = 100
_ABSENT = object()


def differences(old: Any, new: Any) -> list[dict[str, Any]]:
    """`{"field", "from", "to"}` of each value that differs, at most MAX_DIFFERENCES; absent ones have none."""
    found: list[dict[str, Any]] = []
    for path, before, after in _walk(old, new, ""):
        entry: dict[str, Any] = {"field": path}
        if before is not _ABSENT:
            entry["from"] = before
        if after is not _ABSENT:
            entry["to"] = after
        found.append(entry)
        if len(found) == MAX_DIFFERENCES:
            break
    return found


def _walk(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            where = f"{path}.{name}" if path else str(name)
            yield from _walk(old.get(name, _ABSENT), new.get(name, _ABSENT), where)
    elif _is_list(old) and _is_list(new):
        for index in range(max(len(old), len(new))):
            before = old[index] if index < len(old) else _ABSENT
            yield from _walk(before, new[index] if index < len(new) else _ABSENT, f"{path}[{index}]")
    elif old is _ABSENT or new is _ABSENT or type(old) is not type(new) or old != new:
        yield path, old, new


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
