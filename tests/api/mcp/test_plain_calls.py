"""Which requests of MCP count as ordinary calls, that are answered without the SDK's machinery."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from mcp import types
from starlette.requests import Request

from gateway.api.mcp.plain_calls import PlainCalls

VERSION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
}
PARAMS: dict[str, Any] = {"name": "run_shell", "arguments": {"command": "true"}, "_meta": META}
MESSAGE: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": PARAMS}
HEADERS = {
    "accept": "application/json, text/event-stream", "content-type": "application/json",
    "mcp-protocol-version": VERSION, "mcp-method": "tools/call", "mcp-name": "run_shell",
}  # fmt: skip


def request(fields: list[tuple[str, str]] | None = None) -> Request:
    """A request with these header fields, or those of an ordinary call."""
    headers = [(name.encode(), value.encode()) for name, value in fields or HEADERS.items()]
    return Request({"type": "http", "method": "POST", "path": "/mcp", "headers": headers, "query_string": b""})


@pytest.fixture
def calls() -> PlainCalls:
    """Calls of which the SDK has accepted one of MESSAGE's form."""
    made = PlainCalls()
    first = request()
    assert made.recognise(first, MESSAGE) is None
    made.learn(first)
    return made


def test_call_is_ordinary_once_the_sdk_has_accepted_one_like_it(calls: PlainCalls) -> None:
    """Another tool, other arguments and another id are of the same form; the handle is an argument."""
    found = calls.recognise(request(), MESSAGE)
    assert found is not None
    assert (found.id, found.name, found.arguments) == ("1", "run_shell", {"command": "true"})
    other = {**MESSAGE, "id": "x", "params": {**PARAMS, "name": "list_files", "arguments": {"session": "s"}}}
    found = calls.recognise(request([*(HEADERS | {"mcp-name": "list_files"}).items()]), other)
    assert found is not None
    assert (found.id, found.arguments) == ("x", {"session": "s"})
    bare = {"name": "list_files", "_meta": META}
    assert calls.recognise(
        request([*(HEADERS | {"mcp-name": "list_files"}).items()]), {**MESSAGE, "params": bare}
    ) is not None  # fmt: skip


ODD_IDS: list[Any] = [None, True, 1.5, [1]]
ODD_PARAMS: list[Any] = [None, [], "x"]


@pytest.mark.parametrize(
    "message",
    [
        {**MESSAGE, "jsonrpc": "1.0"},
        {**MESSAGE, "method": "tools/list"},
        {**MESSAGE, "more": 1},
        *({**MESSAGE, "id": odd} for odd in ODD_IDS),
        {name: value for name, value in MESSAGE.items() if name != "id"},
        *({**MESSAGE, "params": odd} for odd in ODD_PARAMS),
        {**MESSAGE, "params": {**PARAMS, "name": 5}},
        {**MESSAGE, "params": {**PARAMS, "arguments": []}},
        {**MESSAGE, "params": {**PARAMS, "task": {}}},
        {**MESSAGE, "params": {**PARAMS, "_meta": None}},
        {**MESSAGE, "params": {**PARAMS, "_meta": {**META, "progressToken": 1}}},
        {**MESSAGE, "params": {**PARAMS, "_meta": {**META, "traceparent": "00-1"}}},
        {**MESSAGE, "params": {**PARAMS, "_meta": {**META, "io.modelcontextprotocol/clientInfo": {"name": "d"}}}},
        {},
    ],
)
def test_any_other_message_is_for_the_sdk(calls: PlainCalls, message: dict[str, Any]) -> None:
    """Whatever it is, the SDK answers or refuses it, and knows better how."""
    assert calls.recognise(request(), message) is None


@pytest.mark.parametrize(
    "fields",
    [
        [(name, value) for name, value in HEADERS.items() if name != "mcp-name"],
        [*(HEADERS | {"mcp-name": "read_file"}).items()],
        [*(HEADERS | {"mcp-method": "tools/list"}).items()],
        [*(HEADERS | {"mcp-protocol-version": "2031-01-01"}).items()],
        [*HEADERS.items(), ("mcp-name", "run_shell")],
        [*HEADERS.items(), ("mcp-param-command", "true")],
        [*(HEADERS | {"content-type": "text/plain"}).items()],
        [*(HEADERS | {"accept": "application/json"}).items()],
    ],
)
def test_header_fields_that_disagree_are_for_the_sdk(calls: PlainCalls, fields: list[tuple[str, str]]) -> None:
    """It refuses them, also of a client that it knows."""
    assert calls.recognise(request(fields), MESSAGE) is None


def test_known_clients_are_bounded(calls: PlainCalls) -> None:
    """The longest unused is forgotten; one whose `_meta` is large is not kept at all."""

    def meet(version: str) -> bool:
        meta = {**META, "io.modelcontextprotocol/clientInfo": {"name": "c", "version": version}}
        asked, message = request(), {**MESSAGE, "params": {**PARAMS, "_meta": meta}}
        known = calls.recognise(asked, message) is not None
        calls.learn(asked)
        return known

    assert not meet("x" * 3000)
    assert not meet("x" * 3000)
    for number in range(300):
        assert not meet(f"n{number}")
        assert calls.recognise(request(), MESSAGE) is not None  # it is used, and so it stays
    assert meet("n299")
    assert not meet("n0")


def test_answer_has_the_sdks_form() -> None:
    """The type of the result, what is empty left out, and the server's own name in `_meta`, beside what is there."""
    content: list[types.ContentBlock] = [types.TextContent(text="é")]
    result = {"content": [{"type": "text", "text": "é"}], "isError": False, "_meta": {"wakegate/restored": "none"}}
    theirs = types.CallToolResult(content=content, _meta={"wakegate/restored": "none"})
    assert {"resultType": "complete", **result} == theirs.model_dump(mode="json", by_alias=True, exclude_none=True)
    document = orjson.loads(PlainCalls.answer("i", result).body)
    info = document["result"].pop("_meta")
    assert document == {
        "jsonrpc": "2.0", "id": "i",
        "result": {"resultType": "complete", "content": [{"type": "text", "text": "é"}], "isError": False},
    }  # fmt: skip
    assert info.pop("wakegate/restored") == "none"
    assert info["io.modelcontextprotocol/serverInfo"]["name"] == "wakegate"
