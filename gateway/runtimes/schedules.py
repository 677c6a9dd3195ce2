"""Reads `spec.wakegate.schedules` of an AgentRuntime: when it is asked something, and what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.core.cron import check_cron
from gateway.core.model import Schedule
from gateway.runtimes.fields import Reader

MAX_BODY_BYTES = 64 << 10
_PREFIX = "spec.wakegate.schedules"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PATH = re.compile(r"/[!-~]{0,1000}")


def read_schedules(entries: Sequence[Any], reader: Reader) -> tuple[Schedule, ...]:
    """The schedules of a manifest; problems go to the reader, each with its place."""
    found: dict[str, Schedule] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "name" not in entry or "cron" not in entry:
            continue  # the schema has reported it
        place, name = f"{_PREFIX}[{index}]", entry["name"]
        if not _NAME.fullmatch(name):
            reader.problem(f"{place}.name", "expected a DNS label (a-z, 0-9 and -, at most 63)", name)
        if name in found:
            reader.problem(f"{place}.name", "expected a name that no other schedule has", name)
        path, cron, timezone = entry.get("path", "/"), entry["cron"], entry.get("timezone", "UTC")
        if not _PATH.fullmatch(path):
            reader.problem(f"{place}.path", "expected a path in ASCII such as /report?kind=short", path)
        try:
            check_cron(cron, timezone)
        except ValueError as error:
            reader.note(f"{place}.cron", f"{error}; got {cron[:60]!r} in {timezone[:60]!r}")
        found[name] = Schedule(name, cron, timezone, path, _body(entry.get("body", {}), f"{place}.body", reader))
    return tuple(found.values())


def _body(value: Any, place: str, reader: Reader) -> str:
    try:
        text = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:  # a surrogate, an integer of more than 64 bits
        reader.note(place, f"is nothing that JSON has: {error}")
        return "{}"
    if len(text) > MAX_BODY_BYTES:
        reader.note(place, f"expected at most {MAX_BODY_BYTES} bytes, got {len(text)}")
    return text.decode()
