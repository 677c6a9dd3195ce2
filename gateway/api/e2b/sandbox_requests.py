"""Fields of the control plane's requests, read from bodies and queries. Each function raises BadRequestError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

from gateway.api.e2b.records import fits
from gateway.core.errors import BadRequestError

_MAX_TIMEOUT_S = 30 * 86400
_MAX_QUERY_CHARS = 8192
_MAX_TEMPLATE_CHARS = 512
_MAX_FIELDS = 64
_NATIVE_FIELDS = {"runtime": "templateID", "ttl": "timeout", "idleTimeout": "timeout with autoPause"}
_Default = TypeVar("_Default", bool, None)


def read_metadata_filter(text: str) -> dict[str, str]:
    """The pairs that a list is filtered by. The SDKs encode them three times, of which two are left here.

    Raises BadRequestError.
    """
    if len(text) > _MAX_QUERY_CHARS:
        raise BadRequestError(f"metadata: expected at most {_MAX_QUERY_CHARS} characters")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=64)
        return {unquote(name, errors="strict"): unquote(value, errors="strict") for name, value in pairs}
    except ValueError:
        raise BadRequestError("metadata: expected key=value pairs, joined by & and percent-encoded") from None


def check_fields(body: Mapping[str, Any]) -> None:
    """Unknown fields are ignored, as newer clients send more; but only so many of them, and none that is another API's.

    Raises BadRequestError.
    """
    if len(body) > _MAX_FIELDS:
        raise BadRequestError(f"expected at most {_MAX_FIELDS} fields, got {len(body)}")
    for name, meant in _NATIVE_FIELDS.items():
        if name in body:
            raise BadRequestError(f"{name}: a field of /v1/sessions; here it is {meant}")


def read_template(body: Mapping[str, Any]) -> str:
    """`templateID` without its tag; empty where it is absent."""
    value = body.get("templateID", "")
    if not isinstance(value, str) or len(value) > _MAX_TEMPLATE_CHARS:
        raise BadRequestError("templateID: expected text")
    return value.partition(":")[0]  # without the tag: runtimes have their revisions elsewhere


def read_envs(body: Mapping[str, Any]) -> dict[str, str]:
    """`envVars`, as far as a process can have them and a record keep them."""
    envs = read_field(body, "envVars")
    for name, value in envs.items():
        if not isinstance(value, str) or not name or "=" in name or "\0" in name + value:
            raise BadRequestError(f"envVars.{name[:64]}: expected text, and a name without '='")
    if not fits(envs):
        raise BadRequestError("envVars: expected at most 16 KiB in all")
    return dict(envs)


def read_field(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field that is an object; absent and null are an empty one."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError(f"{name}: expected an object")
    return value


def read_flag(body: Mapping[str, Any], name: str, *, default: _Default) -> bool | _Default:
    """A field that is true or false; absent and null are `default`."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequestError(f"{name}: expected true or false")
    return value


def read_timeout(body: Mapping[str, Any], name: str, default: float | None) -> float:
    """A field of seconds, above zero. `default` None: the field must be there."""
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIMEOUT_S:
        raise BadRequestError(f"{name}: expected seconds from 0 to {_MAX_TIMEOUT_S}")
    return max(float(value), 0.001)  # 0 is now: E2B kills it then
