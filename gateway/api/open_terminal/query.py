"""Fields of Open Terminal's requests. Models write them, so `null` in a query counts as absent, as with its server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from gateway.api.errors import ParamError
from gateway.api.sandbox_paths import FilePath, PathError, resolve

_MAX_TEXT_CHARS = 4096
_MAX_REPEATED = 16


def text(request: Request, name: str, default: str | None = None) -> str:
    """A text of the query. Raises ParamError where it is missing without a default."""
    values = texts(request, name)
    if not values and default is None:
        raise ParamError(name, "missing in the query")
    return values[-1] if values else default or ""


def texts(request: Request, name: str) -> list[str]:
    """All values of a text that may be repeated. Raises ParamError."""
    values = [each for each in request.query_params.getlist(name) if each.lower() != "null"]
    if len(values) > _MAX_REPEATED or any(len(each) > _MAX_TEXT_CHARS for each in values):
        raise ParamError(name, f"expected at most {_MAX_REPEATED} texts of {_MAX_TEXT_CHARS} characters")
    return values


def flag(request: Request, name: str, *, default: bool = False) -> bool:
    """true or false. Raises ParamError."""
    value = text(request, name, "true" if default else "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise ParamError(name, "expected true or false")
    return value in ("true", "1")


def count(request: Request, name: str, default: int, *, least: int = 1, most: int = 1 << 53) -> int:
    """A whole number. Raises ParamError."""
    value = text(request, name, "")
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 17 and least <= int(value) <= most):
        raise ParamError(name, f"expected a whole number from {least} to {most}")
    return int(value)


def seconds(request: Request, name: str, default: float, most: float) -> float:
    """A duration in seconds, zero included. Raises ParamError."""
    value = text(request, name, "")
    try:
        number = float(value[:32]) if value else default
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise ParamError(name, f"expected seconds from 0 to {most:g}")
    return number


def field(body: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    """A text of the body. Raises ParamError."""
    value = body.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise ParamError(name, "expected text")
    return value


def located(name: str, path: str, base: str) -> FilePath:
    """The file that a field names. Raises ParamError."""
    try:
        return resolve(path, base)
    except PathError as error:
        raise ParamError(name, str(error)) from None
