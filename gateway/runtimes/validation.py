"""Applies the schema to one manifest: reports every problem by its field's path, and removes invalid fields.

Code that reads the document afterwards need not check types: a field of the wrong type is reported and then absent. So
one run reports all problems, including those that a schema cannot express.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from gateway.core.model import Kind
from gateway.runtimes.fields import Reader, path_of
from gateway.runtimes.schema import container, document_schema
from gateway.runtimes.schema_parts import EXPECTED, INT_OR_STRING, PRESERVE, Schema

logger = logging.getLogger(__name__)

Path = tuple[str | int, ...]

_DNS_LABEL = {
    "type": "string",
    "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
    EXPECTED: "a DNS label (a-z, 0-9 and -, at most 63)",
}
# An unknown field below this is an error. Elsewhere it is a warning: a later version of AgentCube may define it.
_OWN: Path = ("spec", "wakegate")
_TOOLS: Path = (*_OWN, "tools")
_MIN_SIMILARITY = 0.65  # of difflib's 0 to 1: procs suggests processes (0.71), later does not suggest template (0.62)
_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def checked(document: Mapping[str, Any], kind: Kind, engine: str, reader: Reader) -> dict[str, Any]:
    """The document without nulls and without invalid fields, which are reported to `reader`."""
    clean: dict[str, Any] = {"metadata": {}, "spec": {}, **_without_nulls(document)}
    validator = _validator(kind, engine)
    schema = validator.schema
    wrong: list[Path] = []
    # Sorted: jsonschema's order is that of the schema's keywords, which would scatter the messages about one field.
    for error in sorted(validator.iter_errors(clean), key=lambda error: [str(step) for step in error.absolute_path]):
        for path, expected, found in _problems(error):
            if path not in wrong:
                wrong.append(path)
                reader.problem(path_of(path), f"expected {expected}", found)
    for path, close in _unknown_fields(clean, schema, ()):
        advice = f"unknown field; did you mean {close}?" if close else "unknown field"
        # Ours is refused, as a misspelt limit would silently not apply; AgentCube's may be newer than this schema.
        if path[:2] == _OWN:
            reader.note(path_of(path), advice)
            wrong.append(path)
        else:
            logger.warning("%s: %s: %s", reader.where, path_of(path), advice)
    for path in wrong:
        # An invalid tool is removed whole: without its `command` it would be reported a second time, as lacking one.
        _remove(clean, path[:4] if path[:3] == _TOOLS and len(path) > 3 else path)
    return {"metadata": {}, "spec": {}, **clean}


@cache
def _validator(kind: Kind, engine: str) -> Any:
    # jsonschema takes a tenth of a second to import, and a gateway without manifests needs none.
    from jsonschema import Draft202012Validator

    schema: Schema = _as_json_schema(document_schema(kind))
    fields = schema["properties"]
    fields["metadata"] = {
        "type": "object",
        PRESERVE: True,
        "properties": {"name": _DNS_LABEL, "namespace": _DNS_LABEL},
        "required": ["name"],
    }
    fields["status"] = {PRESERVE: True}  # `kubectl get -o yaml` writes it, and nothing here reads it
    if kind is Kind.AGENT_RUNTIME and engine != "kubernetes":
        pod = fields["spec"]["properties"]["podTemplate"]["properties"]["spec"]
        containers = {"type": "array", "minItems": 1, EXPECTED: "at least one container"}
        containers["items"] = _as_json_schema(container())
        pod |= {"properties": {"containers": containers}, "required": ["containers"]}
    return Draft202012Validator(schema)


def _as_json_schema(schema: Any) -> Any:
    """Convert OpenAPI 3.0 to JSON Schema. Fields with a default are optional: the API server fills them in first."""
    if isinstance(schema, list):
        return [_as_json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _as_json_schema(value) for key, value in schema.items() if not key.startswith("exclusive")}
    for bound in ("Minimum", "Maximum"):
        if schema.get(f"exclusive{bound}") is True:
            made[f"exclusive{bound}"] = schema[bound.lower()]
    if schema.get(INT_OR_STRING):  # Kubernetes takes integers only, but `cpu: 0.5` in YAML is common
        made["anyOf"] = [{"type": "number"}, {"type": "string"}]
    if "required" in schema:
        made["required"] = [name for name in schema["required"] if "default" not in schema["properties"].get(name, {})]
    return made


def _problems(error: Any) -> Iterator[tuple[Path, str, Any]]:
    """Yield (path, what is expected, what was found) for one error of jsonschema."""
    schema, path = error.schema, tuple(error.absolute_path)
    # jsonschema reports each missing name apart, and names it in its text only. So each of these errors lists all that
    # are missing, and `checked` drops the repetitions.
    if error.validator == "required":
        for name in schema["required"]:
            if name not in error.instance:
                yield (*path, name), _expected(schema["properties"][name], ""), None
    else:
        yield path, _expected(schema, error.message), error.instance


def _expected(schema: Schema, message: str) -> str:
    """Describe what a schema accepts, for "expected ..." in messages."""
    if EXPECTED in schema:
        return str(schema[EXPECTED])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}" + (' ("off" in quotes)' if "off" in schema["enum"] else "")
    words = _TYPES.get(schema.get("type", ""))
    if words is None:
        return message[:200]
    if "minimum" in schema and "maximum" in schema:
        return f"{words} from {schema['minimum']} to {schema['maximum']}"
    return f"{words} of at most {schema['maxItems']} entries" if "maxItems" in schema else words


def _unknown_fields(value: Any, schema: Schema, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield (path, the most similar known field or "") of each unknown field."""
    known = schema.get("properties")
    if isinstance(value, Mapping):
        inner = schema.get("additionalProperties")
        for key, each in value.items():
            if known is not None and key in known:
                yield from _unknown_fields(each, known[key], (*path, key))
            elif isinstance(inner, dict):
                yield from _unknown_fields(each, inner, (*path, key))
            elif known is not None and not schema.get(PRESERVE):
                yield (*path, key), next(iter(difflib.get_close_matches(str(key)[:64], known, 1, _MIN_SIMILARITY)), "")
    elif isinstance(value, list) and "items" in schema:
        for index, each in enumerate(value):
            yield from _unknown_fields(each, schema["items"], (*path, index))


def _without_nulls(value: Any) -> Any:
    """A deep copy without fields that are null, which Kubernetes treats as absent."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def _remove(document: Any, path: Sequence[str | int]) -> None:
    """Remove a field. An entry of a list becomes None, so that the indexes of the others stay valid in messages."""
    for step in path[:-1]:
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and isinstance(step, int):
            document = document[step]
    if isinstance(document, dict):
        document.pop(path[-1], None)
    elif isinstance(document, list) and isinstance(path[-1], int):
        document[path[-1]] = None
