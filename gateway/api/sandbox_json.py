"""Parses JSON answers of a sandbox. Code in it may have replaced picod, so they are hostile input.

The bound is on the cost of parsing, which depends on values more than on bytes: 60 MiB of `[],` blocked the event loop
for 11 s and took 2 GB, while 16 MiB of base64 take milliseconds. So the values are counted before parsing, and large
answers are parsed in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.core import json_depth
from gateway.core.errors import UpstreamBrokenError

MAX_ANSWER_BYTES = 4 << 20  # of an answer that holds no file's content
MAX_VALUES = 200_000  # some 0.1 s and 30 MB in the worst case, empty lists
INLINE_BYTES = 256 << 10  # up to here parsing takes at most a few milliseconds


class BadAnswerError(UpstreamBrokenError):
    """The sandbox's answer is not one that picod gives."""

    code = "SANDBOX_BAD_ANSWER"


async def parse_object(data: bytes) -> Mapping[str, Any]:
    """A JSON object. Raises BadAnswerError."""
    return parse_object_now(data) if len(data) <= INLINE_BYTES else await asyncio.to_thread(parse_object_now, data)


def parse_object_now(data: bytes) -> Mapping[str, Any]:
    """As `parse_object`, on this thread. Raises BadAnswerError."""
    if len(data) > INLINE_BYTES and count_values(data) > MAX_VALUES:
        raise BadAnswerError(f"the sandbox's answer holds more than {MAX_VALUES} values")
    try:
        value = json_depth.loads(data)
    except json_depth.TooDeepError as error:
        raise BadAnswerError(f"the sandbox's answer: {error}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BadAnswerError("the sandbox's answer is not a JSON object")
    return value


def count_values(data: bytes) -> int:
    """Estimate how many values a JSON text holds, in linear time. Contents of strings do not count.

    `["a,b", [1, 2]]` has one string, and outside of strings two commas and two brackets: 4.
    """
    # Each pass is one search in C. Escaped backslashes go first, since the quote in `\\"` does end its string.
    quotes = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = quotes.count(b'"') // 2
    if strings > MAX_VALUES:
        return strings
    outside = b"".join(quotes.split(b'"')[::2])
    return max(strings, outside.count(b",") + outside.count(b"[") + outside.count(b"{"))


def objects_of(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A field that is a list of objects; absent or null is an empty one. Raises BadAnswerError."""
    value = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadAnswerError(f"the sandbox's answer: {name} is not a list of objects")
    return value


def text_of(document: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field that is text. Raises BadAnswerError; also where it is absent, unless there is a default."""
    value = document.get(name, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise BadAnswerError(f"the sandbox's answer: {name} is not text")
    return value


def count_of(document: Mapping[str, Any], name: str) -> int:
    """A field that is a whole number from 0 to 2**53. Raises BadAnswerError."""
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 53:
        raise BadAnswerError(f"the sandbox's answer: {name} is not a size")
    return value
