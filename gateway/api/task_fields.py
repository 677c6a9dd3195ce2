"""What a request for a task asks for, read from its header fields and its body. Bad values are BadRequestErrors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from gateway.core.errors import BadRequestError
from gateway.core.units import parse_lifetime
from gateway.tasks.model import Task, Webhook
from gateway.tasks.webhooks import Webhooks

MAX_ATTEMPTS = 20
MAX_TIMEOUT_S = 6 * 3600.0
_KEPT_HEADERS = ("content-type", "accept", "accept-language", "traceparent", "tracestate", "x-request-id")
_MAX_HEADER_BYTES = 1024  # of each
_MAX_KEY = 256  # characters of an idempotency key


def identified(task: Task, key: str, path: str, body: bytes) -> Task:
    """The task under an id that the client's key decides, so that a request that is sent again makes no second one."""
    if len(key) > _MAX_KEY:
        raise BadRequestError(f"Idempotency-Key: expected at most {_MAX_KEY} characters")
    caller = task.caller
    name = "\0".join((task.tenant, str(caller["user"] or caller["subject"]), task.namespace, task.name, key))
    digest = hashlib.sha256(path.encode() + b"\0" + body).hexdigest()
    return replace(task, id=f"task_{hashlib.sha256(name.encode()).hexdigest()[:32]}", digest=digest)


def kept_headers(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What the agent gets of the client's fields. An allow-list: cookies, keys and proxies' fields end here."""
    found = tuple((name, headers[name]) for name in _KEPT_HEADERS if name in headers)
    for name, value in found:
        if len(value) > _MAX_HEADER_BYTES:
            raise BadRequestError(f"{name}: expected at most {_MAX_HEADER_BYTES} characters")
    return found


def seconds_of(fields: Mapping[str, str], name: str, default: float, most: float) -> float:
    """A duration of a field, from 0 to `most` seconds; 0 only where that is the default."""
    text = fields.get(name)
    if text is None:
        return default
    try:
        seconds = parse_lifetime(text) if not text.replace(".", "", 1).isdecimal() else float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= most or (seconds == 0 and default):
        raise BadRequestError(f"{name}: expected a duration of at most {most:g} s, such as 30 or 5m; got {text[:64]!r}")
    return seconds


async def webhook_of(headers: Mapping[str, str], webhooks: Webhooks) -> Webhook | None:
    """The webhook that the fields ask for, to an address that is open to webhooks."""
    url = headers.get("x-wakegate-webhook")
    if not url:
        return None
    try:
        await webhooks.check(url)
    except ValueError as error:
        raise BadRequestError(f"x-wakegate-webhook: {error}") from None
    return Webhook(url)


def number_of(fields: Mapping[str, str], name: str, default: int, most: int) -> int:
    """The number of a field, from 1 to `most`."""
    return digits_of(fields[name], name, most) if name in fields else default


def digits_of(text: str, name: str, most: int) -> int:
    """A number from 1 to `most`; `name` is that of its field."""
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= most:
        raise BadRequestError(f"{name}: expected a whole number from 1 to {most}, got {text[:64]!r}")
    return int(text)
