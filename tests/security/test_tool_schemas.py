"""Schemas of declared tools whose author, or whose caller, is hostile: bounded, and applied by linear patterns only."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gateway.runtimes import tool_schema
from gateway.runtimes.tool_schema import first_error, schema_problems
from gateway.runtimes.tools import parse_tools

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SLOW = "^(a+)+$"  # `re` takes twice as long for each character
HOSTILE = "a" * 60 + "!"
NO_TERM = "refers to itself without an end"

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dialect-below": ({"properties": {"x": {"$schema": DIALECT, "pattern": SLOW}}}, "properties.x.$schema"),
    "older-dialect-below": (
        {"properties": {"x": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": SLOW}}},
        "properties.x.$schema",
    ),
    "base-below": ({"properties": {"x": {"$id": "http://json-schema.org/draft-07/schema"}}}, "properties.x.$id"),
    "enum-as-schema": ({"enum": [{"unevaluatedProperties": False}], "allOf": [{"$ref": "#/enum/0"}]}, "allOf[0].$ref"),
    "const-as-schema": ({"const": {"pattern": SLOW}, "$ref": "#/const"}, "$ref"),
    "default-as-schema": ({"default": {"pattern": SLOW}, "properties": {"x": {"$ref": "#/default"}}}, "x.$ref"),
    "examples-as-schema": ({"examples": [{"pattern": SLOW}], "not": {"$ref": "#/examples/0"}}, "not.$ref"),
    "escaped-pointer": ({"enum": [{}], "not": {"$ref": "#/%65num/0"}}, "not.$ref"),
    "network": ({"properties": {"x": {"$ref": "http://169.254.169.254/latest"}}}, "properties.x.$ref"),
    "file": ({"properties": {"x": {"$ref": "file:///etc/passwd"}}}, "properties.x.$ref"),
    "metaschema": ({"properties": {"x": {"$ref": DIALECT}}}, "properties.x.$ref"),
    "nowhere": ({"properties": {"x": {"$ref": "#/$defs/none"}}}, "properties.x.$ref"),
    "no-anchor": ({"properties": {"x": {"$dynamicRef": "#none"}}}, "properties.x.$dynamicRef"),
    "property-named-default": ({"properties": {"default": {"pattern": "(?=a)"}}}, "properties.default.pattern"),
    "property-named-enum": ({"properties": {"enum": {"pattern": r"(a)\1"}}}, "properties.enum.pattern"),
    "unevaluated-in-defs": ({"$defs": {"q": {"unevaluatedProperties": False}}}, "$defs.q.unevaluatedProperties"),
    "deep": ({"not": {}}, "levels"),
}
for _ in range(70):
    REFUSED["deep"][0]["not"] = {"not": copy.deepcopy(REFUSED["deep"][0]["not"])}


@pytest.mark.parametrize("name", REFUSED)
def test_schema_that_escapes_the_bounds_is_refused_when_it_is_read(name: str) -> None:
    """Another dialect has keywords that use `re`; a reference leads to what was not checked, or out of the schema."""
    schema, where = REFUSED[name]
    assert any(where in f"{path} {expected}" for path, expected, _ in schema_problems(schema))


SERVED: dict[str, tuple[dict[str, Any], Any, str | None]] = {
    "dialect-at-the-top": (
        {"$schema": DIALECT, "properties": {"a": {"$ref": "#"}, "x": {"pattern": SLOW}}},
        {"a": {"x": HOSTILE}},
        "does not match",
    ),
    "names-of-properties": (
        {"properties": {"$schema": {"type": "string"}, "unevaluatedProperties": {}, "$ref": {"type": "integer"}}},
        {"$schema": "x", "unevaluatedProperties": 1, "$ref": "y"},
        "$ref: 'y' is not of type 'integer'",
    ),
    "definitions": (
        {"definitions": {"a/b~c": {"type": "string"}}, "properties": {"x": {"$ref": "#/definitions/a~1b~0c"}}},
        {"x": 1},
        "x: 1 is not of type 'string'",
    ),
    "anchor": (
        {"$defs": {"q": {"$anchor": "q", "type": "string"}}, "properties": {"x": {"$ref": "#q"}}},
        {"x": "y"},
        None,
    ),
    "tree": ({"properties": {"next": {"$ref": "#"}}, "additionalProperties": False}, {"next": {"next": {}}}, None),
    "circle": ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, {}, NO_TERM),
    "all-of-itself": ({"allOf": [{"$ref": "#"}]}, {}, NO_TERM),
    "huge-multiple": ({"properties": {"x": {"multipleOf": 0.1}}}, {"x": 10**400}, "too large"),
    "infinite-multiple": ({"properties": {"x": {"multipleOf": 2}}}, {"x": float("inf")}, "not a multiple"),
    "unique-surrogates": ({"properties": {"x": {"uniqueItems": True}}}, {"x": ["\ud800", "\ud800"]}, "not unique"),
    "unique-long-numbers": ({"properties": {"x": {"uniqueItems": True}}}, {"x": [10**40, 1]}, None),
    "surrogate-in-a-pattern": ({"properties": {"x": {"pattern": "^a.$"}}}, {"x": "a\ud800"}, None),
    "names": ({"propertyNames": {"pattern": SLOW}}, {HOSTILE: 1}, "does not match"),
    "dependent": ({"dependentSchemas": {"x": {"patternProperties": {SLOW: False}}}}, {"x": 1, HOSTILE: 2}, None),
}


@pytest.mark.parametrize("name", SERVED)
def test_odd_schema_is_applied_in_bounds(name: str) -> None:
    """It is right or wrong of the arguments, and raises nothing."""
    schema, value, error = SERVED[name]
    assert list(schema_problems(schema)) == []
    found = first_error(schema, value)
    assert found is None if error is None else error in str(found)


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf"])
def test_check_that_doubles_with_each_line_ends(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 definitions, each the next one twice: it ends after as many steps as a check may take (here fewer)."""
    monkeypatch.setattr(tool_schema, "_MAX_COST", 1_000_000)
    schemas: dict[str, Any] = {f"a{n}": {keyword: [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    schemas["a40"] = {"type": "string"}
    schema = {"$defs": schemas, "properties": {"x": {"$ref": "#/$defs/a0"}}}
    assert list(schema_problems(schema)) == []
    assert "too many steps" in str(first_error(schema, {"x": 1 if keyword == "anyOf" else "text"}))


def test_errors_that_show_a_large_value_again_and_again_end_the_check() -> None:
    """Each branch of an anyOf keeps a message with the whole value: 2,000 of 100 KB each would be 200 MB."""
    schema = {"properties": {"x": {"anyOf": [{"type": "string"}] * 2000}}}
    assert "too many steps" in str(first_error(schema, {"x": list(range(20_000))}))


def test_all_arguments_that_a_command_takes_can_be_checked() -> None:
    """65,000 values are within the bound."""
    schema = {"properties": {"x": {"items": {"type": "integer", "minimum": 0, "maximum": 9}}}}
    assert first_error(schema, {"x": [1] * 65_000}) is None


@pytest.mark.parametrize("source", ["-" * 50_000 + "1", "(" * 5000, "f" + "(f" * 5000, "x = " + "[" * 90 + "]" * 90])
def test_function_that_cannot_be_parsed_is_a_problem(source: str) -> None:
    """Python's parser gives up on deep nesting by errors of several kinds."""
    problems: list[str] = []
    entry = {"name": "f", "description": "d", "python": {"source": source, "function": "f"}}
    parse_tools([entry], "tools", None, lambda path, expected, _: problems.append(f"{path}: {expected}"))
    assert problems
