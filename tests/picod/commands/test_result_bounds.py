"""What a run shows as JSON is such that any reader takes it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from picod.commands.result_bounds import ResultBounds, shareable_json


def nested(levels: int, *, objects: bool = False) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = {"a": value} if objects else [value]
    return value


@pytest.mark.parametrize("objects", [False, True])
def test_deep_value_is_left_out_and_its_text_stays(objects: bool) -> None:
    """A hundred levels are shown; of more the other forms are, or it counts as omitted."""
    bounds = ResultBounds()
    shown = {"application/json": nested(100, objects=objects)}
    assert bounds.admit(shown) == shown
    for levels in (101, 300, 5000):
        deep = nested(levels, objects=objects)
        assert bounds.admit({"application/json": deep, "text/plain": "x"}) == {"text/plain": "x"}
        assert bounds.admit({"application/json": deep}) is None
    assert bounds.fields() == {"results_omitted": 3}


@pytest.mark.parametrize("number", [10**309, -(10**400), float("inf"), float("nan")])
def test_number_that_readers_refuse_is_left_out(number: float) -> None:
    """Python writes it, and a reader with doubles would refuse the whole answer."""
    assert shareable_json({"a": number}) is None
    assert ResultBounds().admit({"application/json": [number], "text/plain": "x"}) == {"text/plain": "x"}


def test_wide_value_and_long_text_are_shown() -> None:
    """Brackets and digits in a text, and many values side by side, are neither deep nor huge."""
    value = {"a": [[] for _ in range(1000)], "b": "[" * 500, "c": 10**300, "d": "9" * 400}
    assert json.loads(str(shareable_json(value))) == value
