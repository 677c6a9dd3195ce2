"""The building blocks of schema.py: constructors for small schemas, and the keywords that they use.

Kubernetes takes structural schemas only: no references and no `oneOf` over types, so shared shapes are functions that
return a new dict each time. `x-expected` has the words for error messages and is removed before a CRD is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.core.units import MAX_CHARS

Schema = dict[str, Any]

EXPECTED = "x-expected"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"

MAX_WARM = 10_000  # sandboxes of one pool
# What parse_duration and parse_quantity take; Kubernetes' own pattern of quantities has a sign and exponents beside it.
DURATION = r"^(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$"
QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[EPTGMk]i?|Ki|m|u|n)?$"


def environment_variable() -> Schema:
    """An EnvVar of Kubernetes' core/v1: a name, and a value or `valueFrom`."""
    value = {"type": "string", EXPECTED: "text without NUL; put it in quotes"}
    return object_of({"name": text(), "value": value, "valueFrom": any_object()}, required=["name"])


def duration(description: str = "", **more: Any) -> Schema:
    """A duration as text such as 15m, 1h30m or 0.5s; `more` are further keywords of the schema."""
    made = {"type": "string", "pattern": DURATION, "maxLength": MAX_CHARS, **more}
    return described(made, description, "a duration above zero such as 15m or 8h")


def quantity(description: str = "") -> Schema:
    """A number, or text such as 512Mi."""
    made = {INT_OR_STRING: True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    made |= {"pattern": QUANTITY, "maxLength": MAX_CHARS}
    return described(made, description, "a quantity above zero such as 512Mi or 500m")


def object_of(properties: Mapping[str, Schema], **more: Any) -> Schema:
    """An object with these fields; `more` are further keywords, such as `required`."""
    return {"type": "object", "properties": dict(properties), **more}


def list_of(items: Schema, description: str = "", **more: Any) -> Schema:
    """An array of any length, unless `more` bounds it."""
    return described({"type": "array", "items": items, **more}, description)


def keyed_by(field: str) -> Schema:
    """Of a list whose entries are identified by that field when several parties write it (server-side apply)."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [field]}


def text(description: str = "") -> Schema:
    """A string of any content and length."""
    return described({"type": "string"}, description)


def nul_free_text() -> Schema:
    """A string that may become an argument of a command. The check for NUL is in the parsers: a pattern cannot."""
    return {"type": "string", EXPECTED: "text without NUL; put it in quotes"}


def text_map() -> Schema:
    """A map of strings to strings, such as labels."""
    return {"type": "object", "additionalProperties": {"type": "string"}}


def any_object() -> Schema:
    """An object that is passed on to Kubernetes unchecked."""
    return {"type": "object", PRESERVE: True}


def choice(values: list[str], description: str = "", **more: Any) -> Schema:
    """One of several strings; `more` are further keywords of the schema."""
    return described({"type": "string", "enum": values, **more}, description)


def whole_number(low: int, high: int) -> Schema:
    """An integer from `low` to `high`."""
    return {"type": "integer", "minimum": low, "maximum": high}


def sandbox_count(description: str) -> Schema:
    """A number of sandboxes, from 0 to MAX_WARM."""
    made = {"type": "integer", "format": "int32", "minimum": 0, "maximum": MAX_WARM}
    return described(made, description)


def described(schema: Schema, description: str, expected: str = "") -> Schema:
    """The schema with a description, and with the words for error messages."""
    if description:
        schema["description"] = description
    if expected:
        schema[EXPECTED] = expected
    return schema
