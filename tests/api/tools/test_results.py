"""What a model reads of picod's answers."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses.response_input_item_param import FunctionCallOutput
from pydantic import TypeAdapter

from gateway.api.file_links import Link
from gateway.api.openai.messages import message
from gateway.api.tools.calls import Call, Shape
from gateway.api.tools.results import (
    MAX_TEXT_CHARS,
    MAX_TRACEBACK_CHARS,
    Image,
    ToolResult,
    failure,
    from_execute,
    from_run_code,
)

PNG = {"image/png": "aGk=\n", "text/plain": "<Figure size 640x480>"}
CALL = Call("c1", "run_python", {})


def test_result_of_code_reads_like_a_session() -> None:
    """Output, then the value; a figure is a picture and not also its repr."""
    answer = {"stdout": "a\nb\n", "stderr": "careful\n", "results": [PNG, {"text/plain": "42", "text/html": "<b>"}]}
    result = from_run_code({**answer, "error": None})
    assert result == ToolResult("a\nb\n[stderr]\ncareful\n42", (Image("image/png", "aGk="),))
    assert from_run_code({"stdout": "", "results": []}).text == "(no output)"
    assert from_run_code({"results": [PNG]}).text == ""


def test_result_of_failing_code_has_kind_message_and_end_of_traceback() -> None:
    """Without the colours of a terminal, and with what was printed before."""
    lines = ["\x1b[0;31mTraceback\x1b[0m"] + [f"  line {number}" for number in range(2000)] + ["ValueError: bad"]
    result = from_run_code({"stdout": "so far\n", "error": {"name": "ValueError", "value": "bad", "traceback": lines}})
    assert result.failed
    assert result.text.startswith("Error (ValueError): bad\nTraceback\n  line 0\n")
    assert "characters left out ...]" in result.text
    assert result.whole is not None
    assert "line 1000" in result.whole
    assert result.text.endswith("ValueError: bad\nso far")
    assert "\x1b" not in result.text
    assert len(result.text) < MAX_TRACEBACK_CHARS + 200


def test_result_of_a_command_has_status_timeout_and_truncation() -> None:
    """A status other than 0 is a failure with its output."""
    assert from_execute({"exit_code": 0, "stdout": "ok\n", "stderr": ""}) == ToolResult("ok")
    failed = from_execute({"exit_code": 3, "stdout": "", "stderr": "no\n"})
    assert (failed.failed, failed.text) == (
        True,
        "Error (exit_status): the command ended with exit status 3\n[stderr]\nno",
    )
    timed_out = from_execute({"exit_code": 124, "stdout": "", "stderr": "Command timed out after 1 seconds"})
    assert timed_out.text.startswith("Error (timeout)")
    cut = from_execute({"exit_code": 0, "stdout": "x", "stdout_truncated": True, "stdout_file": ".wakegate/o"})
    assert cut.text.endswith("[stdout was cut off; all of it is in .wakegate/o]")


def test_result_long_text_keeps_both_ends_and_counts_what_is_left_out() -> None:
    """A model must not take a part for the whole."""
    result = from_execute({"exit_code": 0, "stdout": "A" + "x" * 10 * MAX_TEXT_CHARS + "Z", "stderr": ""})
    assert result.text[0] == "A"
    assert result.text[-1] == "Z"
    assert f"[... {9 * MAX_TEXT_CHARS + 2:,} characters left out ...]" in result.text
    assert len(result.text) < MAX_TEXT_CHARS + 100


def test_result_is_rendered_whatever_a_hostile_sandbox_answers() -> None:
    """Wrong types are passed over, not raised."""
    odds: list[dict[str, Any]] = [
        {"results": [5, None, {}], "error": 7},
        {"results": [{"image/png": 5}]},
        {"error": {}},
    ]
    for odd in odds:
        assert isinstance(from_run_code(odd), ToolResult)


def test_messages_carry_pictures_where_the_form_allows() -> None:
    """Chat gets links, the Responses API and Anthropic get the picture itself."""
    result = ToolResult("done", (Image("image/png", "aGk="),))
    link = Link("http://h/f", "p.png", "image/png", 2)
    assert message(Shape.CHAT, CALL, result, [link]) == {
        "role": "tool",
        "tool_call_id": "c1",
        "content": "done\n[image/png, 2 bytes: http://h/f , in the workspace as p.png]",
    }
    assert message(Shape.RESPONSES, CALL, result, []) == {
        "type": "function_call_output",
        "call_id": "c1",
        "output": [
            {"type": "input_text", "text": "done"},
            {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,aGk="},
        ],
    }
    assert message(Shape.RESPONSES, CALL, ToolResult("done"), [])["output"] == "done"
    TypeAdapter(FunctionCallOutput).validate_python(message(Shape.RESPONSES, CALL, result, []), strict=True)
    block = message(Shape.ANTHROPIC, CALL, failure("kind", "message"), [])
    assert block == {
        "type": "tool_result",
        "tool_use_id": "c1",
        "content": [{"type": "text", "text": "Error (kind): message"}],
        "is_error": True,
    }


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"text/plain": "<IPython.core.display.Markdown object>", "text/markdown": "# Sum"}, "# Sum"),
        ({"text/plain": "<IPython.core.display.HTML object>", "text/html": "<b>7</b>"}, "<b>7</b>"),
        ({"text/plain": "<IPython.core.display.JSON object>", "application/json": {"a": 1}}, '{"a":1}'),
        ({"text/plain": "<IPython.core.display.Latex object>", "text/latex": "$x$"}, "$x$"),
        ({"text/plain": "<__main__.Mine at 0x7f00>", "text/html": "<i>mine</i>"}, "<i>mine</i>"),
        ({"text/plain": "<__main__.Mine object at 0x7f00>"}, "<__main__.Mine object at 0x7f00>"),
        ({"text/plain": "   price\n0  3", "text/html": "<table></table>"}, "   price\n0  3"),
    ],
)
def test_text_of_a_result_is_its_most_readable_form(result: dict[str, Any], text: str) -> None:
    """Markdown, HTML, JSON and LaTeX reach the model where the plain form only names a class."""
    assert from_run_code({"results": [result]}).text == text


def test_long_output_of_code_names_the_file_that_has_all_of_it() -> None:
    """As a command's does."""
    text = from_run_code({"stdout": "x", "stdout_truncated": True, "stdout_file": ".wakegate/output/a.stdout"}).text
    assert "all of it is in .wakegate/output/a.stdout" in text
