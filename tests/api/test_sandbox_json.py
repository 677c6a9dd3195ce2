"""JSON of a hostile sandbox: bounded by what it costs, and checked before it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.sandbox_json import (
    MAX_VALUES,
    BadAnswerError,
    count_of,
    count_values,
    objects_of,
    parse_object,
    text_of,
)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"5", b"{", b'{"a": [' + b"[]," * 400_000 + b"0]}", b'{"a": [' + b'"",' * 400_000 + b"0]}",
        b'{"a": ' + b"[" * 300_000 + b"]" * 300_000 + b"}",
        b'{"a":{' + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}}",
    ],
)  # fmt: skip
async def test_answer_that_costs_too_much_or_is_no_object_is_refused(data: bytes) -> None:
    """By counting, before anything is made of it."""
    with pytest.raises(BadAnswerError):
        await parse_object(data)


async def test_large_text_is_no_large_answer() -> None:
    """A picture in base64 and output full of brackets count as one value each, and so do names."""
    document = {"image/png": "A" * (8 << 20), "stdout": '[{"a,": "\\\\"},' * 200_000}
    data = orjson.dumps(document)
    assert count_values(data) == 4
    assert await parse_object(data) == document


JSON = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(alphabet='a"\\\\,[{'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a"\\\\,[{'), inner),
)


@given(JSON)
def test_count_is_never_less_than_half_the_values(value: Any) -> None:
    """Whatever quotes and backslashes stand in its strings."""

    def size(each: Any) -> int:
        below = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        return 1 + sum(map(size, below))

    assert 2 * count_values(orjson.dumps(value)) + 1 >= size(value)
    assert count_values(orjson.dumps(value)) < MAX_VALUES


@pytest.mark.parametrize(
    ("read", "value"),
    [(objects_of, 5), (objects_of, [5]), (objects_of, {}), (text_of, 5), (text_of, None), (count_of, -1),
     (count_of, "1"), (count_of, True), (count_of, 1 << 60), (count_of, 1.5)],
)  # fmt: skip
def test_field_of_another_type_is_named(read: Callable[..., Any], value: Any) -> None:
    """Never a TypeError later on."""
    with pytest.raises(BadAnswerError, match="entries"):
        read({"entries": value}, "entries")
