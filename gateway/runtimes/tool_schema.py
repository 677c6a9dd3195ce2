"""JSON schemas of declared tools: checked when a runtime is read, applied to the arguments that a model sends.

Regular expressions run in RE2 (google-re2), whose time is linear: Python's `re` takes 31 s for `^(a+)+$` on 28
characters. Patterns that RE2 does not support (look-around, back-references) are refused when the runtime is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import orjson

_MAX_DEPTH = 64
_MAX_PATTERN_CHARS = 1000


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
    yield from _pattern_problems(schema, "", 0)


def _pattern_problems(schema: Any, path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    if depth > _MAX_DEPTH:
        yield path, f"expected at most {_MAX_DEPTH} levels", "..."
    elif isinstance(schema, list):
        for index, each in enumerate(schema):
            yield from _pattern_problems(each, f"{path}[{index}]", depth + 1)
    elif isinstance(schema, Mapping):
        if "unevaluatedProperties" in schema:
            # jsonschema matches these against patternProperties with `re`, and offers no other way.
            yield _join(path, "unevaluatedProperties"), "not supported; expected additionalProperties", "..."
        if isinstance(schema.get("pattern"), str):
            yield from _pattern_problem(schema["pattern"], _join(path, "pattern"))
        if isinstance(schema.get("patternProperties"), Mapping):
            for pattern in schema["patternProperties"]:
                yield from _pattern_problem(str(pattern), _join(path, "patternProperties"))
        for name, each in schema.items():
            if name not in ("const", "default", "enum", "examples"):  # values, not schemas
                yield from _pattern_problems(each, _join(path, str(name)), depth + 1)


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

    Takes time linear in the size of the value, for each keyword of the schema.
    """
    from referencing import Registry

    # An empty registry: a reference leads nowhere outside of the schema, least of all to the network.
    # The first alone: a hostile value has as many errors as members, and a model corrects one call at a time.
    error = next(iter(_validator()(dict(schema), registry=Registry()).iter_errors(value)), None)
    if error is None:
        return None
    where = ".".join(str(step)[:64] for step in error.absolute_path)[-100:]
    return f"{where}: {error.message[:500]}" if where else str(error.message[:500])


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
            for each, below in wanted.items():
                for name, member in value.items():
                    if _matches(each, name):
                        yield from validator.descend(member, below, path=name, schema_path=each)

    def additional_properties(validator: Any, allowed: Any, value: Any, schema: Any) -> Iterator[Any]:
        if not validator.is_type(value, "object"):
            return
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
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
            keys = {orjson.dumps(_normalized(item), option=orjson.OPT_SORT_KEYS) for item in value}
            if len(keys) < len(value):
                yield ValidationError("the items are not unique")

    return extend(  # type: ignore[no-untyped-call]  # jsonschema's stubs leave it out
        Draft202012Validator,
        {
            "pattern": pattern,
            "patternProperties": pattern_properties,
            "additionalProperties": additional_properties,
            "uniqueItems": unique_items,
        },
    )


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
    return _compiled(pattern).search(text) is not None


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
