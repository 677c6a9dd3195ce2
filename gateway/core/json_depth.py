"""JSON of strangers: read only as deeply nested as it can be written again.

orjson reads 1,024 levels and writes 254. What lies in between could be taken from a client or a sandbox and then
neither stored nor answered, with an error in the middle of what handles it. Pure.
"""

from __future__ import annotations

from typing import Any

import orjson

MAX_DEPTH = 128
_WRITTEN = 254  # by orjson; the difference is for what the value is put into


class TooDeepError(ValueError):
    """A text is JSON, and nested too deeply; the message is for its sender."""

    def __init__(self) -> None:
        super().__init__(f"it is nested more than {MAX_DEPTH} levels deep")


def loads(data: bytes | str) -> Any:
    """Parse JSON of at most MAX_DEPTH levels. Raises TooDeepError, or another ValueError for what is no JSON."""
    value = orjson.loads(data)
    # Three searches in C for nearly all texts, which have fewer brackets than levels are allowed.
    opened = data.count("[") + data.count("{") if isinstance(data, str) else data.count(b"[") + data.count(b"{")
    if opened > MAX_DEPTH and _is_too_deep(value):
        raise TooDeepError
    return value


def _is_too_deep(value: Any) -> bool:
    # By the encoder itself, which is in C: a walk in Python takes 0.1 s for the 200,000 values that an answer may hold.
    for _ in range(_WRITTEN - MAX_DEPTH):
        value = [value]
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return True
    return False
