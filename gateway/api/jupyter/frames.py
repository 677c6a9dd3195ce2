"""Messages of Jupyter's kernels on a WebSocket, in its two framings: JSON text, and binary parts (v1). Pure.

Source: jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.core import json_depth

V1 = "v1.kernel.websocket.jupyter.org"
MAX_MESSAGE_BYTES = 4 << 20  # of a client's; what a kernel shows is bounded by picod
_MAX_PARTS = 64
_NAMES = ("header", "parent_header", "metadata", "content")


class FrameError(ValueError):
    """A frame is no message; the text is for the client."""


def parse(frame: str | bytes, *, v1: bool) -> Mapping[str, Any]:
    """A message with header, content and channel, all of the right types. Raises FrameError."""
    if len(frame) > MAX_MESSAGE_BYTES:
        raise FrameError(f"a message is larger than {MAX_MESSAGE_BYTES} bytes")
    try:
        message = _parse_v1(frame) if v1 and isinstance(frame, bytes) else json_depth.loads(frame)
    except (ValueError, struct.error) as error:
        raise FrameError(f"a frame is no message of Jupyter's: {error}") from None
    if not isinstance(message, dict):
        raise FrameError("a message is an object")
    for name in ("header", "content"):
        if not isinstance(message.get(name), dict):
            raise FrameError(f"{name}: expected an object")
    header = message["header"]
    for name in ("msg_id", "msg_type"):
        if not isinstance(header.get(name), str) or len(header[name]) > 256:
            raise FrameError(f"header.{name}: expected a short text")
    return message


def _parse_v1(frame: bytes) -> dict[str, Any]:
    (count,) = struct.unpack_from("<Q", frame)
    # channel, four parts and the end: six offsets, and one more for each buffer.
    if not 6 <= count <= _MAX_PARTS:
        raise FrameError(f"expected 6 to {_MAX_PARTS} offsets, got {count}")
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    # Counted from the frame's begin: six of them end at byte 56, where the first part begins. In any other order parts
    # would overlap, and 63 of them could each be the whole 4 MiB.
    if list(offsets) != sorted(offsets) or offsets[0] < 8 * (count + 1) or offsets[-1] > len(frame):
        raise FrameError("the offsets are not those of parts one after another")
    parts = [frame[begin:end] for begin, end in itertools.pairwise(offsets)]
    named = dict(zip(_NAMES, map(json_depth.loads, parts[1:5]), strict=True))
    return {"channel": parts[0].decode(), **named, "buffers": parts[5:]}


def render(message: Mapping[str, Any], *, v1: bool) -> str | bytes:
    """Encode a message as a WebSocket frame of this connection's subprotocol."""
    if not v1:
        # Without raw data: this framing has another one for messages with it, which no client here was seen to speak.
        return orjson.dumps({**message, "buffers": []}).decode()
    parts = [message["channel"].encode(), *(orjson.dumps(message[name]) for name in _NAMES), *message["buffers"]]
    offset = 8 * (len(parts) + 2)  # behind the count, an offset for each part, and that of the end
    offsets = [offset]
    for part in parts:
        offset += len(part)
        offsets.append(offset)
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)
