"""Reads and checks the arguments of a model's call. Errors are worded for the model, which can correct itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson

from gateway.api.tools.catalogue import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S

WORKSPACE = "/workspace"
_MAX_PATH_CHARS = 4096


class ArgumentError(ValueError):
    """An argument of a model's call is invalid. The model reads the text, so it names the argument and what to send."""


def read_text(arguments: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    """A required string; `empty`: the empty string is allowed. Raises ArgumentError."""
    value = arguments.get(name)
    if value is None:
        raise ArgumentError(f"{name}: missing; expected text")
    if not isinstance(value, str) or (not value and not empty):
        raise ArgumentError(f"{name}: expected text, got {_shown(value)}")
    return value


def read_whole(arguments: Mapping[str, Any], name: str, default: int, low: int) -> int:
    """A whole number from `low` to 2**60. Raises ArgumentError."""
    value = arguments.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**60:
        raise ArgumentError(f"{name}: expected a whole number of at least {low}, got {_shown(value)}")
    return value


def read_timeout(arguments: Mapping[str, Any]) -> float:
    """The `timeout` of a run in seconds, DEFAULT_TIMEOUT_S if absent. Raises ArgumentError."""
    value = arguments.get("timeout")
    if value is None:
        return DEFAULT_TIMEOUT_S
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_TIMEOUT_S:
        raise ArgumentError(f"timeout: expected seconds above 0, at most {MAX_TIMEOUT_S}, got {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    # The first 60 characters: the model knows what it sent.
    return "nothing" if value == "" else orjson.dumps(value).decode()[:60]


def in_workspace(path: str) -> str:
    """Make a path relative to the workspace: models send `/workspace/a` and `a` alike. Raises ArgumentError."""
    # `/workspace/a` and `a` are both `a`; `/workspace2/a` is left alone and refused.
    relative = path.removeprefix(WORKSPACE).lstrip("/") if f"{path}/".startswith(f"{WORKSPACE}/") else path
    if relative.startswith("/"):
        raise ArgumentError(f"path: {path[:200]} is not below {WORKSPACE}; use run_shell for other places")
    return relative


def file_target(path: str) -> str:
    """The request target of a file in picod's API. Raises ArgumentError."""
    relative = in_workspace(path)
    # An absolute path elsewhere was refused above; `..` is left to picod, which resolves links as well.
    if not relative or "\0" in relative or len(relative) > _MAX_PATH_CHARS:
        raise ArgumentError("path: expected the path of a file in the workspace")
    try:
        return "/api/files/" + quote(relative)
    except UnicodeEncodeError:
        raise ArgumentError("path: contains an unpaired surrogate, which is not a character") from None
