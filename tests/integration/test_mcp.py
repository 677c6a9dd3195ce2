"""The tools over MCP, with the official SDK's client, a real gateway and real sandboxes."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, types
from mcp.client.streamable_http import streamable_http_client

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "bare", "version": "1"},
    },
}
SESSION = "mcp-session-id"
ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("wg") / "state") as served:
        yield served


@asynccontextmanager
async def connect(server: Server, headers: dict[str, str] | None = None, **options: Any) -> AsyncIterator[Client]:
    """A client of the SDK's, with its own ways of finding the protocol's version."""
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = streamable_http_client(f"{server.url}/mcp", http_client=http)
        async with Client(transport, **options) as client:
            yield client


def text_of(result: types.CallToolResult) -> str:
    """The text of a result that is nothing else."""
    (content,) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


def sessions_of(server: Server) -> set[str]:
    """Ids of all sessions that have not ended."""
    found = server.client.get("/v1/sessions").json()["sessions"]
    return {each["id"] for each in found if each["state"] != "terminated"}


async def test_mcp_session_is_a_session_that_ends_with_the_client(server: Server) -> None:
    """Files and failures as on the other surfaces; afterwards nothing is left of it."""
    before = sessions_of(server)
    async with connect(server, mode="legacy") as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["run_python", "run_shell", "read_file", "write_file", "list_files"]
        assert tools[2].annotations is not None
        assert tools[2].annotations.read_only_hint is True
        wrote = await client.call_tool("write_file", {"path": "a.txt", "content": "kept"})
        assert (wrote.is_error, text_of(wrote)) == (False, "wrote 4 bytes to a.txt")
        assert text_of(await client.call_tool("run_shell", {"command": "cat a.txt"})) == "kept"
        failed = await client.call_tool("run_shell", {"command": 5})
        assert failed.is_error
        assert text_of(failed).startswith("Error (invalid_arguments): command: expected text")
        assert text_of(await client.call_tool("nope", {})).startswith("Error (unknown_tool)")
        (made,) = sessions_of(server) - before
        assert server.client.post(f"/v1/sessions/{made}/hibernate").status_code == 200
        assert text_of(await client.call_tool("read_file", {"path": "a.txt"})) == "kept"
    assert sessions_of(server) == before


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28", "auto"])
async def test_mcp_session_named_by_header_is_not_ended_by_its_client(server: Server, mode: str) -> None:
    """Whichever revision of the protocol the client speaks."""
    session = server.session()
    server.run(session, "echo mine > x")
    async with connect(server, {"x-session-id": session}, mode=mode) as client:
        assert text_of(await client.call_tool("read_file", {"path": "x"})) == "mine\n"
    assert server.state(session)["state"] == "active"


async def test_mcp_pictures_are_image_content(server: Server) -> None:
    """The bytes are those of the file."""
    async with connect(server, mode="legacy") as client:
        made = await client.call_tool("run_shell", {"command": f"echo {PICTURE} | base64 -d > p.png"})
        assert not made.is_error
        (content,) = (await client.call_tool("read_file", {"path": "p.png"})).content
        assert isinstance(content, types.ImageContent)
        assert (content.mime_type, base64.b64decode(content.data)) == ("image/png", base64.b64decode(PICTURE))


async def test_mcp_progress_has_the_output(server: Server) -> None:
    """While the call runs; the answer is the whole of it."""
    told: list[str] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    async with connect(server, mode="legacy") as client:
        code = "import time\nprint('first', flush=True)\ntime.sleep(0.5)\nprint('second')\n'value'"
        result = await client.call_tool("run_python", {"code": code}, progress_callback=progress)
        assert text_of(result) == "first\nsecond\n'value'"
        assert "first\n" in "".join(told)


async def test_mcp_call_that_its_client_gives_up_ends(server: Server) -> None:
    """The command is gone from the sandbox."""
    session = server.session()
    async with connect(server, {"x-session-id": session}) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "run_shell", {"command": "echo > begun; sleep 600", "timeout": 600})
        begun = lambda: server.run(session, "ls begun").json()["exit_code"] == 0  # noqa: E731
        await anyio.to_thread.run_sync(wait_until, begun, "the command begins")
        group.cancel_scope.cancel()
    wait_until(lambda: "sleep" not in server.run(session, "cat /proc/[0-9]*/comm").text, "the command ends")


def test_mcp_endpoint_answers_clients_that_break_the_rules(server: Server) -> None:
    """Unknown sessions are 404, foreign pages 403, a GET 405, the newest revision is told of the handshake."""
    http = server.client
    made = http.post("/mcp", json=INITIALIZE, headers=ACCEPT)
    session = made.headers["mcp-session-id"]
    assert "x-session-id" not in made.headers  # there is none yet
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}
    named = {**ACCEPT, "mcp-session-id": session}
    assert http.post("/mcp", json=call, headers=named).status_code == 200
    assert http.get(f"/v1/sessions/{session}").status_code == 404  # who only looks costs nothing
    run = {"method": "tools/call", "params": {"name": "run_shell", "arguments": {"command": "echo done"}}}
    assert "done" in http.post("/mcp", json=call | run, headers=named).text
    assert server.state(session)["state"] == "active"
    assert http.post("/mcp", json=call, headers={**named, "origin": "http://evil.example"}).status_code == 403
    for odd in ("null", "http://[", "http://127.0.0.1.evil.example"):
        assert http.post("/mcp", json=call, headers={**named, "origin": odd}).status_code == 403
    assert http.post("/mcp", json=call, headers={**named, "origin": "http://localhost:3000"}).status_code == 200
    assert http.get("/mcp", headers=named).status_code == 405
    assert http.delete("/mcp").status_code == 400
    assert http.delete("/mcp", headers=named).status_code == 204
    assert http.delete("/mcp", headers=named).status_code == 404
    assert http.post("/mcp", json=call, headers=named).status_code == 404
    assert http.post("/mcp", content=b"{", headers=ACCEPT | {"content-type": "application/json"}).status_code == 400
    unused = http.post("/mcp", json=INITIALIZE, headers=ACCEPT).headers["mcp-session-id"]
    assert http.delete("/mcp", headers={"mcp-session-id": unused}).status_code == 204
    assert http.post("/mcp", json=call | run, headers={**ACCEPT, "mcp-session-id": unused}).status_code == 404
    unknown = http.post("/mcp", json=call, headers={**ACCEPT, "mcp-protocol-version": "2031-01-01"})
    assert (unknown.status_code, "error" in unknown.json()) == (400, True)


@pytest.mark.parametrize("mode", ["2026-07-28", "auto"])
async def test_handle_of_the_first_result_leads_to_the_same_session(server: Server, mode: str) -> None:
    """Without a handshake: discovery, a session by the first call, and its files by its handle; another has none."""
    before = sessions_of(server)
    async with connect(server, mode=mode) as client:
        tools = (await client.list_tools()).tools
        assert all("session" in tool.input_schema["properties"] for tool in tools)
        assert sessions_of(server) == before  # who only looks costs nothing
        first = await client.call_tool("run_shell", {"command": "echo kept > a.txt; echo hi"})
        assert first.structured_content is not None
        handle = first.structured_content["session"]
        assert first.structured_content["output"] == "hi"
        assert f"session: {handle}" in text_of(first)
        again = await client.call_tool("read_file", {"path": "a.txt", "session": handle})
        assert (text_of(again), again.structured_content) == ("kept\n", None)
        assert server.client.post(f"/v1/sessions/{handle}/hibernate").status_code == 200
        assert text_of(await client.call_tool("read_file", {"path": "a.txt", "session": handle})) == "kept\n"
        other = await client.call_tool("read_file", {"path": "a.txt"})
        assert other.is_error
        assert sessions_of(server) - before >= {handle}
        unknown = await client.call_tool("list_files", {"session": "nobody-knows-it"})
        assert unknown.is_error
        assert "nothing was run" in text_of(unknown)


def test_requests_without_a_handshake_are_checked_before_a_session_is_made(server: Server) -> None:
    """Headers that disagree with the body, a missing envelope, a handle that is no id: refused, and no session."""
    before = sessions_of(server)
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "bare", "version": "1"},
    }
    headers = {
        **ACCEPT, "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "run_shell",
    }  # fmt: skip

    def call(headers: dict[str, str], meta: dict[str, Any], **arguments: Any) -> Any:
        params = {"name": "run_shell", "arguments": {"command": "true", **arguments}, "_meta": meta}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return server.client.post("/mcp", json=body, headers=headers)

    assert call({**headers, "mcp-name": "read_file"}, meta).status_code == 400
    assert call({**headers, "mcp-method": "tools/list"}, meta).status_code == 400
    assert call(headers, {}).status_code == 400
    for odd in (5, "", "../x", "a" * 200, ["a"]):
        assert "error" in call(headers, meta, session=odd).json()
    assert sessions_of(server) == before
    assert call(headers, meta).json()["result"]["structuredContent"]["session"] in sessions_of(server)


def test_ordinary_calls_are_answered_as_the_sdk_answers_them(server: Server) -> None:
    """One that the SDK has to answer (for its progress token) and one that it has not: the same result, byte for byte.

    Also a first call, which names its session, a failure, and one that is not over before the SDK takes it.
    """
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "plain", "version": "1"},
    }
    session = server.session()

    def call(tool: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
        headers = {**ACCEPT, "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": tool}
        params = {"name": tool, "arguments": arguments, "_meta": {**meta, **more}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        reply = server.client.post("/mcp", json=body, headers=headers)
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
        result: dict[str, Any] = reply.json()["result"]
        return result

    for tool, arguments in (
        ("list_files", {}),
        ("read_file", {"path": "none"}),
        ("no_such_tool", {}),
        ("run_python", {"code": 5}),
        ("run_shell", {"command": "sleep 0.3"}),
        ("list_files", {"session": "nobody-knows-it"}),
    ):
        named = {"session": session, **arguments}
        of_sdk = call(tool, named, progressToken="t")
        call(tool, named)  # the first without a token is the SDK's as well, which then knows the client
        assert call(tool, named) == of_sdk, tool
    first = call("list_files", {})
    assert first["structuredContent"]["session"] in sessions_of(server)


def test_first_calls_that_come_at_once_share_the_session(server: Server) -> None:
    """A client's id makes one session, whichever of its calls is the first."""
    named = {**ACCEPT, "mcp-session-id": server.client.post("/mcp", json=INITIALIZE, headers=ACCEPT).headers[SESSION]}
    before = sessions_of(server)
    calls = [
        {"jsonrpc": "2.0", "id": number, "method": "tools/call",
         "params": {"name": "run_shell", "arguments": {"command": f"echo {number} >> all; cat all | wc -l"}}}
        for number in range(4)
    ]  # fmt: skip
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda call: server.client.post("/mcp", json=call, headers=named), calls))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert sessions_of(server) - before == {named[SESSION]}
    assert sorted(server.run(named[SESSION], "cat all").json()["stdout"].split()) == ["0", "1", "2", "3"]


def test_mcp_cancelled_notification_ends_a_call_that_is_waited_for(server: Server) -> None:
    """As clients do that keep the request open: it is answered, and the command is gone."""
    http = server.client
    session = server.session()
    named = {**ACCEPT, "x-session-id": session}
    arguments = {"command": "echo > begun; sleep 600", "timeout": 600}
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "run_shell", "arguments": arguments}}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(http.post, "/mcp", json=call, headers=named)
        wait_until(lambda: server.run(session, "ls begun").json()["exit_code"] == 0, "the command begins")
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
        assert http.post("/mcp", json=cancel, headers=named).status_code == 202
        assert "the call was cancelled" in answer.result(timeout=20).text
    wait_until(lambda: "sleep" not in server.run(session, "cat /proc/[0-9]*/comm").text, "the command ends")
