"""JSON bodies, parsed and validated field by field; errors have the text of AgentCube's Go executor. Pure."""

from __future__ import annotations

import json
from typing import Any, TypeGuard

from picod.http.request import RequestError

_DECODER = json.JSONDecoder()  # for raw_decode: like Go's json.Decoder it ignores what follows the first value
_GO_NAMES = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}


def parse_object(body: bytes, struct: str) -> dict[str, Any]:
    """The JSON object at the start of `body`; what follows it is ignored. Raises RequestError 400."""
    try:
        text = body.decode("utf-8").lstrip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the request body is not valid UTF-8 (byte {error.start})") from error
    if not text:
        raise RequestError(400, "EOF")
    try:
        value, _ = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise RequestError(400, f"invalid JSON: {error.msg} at character {error.pos}") from error
    except (RecursionError, ValueError) as error:
        raise RequestError(400, "invalid JSON: nested too deeply, or a number too long") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(400, f"json: cannot unmarshal {_GO_NAMES[type(value)]} into Go value of type api.{struct}")
    return value


def text_field(fields: dict[str, Any], struct: str, name: str) -> str | None:
    """A string, or None if absent or null. Raises RequestError 400 for any other type."""
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise wrong_type(value, struct, name, "string")


def texts_field(fields: dict[str, Any], struct: str, name: str) -> list[str] | None:
    """A list of strings, or None if absent or null. Raises RequestError 400 for any other type."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise wrong_type(value, struct, name, "[]string")
    for item in value:
        if not isinstance(item, str):
            raise wrong_type(item, struct, name, "string")
    return value


def text_map_field(fields: dict[str, Any], struct: str, name: str) -> dict[str, str]:
    """An object of strings, empty if absent or null. Raises RequestError 400 for any other type."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_type(value, struct, name, "map[string]string")
    if not _are_texts(value):
        odd = next(item for item in value.values() if not isinstance(item, str))
        raise wrong_type(odd, struct, name, "string")
    return value


def flag_field(fields: dict[str, Any], struct: str, name: str, *, default: bool) -> bool:
    """A boolean; absent and null are the default. Raises RequestError 400."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong_type(value, struct, name, "bool")
    return value


def missing(struct: str, name: str) -> RequestError:
    """The error for a required field that is missing."""
    label = name.capitalize()
    return RequestError(
        400, f"Key: '{struct}.{label}' Error:Field validation for '{label}' failed on the 'required' tag"
    )


def wrong_type(value: object, struct: str, name: str, wanted: str) -> RequestError:
    """The error for a field whose type is not `wanted`."""
    seen = _GO_NAMES.get(type(value), "null")
    return RequestError(400, f"json: cannot unmarshal {seen} into Go struct field {struct}.{name} of type {wanted}")


def _are_texts(value: dict[str, Any]) -> TypeGuard[dict[str, str]]:
    return all(isinstance(item, str) for item in value.values())
