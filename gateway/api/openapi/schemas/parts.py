"""What schemas are made of: constructors, and the shapes that many of them share."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
DURATION: Schema = {
    "description": "Seconds, or text such as 90s, 15m or 8h.",
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["15m"]}],
}
METADATA: Schema = {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 64}
RUNTIME_NAME: Schema = {
    "description": "namespace/name, or name in the namespace default.",
    "type": "string",
    "examples": ["default/my-interpreter"],
}
EGRESS: Schema = {
    "description": "What may be reached: entries as in spec.wakegate.egress (docs/egress.md).",
    "type": "array",
    "maxItems": 256,
    "items": {"anyOf": [{"type": "string", "examples": ["pypi"]}, {"type": "object"}]},
}


def ref(name: str) -> Schema:
    """A reference to one of SCHEMAS by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(required: str = "", /, **properties: Schema) -> Schema:
    """An object; `required`: names of fields, separated by spaces."""
    # Without additionalProperties: false, since fields may be added to an answer without a new version of the API.
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required.split()} if required else schema


def array_of(items: Schema) -> Schema:
    """An array of any length, with all items of one schema."""
    return {"type": "array", "items": items}


def nullable(schema: Schema) -> Schema:
    """The schema, or null: the field is always present, as OpenAI's clients expect."""
    return {"anyOf": [schema, {"type": "null"}]}


EVENTS: Schema = {**obj(event=TEXT, data=TEXT, id=TEXT), "description": "Server-sent events, each with these fields."}
