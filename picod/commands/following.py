"""What a request says of following a run: `stream` and `background` of its body, and Last-Event-ID. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from picod.http.json_fields import wrong_type
from picod.http.request import Request, RequestError


@dataclass(frozen=True, slots=True)
class Following:
    """What a request says of streaming. `after` is the last event that the client has of `run_id`."""

    stream: bool = False
    background: bool = False
    run_id: str = ""
    after: int = 0


def read_following(fields: Mapping[str, Any], request: Request, struct: str) -> Following:
    """Read `stream`, `background` and Last-Event-ID. Raises RequestError 400."""
    flags = {}
    for name in ("stream", "background"):
        value = fields.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(value, struct, name, "bool")
        flags[name] = bool(value)
    if flags["background"] and not flags["stream"]:
        raise RequestError(400, "background goes with stream: true; POST /api/processes starts a process by itself")
    run_id, after = read_event_id(request) if flags["stream"] else ("", 0)
    return Following(flags["stream"], flags["background"], run_id, after)


def read_event_id(request: Request) -> tuple[str, int]:
    """The run and the number in Last-Event-ID; "" and 0 without one. Raises RequestError 400."""
    text = request.header(b"last-event-id")
    if not text:
        return "", 0
    run_id, _, number = text.partition(":")
    # Bounded, as int() takes quadratic time for a long text; isascii, as it refuses some digits of other scripts.
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        raise RequestError(400, "Last-Event-ID must be the id of an event, such as 4f2a...:17")
    return run_id, int(number)
