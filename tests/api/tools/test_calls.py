"""Parsing of what clients post as tool calls."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.errors import ParamError
from gateway.api.tools.batches import steps
from gateway.api.tools.calls import MAX_ARGUMENTS_BYTES, MAX_CALLS, Shape, loads_leniently, parse_tool_calls
from gateway.core.errors import BadRequestError
from tests.support.tool_calls import chat_call, item, tool_use

CALL = chat_call("c1", "run_shell", command="ls")


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ({"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}, Shape.CHAT),
        ({"message": {"role": "assistant", "tool_calls": [CALL]}, "session_id": "s"}, Shape.CHAT),
        ([CALL], Shape.CHAT),
        (CALL, Shape.CHAT),
        ({"tool_calls": [{k: v for k, v in CALL.items() if k != "type"}]}, Shape.CHAT),
        ({"output": [{"type": "reasoning", "summary": []}, item("c1", "run_shell", command="ls")]}, Shape.RESPONSES),
        ([item("c1", "run_shell", command="ls")], Shape.RESPONSES),
        (
            {"role": "assistant", "content": [{"type": "text"}, tool_use("c1", "run_shell", command="ls")]},
            Shape.ANTHROPIC,
        ),
        ({"message": {"role": "assistant", "content": [tool_use("c1", "run_shell", command="ls")]}}, Shape.ANTHROPIC),
    ],
)
def test_calls_every_form_means_the_same(body: Any, shape: Shape) -> None:
    """A message, a list, response items and Anthropic blocks give one and the same call."""
    asked = parse_tool_calls(body)
    assert asked.shape is shape
    assert [(call.id, call.name, call.arguments) for call in asked.calls] == [("c1", "run_shell", {"command": "ls"})]


def test_calls_message_without_calls_is_no_error() -> None:
    """So that a loop can post every message of its model."""
    assert parse_tool_calls({"role": "assistant", "content": "done"}).calls == ()
    assert parse_tool_calls({"output": [{"type": "message", "content": []}]}).shape is Shape.RESPONSES


@pytest.mark.parametrize(
    "arguments", ["{", "[1]", "null", '{"a": 1} x', '{"a": NaN}', "\ud800", '{"a": "\\ud800"}', "[" * 100_000, 5, ["x"],
                  '"5"', {"a": "\ud800"}]
)  # fmt: skip
def test_calls_malformed_arguments_are_an_answer_for_the_model(arguments: Any) -> None:
    """Never an error of the request: the model made the mistake and can correct it."""
    call = {"id": "c1", "type": "function", "function": {"name": "run_shell", "arguments": arguments}}
    problem = parse_tool_calls([call]).calls[0].problem
    assert problem is not None
    assert problem.failed
    assert problem.text.startswith("Error (invalid_json): the arguments")


@pytest.mark.parametrize("function", [{}, {"arguments": None}, {"arguments": ""}, {"arguments": {}}])
def test_calls_without_arguments_have_none(function: dict[str, Any]) -> None:
    """Models leave them out, or send null or an empty text for a function without parameters."""
    call = {"id": "c1", "type": "function", "function": {"name": "list_files", **function}}
    asked = parse_tool_calls([call]).calls[0]
    assert (asked.arguments, asked.problem) == ({}, None)


@pytest.mark.parametrize(
    "arguments",
    [
        {"code": "a\nb"},
        '{"code": "a\nb"}',
        '{"code": "a\\nb"}',
        orjson.dumps('{"code": "a\\nb"}').decode(),
        '\ufeff{"code": "a\\nb"}',
        '```json\n{"code": "a\\nb"}\n```',
        '\n```\n{"code": "a\nb"}```\n',
    ],
)
def test_calls_arguments_whose_meaning_is_plain_are_taken(arguments: Any) -> None:
    """An object, raw line breaks within strings, JSON within JSON, a byte order mark, Markdown's fence."""
    asked = parse_tool_calls([{"id": "c1", "function": {"name": "run_python", "arguments": arguments}}]).calls[0]
    assert (asked.arguments, asked.problem) == ({"code": "a\nb"}, None)
    asked = parse_tool_calls({"content": [{"type": "tool_use", "id": "c", "name": "x", "input": arguments}]}).calls[0]
    assert asked.arguments == {"code": "a\nb"}


def test_calls_without_an_id_get_one() -> None:
    """Each its own, and the same when the message is sent again."""
    call = {"function": {"name": "run_shell", "arguments": "{}"}}
    first, second = ([each.id for each in parse_tool_calls([call, {**call, "id": None}]).calls] for _ in range(2))
    assert first == second
    assert len(set(first)) == 2
    assert all(each.startswith("call_") for each in first)


def test_calls_with_an_unpaired_surrogate_do_not_fail_the_others() -> None:
    """In the request's own JSON; what is answered can be written again."""
    body = b'[{"id": "a\\ud800", "function": {"name": "x", "arguments": {"a": "\\udfff"}}},' + orjson.dumps(CALL) + b"]"
    broken, whole = parse_tool_calls(loads_leniently(body)).calls
    assert broken.problem is not None
    assert orjson.loads(orjson.dumps(broken.id)) == "a\ufffd"
    assert whole.problem is None


@pytest.mark.parametrize("name", [None, "", 5, "x" * 300, {}])
def test_call_that_names_no_tool_does_not_fail_the_others(name: Any) -> None:
    """Models send empty names too; in each form the answer is for that call alone."""
    for broken in (
        {"id": "a", "type": "function", "function": {"name": name, "arguments": "{}"}},
        {"call_id": "a", "type": "function_call", "name": name, "arguments": "{}"},
        {"id": "a", "type": "tool_use", "name": name, "input": {}},
    ):
        whole = {**broken, "function": {"name": "x"}} if "function" in broken else {**broken, "name": "x"}
        refused, taken = parse_tool_calls([broken, whole]).calls
        assert refused.problem is not None
        assert refused.problem.text.startswith("Error (unknown_tool): the call names no tool")
        assert (taken.name, taken.problem) == ("x", None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tool_calls"),
        ({"tool_calls": {}}, "tool_calls"),
        ({"tool_calls": [5]}, "tool_calls[0]"),
        (
            {"tool_calls": [CALL, {"id": 5, "type": "function", "function": {"name": "x", "arguments": "{}"}}]},
            "tool_calls[1].id",
        ),
        ({"tool_calls": [{"id": "a", "type": "function"}]}, "tool_calls[0].function"),
        ({"tool_calls": [CALL] * (MAX_CALLS + 1)}, "tool_calls"),
        ({"output": [{"type": "function_call", "call_id": 5}]}, "output[0].call_id"),
        ({"message": {"tool_calls": [{}]}}, "message.tool_calls[0]"),
        ([CALL, item("c2", "x")], "[1]"),
        ({"tool_calls": [CALL], "stream": "yes"}, "stream"),
        ({"tool_calls": [CALL], "session_id": 7}, "session_id"),
        (
            [{"id": "a", "function": {"name": "x", "arguments": '"' + "x" * MAX_ARGUMENTS_BYTES + '"'}}],
            "[0].function.arguments",
        ),
    ],
)
def test_calls_wrong_form_names_the_field(body: Any, param: str) -> None:
    """An error of the request says which field it means."""
    with pytest.raises(ParamError) as refused:
        parse_tool_calls(body)
    assert refused.value.param == param


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(
        ["tool_calls", "message", "output", "content", "type", "function", "function_call", "id", "call_id", "name",
         "arguments", "input", "role", "assistant", "custom", "session_id", "stream"]), inner),
    max_leaves=25,
)  # fmt: skip


@given(JSON)
def test_calls_any_json_is_parsed_or_refused(body: Any) -> None:
    """Nothing but a BadRequestError comes out, whatever was sent."""
    try:
        asked = parse_tool_calls(orjson.loads(orjson.dumps(body)))
    except (BadRequestError, orjson.JSONEncodeError):
        return
    assert len(asked.calls) <= MAX_CALLS


@given(st.lists(st.booleans(), max_size=20))
def test_batches_run_each_call_once_and_isolate_ordered_calls(ordered: list[bool]) -> None:
    """Indexes come once and in order; an ordered call is alone in its group; no two groups could have been one."""
    groups = steps(ordered)
    assert [index for group in groups for index in group] == list(range(len(ordered)))
    assert all(len(group) == 1 for group in groups if any(ordered[index] for index in group))
    for first, second in itertools.pairwise(groups):
        assert ordered[first[0]] or ordered[second[0]]
