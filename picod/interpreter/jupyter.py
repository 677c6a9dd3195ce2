"""Build, sign, parse and verify Jupyter messages. Pure.

The kernel is user code, so a message is untrusted: its size and the number of its values are bounded before
it is parsed, and the type of every field is checked. The signature keeps other processes of the sandbox out,
not the kernel itself.

Source: https://jupyter-client.readthedocs.io/en/stable/messaging.html (protocol 5.3).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_DELIMITER = b"<IDS|MSG>"
_VERSION = "5.3"
_MAX_VALUES = 1_000_000
_MAX_ROUTES = 8  # frames before the delimiter


class MessageError(Exception):
    """A message that is malformed, oversized or wrongly signed."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a kernel. `content` is None if it was too large."""

    kind: str
    parent: str  # msg_id of the request that it belongs to, or empty
    content: dict[str, Any] | None
    buffers: tuple[bytes, ...] = ()  # raw data that belongs to the content


def execute_request(key: bytes, session: str, msg_id: str, code: str, *, silent: bool, expressions: Any) -> list[bytes]:
    """The frames that ask for a run of `code`. `expressions` (name -> Python expression) are evaluated after it.

    The header has no date, though the protocol has one: picod does not use it, and the kernel would parse it and repeat
    it in each of its messages. `asked_at` is for userside/interrupts.py, which has to tell interrupts of this run from
    those of an earlier one.
    """
    header = {
        "msg_id": msg_id,
        "session": session,
        "username": "",
        "msg_type": "execute_request",
        "version": _VERSION,
    }
    content = {
        "code": code,
        "silent": silent,
        "store_history": not silent,
        "user_expressions": expressions,
        "allow_stdin": False,  # input() raises at once: nobody can answer it
        "stop_on_error": False,  # else a failing run would abort what the kernel has queued behind it
    }
    parts = [json.dumps(part).encode() for part in (header, {}, {"asked_at": time.monotonic()}, content)]
    return [_DELIMITER, sign(key, parts), *parts]


def read_message(key: bytes, frames: Sequence[bytes], *, cut: bool) -> Message:
    """Parse frames into a message; with `cut`, oversized frames are empty. Raises MessageError."""
    try:
        start = frames.index(_DELIMITER, 0, _MAX_ROUTES) + 1  # ROUTER sockets put the sender's identity before it
    except ValueError as error:
        raise MessageError("no delimiter") from error
    parts = list(frames[start + 1 : start + 5])
    if len(parts) < 4:
        raise MessageError("frames are missing")
    # The signature of a message that is too large cannot be checked; only that it came, and its kind, are used.
    if not cut and not hmac.compare_digest(sign(key, parts), frames[start]):
        raise MessageError("a wrong signature")
    header, parent = _object(parts[0]), _object(parts[1])
    kind, about = header.get("msg_type"), parent.get("msg_id", "")
    if not isinstance(kind, str) or not isinstance(about, str):
        raise MessageError("a malformed header")
    # Behind the signed parts; how many and how large they are, the connection bounds (zmtp.py).
    buffers = () if cut else tuple(frames[start + 5 :])
    return Message(kind, about, None if cut else _object(parts[3]), buffers)


def sign(key: bytes, parts: Sequence[bytes]) -> bytes:
    """HMAC-SHA256 over header, parent, metadata and content, in hexadecimal."""
    return hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode()


def _object(data: bytes) -> dict[str, Any]:
    # Bounded before parsing: one megabyte of `[[],[],...` becomes thirty megabytes of lists.
    # Those inside of texts count too: an honest message has far fewer, and counting costs some milliseconds at most.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MAX_VALUES:
        raise MessageError("too many values")
    try:
        value = json.loads(data, parse_constant=lambda _: None)  # NaN is Python's; as in other JSON, null
    except (ValueError, RecursionError) as error:
        raise MessageError("not JSON") from error
    if not isinstance(value, dict):
        raise MessageError("not an object")
    return value
