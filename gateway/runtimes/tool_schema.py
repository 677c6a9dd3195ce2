"""JSON schemas of declared tools: checked when a runtime is read, applied to the arguments that a model sends.

Regular expressions run in RE2 (google-re2), whose time is linear: Python's `re` takes 31 s for `^(a+)+$` on 28
characters. Patterns that RE2 does not support (look-around, back-references) are refused when the runtime is read. So
is whatever would have jsonschema apply its own keywords, which use `re`: another dialect below the top, and references
to what was not checked. What remains is bounded by steps: 24 lines, each an `anyOf` of the next one twice, are 16
million.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

_MAX_DEPTH = 64
_MAX_PATTERN_CHARS = 1000
# What one check may cost. A step is a keyword applied to a value; a character is one of an error's message, which shows
# the value and is kept for each branch of an anyOf. Arguments of 128 KiB, the most that a command takes, are 65,000
# values at most, with three or four keywords each.
_MAX_COST = 30_000_000
_STEP_COST = 100

# Names of schemas, not keywords.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("const", "default", "enum", "examples")  # values, not schemas
_REFERENCES = ("$ref", "$dynamicRef")
_ANCHORS = ("$anchor", "$dynamicAnchor")

_left: ContextVar[list[int]] = ContextVar("left")  # of _MAX_COST, for the check under way


class _TooCostlyError(Exception):
    """A check has taken all the steps that it may."""


def schema_problems(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (path in the schema, what is expected, what was found) of each problem that prevents its use."""
    # jsonschema takes a tenth of a second to import, and most runtimes declare no tool.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        where = ".".join(str(step) for step in error.absolute_path)
        yield where, f"expected JSON schema: {error.message[:200]}", error.instance
        return
    walk = _Walk()
    yield from walk.problems(schema, "", "", 0)
    for path, reference in walk.references:
        target = unquote(reference.removeprefix("#"))
        if not reference.startswith("#") or (target not in walk.schemas and target not in walk.anchors):
            yield path, "expected a reference to a schema in this one, such as #/$defs/NAME", reference[:200]


@dataclass
class _Walk:
    """What one pass over a schema finds: JSON pointers of all schemas in it, their anchors, and (path, reference)."""

    schemas: set[str] = field(default_factory=set)
    anchors: set[str] = field(default_factory=set)
    references: list[tuple[str, str]] = field(default_factory=list)

    def problems(self, schema: Any, path: str, pointer: str, depth: int) -> Iterator[tuple[str, str, Any]]:
        """The problems of a schema, or of a list of schemas. `path` is for people, `pointer` what references name."""
        self.schemas.add(pointer)
        if depth > _MAX_DEPTH:
            yield path, f"expected at most {_MAX_DEPTH} levels", "..."
        elif isinstance(schema, list):
            for index, each in enumerate(schema):
                yield from self.problems(each, f"{path}[{index}]", f"{pointer}/{index}", depth + 1)
        elif isinstance(schema, Mapping):
            yield from self._keyword_problems(schema, path, depth)
            for name, each in schema.items():
                below, inner = _join(path, str(name)), f"{pointer}/{_escaped(name)}"
                if name in _BY_NAME and isinstance(each, Mapping):
                    for key, one in each.items():
                        yield from self.problems(one, _join(below, str(key)), f"{inner}/{_escaped(key)}", depth + 1)
                elif name not in _VALUES:
                    yield from self.problems(each, below, inner, depth + 1)

    def _keyword_problems(self, schema: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
        if "unevaluatedProperties" in schema:
            # jsonschema matches these against patternProperties with `re`, and offers no other way.
            yield _join(path, "unevaluatedProperties"), "not supported; expected additionalProperties", "..."
        for name in ("$schema", "$id") if depth else ():
            if isinstance(schema.get(name), str):
                yield _join(path, name), "expected at the top of a schema only", schema[name][:200]
        if isinstance(schema.get("pattern"), str):
            yield from _pattern_problem(schema["pattern"], _join(path, "pattern"))
        if isinstance(schema.get("patternProperties"), Mapping):
            for pattern in schema["patternProperties"]:
                yield from _pattern_problem(str(pattern), _join(path, "patternProperties"))
        self.anchors |= {schema[name] for name in _ANCHORS if isinstance(schema.get(name), str)}
        self.references += [(_join(path, name), str(schema[name])) for name in _REFERENCES if name in schema]


def _escaped(name: object) -> str:
    """A name in a JSON pointer (RFC 6901)."""
    return str(name).replace("~", "~0").replace("/", "~1")


def _pattern_problem(pattern: str, path: str) -> Iterator[tuple[str, str, Any]]:
    try:
        if len(pattern) > _MAX_PATTERN_CHARS:
            raise ValueError(f"longer than {_MAX_PATTERN_CHARS} characters")
        _compiled(pattern)
    except ValueError as error:
        yield path, f"expected a regular expression as RE2 has them, without look-around: {error}", pattern[:200]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def first_error(schema: Mapping[str, Any], value: Any) -> str | None:
    """The first error of a value, its path first, at most 600 characters; None if it matches the schema.

    That it does not match is also said where the check would cost too much.
    """
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # Without $schema, by which jsonschema would take its own keywords where the schema refers to itself.
    checked = {name: each for name, each in schema.items() if name != "$schema"}
    _left.set([_MAX_COST])
    try:
        # An empty registry: a reference leads nowhere outside of the schema, least of all to the network. The first
        # alone: a hostile value has as many errors as members, and a model corrects one call at a time.
        error = next(iter(_validator()(checked, registry=Registry()).iter_errors(value)), None)
    except _TooCostlyError:
        return "checking these arguments takes too many steps; send fewer, or have the tool's schema simplified"
    except RecursionError:
        return "the arguments are nested too deeply, or the tool's schema refers to itself without an end"
    except Unresolvable as unresolvable:
        return f"the tool's schema refers to {str(unresolvable)[:200]}, which it does not have"
    if error is None:
        return None
    where = ".".join(str(step)[:64] for step in error.absolute_path)[-100:]
    return f"{where}: {error.message[:500]}" if where else str(error.message[:500])


def _charge(cost: int) -> None:
    left = _left.get()
    left[0] -= cost
    if left[0] < 0:
        raise _TooCostlyError


def _counted(keyword: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """A keyword whose applications and errors count towards what a check may cost."""
    from jsonschema.exceptions import ValidationError

    def check(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        _charge(_STEP_COST + (len(wanted) if isinstance(wanted, list | dict) else 0))
        try:
            for error in keyword(validator, wanted, value, schema) or ():
                _charge(len(error.message))
                yield error
        except OverflowError:  # a whole number beyond floating point, compared with a fraction
            yield ValidationError("the number is too large to be compared")

    return check


@lru_cache(maxsize=1)
def _validator() -> Any:
    """Draft 2020-12, with replacements for keywords that use `re` or compare all pairs of items."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, wanted: str, value: Any, schema: Any) -> Iterator[Any]:
        if validator.is_type(value, "string") and not _matches(wanted, value):
            yield ValidationError(f"{value[:200]!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Mapping[str, Any], value: Any, schema: Any) -> Iterator[Any]:
        if validator.is_type(value, "object"):
            _charge(len(wanted) * len(value))
            for each, below in wanted.items():
                for name, member in value.items():
                    if _matches(each, name):
                        yield from validator.descend(member, below, path=name, schema_path=each)

    def additional_properties(validator: Any, allowed: Any, value: Any, schema: Any) -> Iterator[Any]:
        if not validator.is_type(value, "object"):
            return
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        _charge((1 + len(patterns)) * len(value))
        extras = [name for name in value if name not in known and not any(_matches(each, name) for each in patterns)]
        if validator.is_type(allowed, "object"):
            for name in extras:
                yield from validator.descend(value[name], allowed, path=name)
        elif not allowed and extras:
            names = ", ".join(repr(name[:64]) for name in extras[:5])
            yield ValidationError(f"additional properties are not allowed ({names} unexpected)")

    def unique_items(validator: Any, wanted: bool, value: Any, schema: Any) -> Iterator[Any]:
        # jsonschema compares each item with each: 10,000 items are 50 million comparisons, a set is 10,000.
        if wanted and validator.is_type(value, "array"):
            # Not orjson, which writes no lone surrogates and no whole numbers of more than 64 bits.
            keys = {json.dumps(_normalized(item), sort_keys=True) for item in value}
            if len(keys) < len(value):
                yield ValidationError("the items are not unique")

    ours = {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
        "uniqueItems": unique_items,
    }
    keywords = {name: _counted(each) for name, each in (Draft202012Validator.VALIDATORS | ours).items()}
    return extend(Draft202012Validator, keywords)  # type: ignore[no-untyped-call]  # jsonschema's stubs leave it out


def _normalized(value: Any) -> Any:
    """Turn 1.0 into 1, which JSON schema counts as the same number."""
    # Up to 2**53, beyond which a float does not say which whole number it is. 1.0 and 1 must have the same text.
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, list):
        return [_normalized(each) for each in value]
    if isinstance(value, dict):
        return {name: _normalized(each) for name, each in value.items()}
    return value


def _matches(pattern: str, text: str) -> bool:
    try:
        return _compiled(pattern).search(text) is not None
    except UnicodeEncodeError:  # a lone surrogate, which RE2 does not read
        return _compiled(pattern).search(text.encode("utf-8", "replace").decode()) is not None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    """Compile a pattern in RE2. It may match anywhere in the text, as in JSON schema. Raises ValueError."""
    import re2

    options = re2.Options()
    options.log_errors = False  # else RE2 writes a stranger's pattern to standard error
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0] if error.args else ""
        raise ValueError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None
