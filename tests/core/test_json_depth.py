"""JSON of strangers that can be read can be written again."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.core.json_depth import MAX_DEPTH, TooDeepError, loads


def nested(levels: int, opening: str, closing: str) -> str:
    return opening * levels + "0" + closing * levels


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_what_is_read_can_be_put_into_an_answer(opening: str, closing: str, as_bytes: bool) -> None:
    """Up to the bound; one level more is refused, and so is what the parser still reads."""
    step = opening.count("[") + opening.count("{")

    def read(levels: int) -> Any:
        text = nested(levels // step, opening, closing)
        return loads(text.encode() if as_bytes else text)

    value = read(MAX_DEPTH)
    for _ in range(100):
        value = {"of": value}
    assert orjson.dumps(value)
    for levels in (MAX_DEPTH + step, 254, 300, 1000):
        with pytest.raises(TooDeepError, match="128 levels"):
            read(levels)


def test_many_brackets_are_not_deep() -> None:
    """Only nesting counts, and what stands in texts does not."""
    assert len(loads("[" + "[]," * 50_000 + "0]")) == 50_001
    assert loads(b'"' + b"[" * 5000 + b'"') == "[" * 5000
    with pytest.raises(ValueError, match="unexpected"):
        loads("x")
