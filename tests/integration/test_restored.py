"""x-wakegate-restored reaches the next client, on every interface."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import httpx2
import psutil
import pytest
from mcp import Client, types
from mcp.client.streamable_http import streamable_http_client

from gateway.api.e2b.connect import envelope
from gateway.api.file_links import file_id
from tests.support.serve import Server, processes_of, serve
from tests.support.tool_calls import chat_call
from tests.support.two_gateways import two
from tests.support.waiting import LIMIT_S, eventually, wait_until


def lose_sandbox(server: Server, state: Path, session: str) -> None:
    """kill -9 of everything in the session's sandbox."""
    pid = int(server.run(session, "echo kept > note; cat /proc/sys/kernel/random/uuid > id; echo 1").json()["stdout"])
    assert pid == 1
    kill_sandboxes(server, state)
    wait_until(lambda: server.state(session)["state"] == "lost", "the loss is on record")


def kill_sandboxes(server: Server, state: Path) -> None:
    """kill -9 of everything in all sandboxes, warm ones too; returns when the gateway has another warm one."""
    killed = [process for process in processes_of(state) if process.pid != server.process.pid]
    for process in killed:
        with contextlib.suppress(Exception):
            process.kill()
    # Gone is what the gateway has waited for. Before that a claim may take the warm one that was killed, and is 503.
    psutil.wait_procs(killed, timeout=LIMIT_S)
    pools = [each["pool"] for each in server.client.get("/v1/runtimes").json()["runtimes"]]
    if any(pool["target"] for pool in pools):
        wait_until(lambda: is_warm(server), "there is another warm sandbox")


def is_warm(server: Server) -> bool:
    return any(each["pool"]["ready"] for each in server.client.get("/v1/runtimes").json()["runtimes"])


def leave_during(server: Server, session: str) -> None:
    """A client that finds the loss, and is gone before its answer."""
    body = {"command": ["sh", "-c", "touch found; sleep 1"]}
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{server.url}/api/execute", json=body, headers={"x-session-id": session}, timeout=0.5)


def ask(server: Server, session: str, operation: str) -> httpx.Response:
    """One request on the session as a container."""
    if operation == "calls":
        call = {"id": "call_1", "type": "function", "function": {"name": "run_shell", "arguments": '{"command": "ls"}'}}
        body = {"tool_calls": [call]}
        return server.client.post("/v1/tool_calls", json=body, headers={"x-session-id": session})
    path = f"files/{file_id('note')}/content" if operation == "content" else operation
    if operation == "absent":
        path = f"files/{file_id('absent')}"
    return server.client.get(f"/v1/containers/{session}/{path}")


async def call_by_mcp(server: Server, session: str) -> tuple[str, str | None]:
    """The text of a shell call's result, and what its _meta says of a loss."""
    async with (
        httpx2.AsyncClient(headers={"x-session-id": session}, timeout=30) as http,
        Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client,
    ):
        result = await client.call_tool("run_shell", {"command": "cat note"})
    (content,) = result.content
    assert isinstance(content, types.TextContent)
    return content.text, (result.meta or {}).get("wakegate/restored")


def test_loss_is_reported_to_the_next_client_if_the_first_has_left(tmp_path: Path) -> None:
    """It stays due until an answer with it was delivered, and is not repeated after that."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        lose_sandbox(server, tmp_path / "state", session)
        leave_during(server, session)
        told = server.run(session, "cat note")
        assert told.headers["x-wakegate-restored"] not in ("", "none")
        assert told.json()["stdout"] == "kept\n"
        assert "x-wakegate-restored" not in server.run(session, "cat note").headers


def test_loss_is_reported_by_a_wake_once(tmp_path: Path) -> None:
    """POST /wake carries the header as the data path does."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        lose_sandbox(server, tmp_path / "state", session)
        leave_during(server, session)
        assert "x-wakegate-restored" in server.client.post(f"/v1/sessions/{session}/wake").headers
        wait_until(lambda: "x-wakegate-restored" not in server.run(session, "true").headers, "it was told")


def test_loss_is_reported_through_another_gateway(tmp_path: Path) -> None:
    """The client of the gateway that passes requests on is the one that counts."""
    with two(tmp_path) as (a, b, _):
        session = a.session()
        lose_sandbox(a, tmp_path / "a", session)
        leave_during(b, session)
        assert "x-wakegate-restored" in b.run(session, "cat note").headers
        wait_until(lambda: "x-wakegate-restored" not in b.run(session, "true").headers, "it was told")
        assert "x-wakegate-restored" not in a.run(session, "true").headers


def test_loss_is_reported_in_a_tool_result_over_mcp_once(tmp_path: Path) -> None:
    """The text has a line for the model, `_meta` a field for programs; later answers do not repeat it."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        lose_sandbox(server, tmp_path / "state", session)
        text, told = asyncio.run(call_by_mcp(server, session))
        assert told not in (None, "none")
        assert text == (
            f"kept\n[the session's sandbox was lost; its files are those of {told}: later changes and variables"
            " in memory are lost]"
        )
        wait_until(lambda: asyncio.run(call_by_mcp(server, session)) == ("kept", None), "it was told")
        assert "x-wakegate-restored" not in server.run(session, "true").headers


@pytest.mark.parametrize("operation", ["files", "absent", "content", "calls"])
def test_loss_is_reported_by_every_answer_on_a_container_once(tmp_path: Path, operation: str) -> None:
    """Lists, errors, downloads and tool calls alike."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        lose_sandbox(server, tmp_path / "state", session)
        assert "x-wakegate-restored" in ask(server, session, operation).headers
        wait_until(lambda: "x-wakegate-restored" not in ask(server, session, operation).headers, "it was told")
        assert "x-wakegate-restored" not in server.run(session, "true").headers


# Of other products: method, path, options, and the field that names the session.
DOORS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "e2b-list": ("POST", "/filesystem.Filesystem/ListDir", {"json": {"path": "/home/user"}}, "e2b-sandbox-id"),
    "e2b-process": (
        "POST",
        "/process.Process/Start",
        {"content": envelope({"process": {"cmd": "true"}}), "headers": {"content-type": "application/connect+json"}},
        "e2b-sandbox-id",
    ),
    "e2b-watch": (
        "POST",
        "/filesystem.Filesystem/WatchDir",
        {"content": envelope({"path": "/home/user"}), "headers": {"content-type": "application/connect+json"}},
        "e2b-sandbox-id",
    ),
    "e2b-code": ("POST", "/execute", {"json": {"code": "1"}}, "e2b-sandbox-id"),
    "e2b-download": ("GET", "/files?path=note", {}, "e2b-sandbox-id"),
    "e2b-absent": ("GET", "/files?path=absent", {}, "e2b-sandbox-id"),
    "jupyter": ("GET", "/jupyter/api/contents/{}/note", {}, ""),
    "agent-sandbox": ("POST", "/execute", {"json": {"command": "ls"}}, "x-sandbox-id"),
    "agent-sandbox-download": ("GET", "/download/note", {}, "x-sandbox-id"),
}


def test_loss_is_reported_by_other_products_apis_once(tmp_path: Path) -> None:
    """By the first answer, streams, downloads and errors alike, and not by the next."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        for name, (method, path, options, field) in DOORS.items():
            lose_sandbox(server, tmp_path / "state", session)
            headers = {"e2b-sandbox-port": "49999" if name == "e2b-code" else "49983"} if "e2b" in name else {}
            headers |= {field: session} if field else {}
            headers |= options.get("headers", {})
            rest = {key: value for key, value in options.items() if key != "headers"}
            with server.client.stream(method, path.replace("{}", session), headers=headers, **rest) as reply:
                assert "x-wakegate-restored" in reply.headers, (name, reply.status_code, reply.read())
                assert reply.headers["x-session-id"] == session
                if name != "e2b-watch":  # which has no end
                    reply.read()
                    assert "x-wakegate-restored" not in server.run(session, "true").headers, "it was told"
                    continue
            # Cut off before its end, nobody knows whether its client has read it.
            assert "x-wakegate-restored" in server.run(session, "true").headers
            wait_until(lambda: "x-wakegate-restored" not in server.run(session, "true").headers, "it was told")


def test_loss_is_reported_over_mcp_and_in_file_lists_through_another_gateway(tmp_path: Path) -> None:
    """The gateway that has the session finds the loss; the one that its client asked tells of it."""
    with two(tmp_path) as (a, b, _):
        session = a.session()
        lose_sandbox(a, tmp_path / "a", session)
        assert "x-wakegate-restored" in ask(b, session, "files").headers
        wait_until(lambda: "x-wakegate-restored" not in ask(b, session, "files").headers, "it was told")
        lose_sandbox(a, tmp_path / "a", session)
        assert asyncio.run(call_by_mcp(b, session))[1] is not None
        wait_until(lambda: asyncio.run(call_by_mcp(b, session))[1] is None, "it was told")


def test_loss_that_a_stream_finds_after_its_head_stays_due(tmp_path: Path) -> None:
    """Nobody was told: the head of the stream had gone out before its first call lost the sandbox."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        calls = [
            chat_call("call_0", "run_shell", command="echo kept > note; touch began; sleep 60"),
            chat_call("call_1", "write_file", path="later", content="written"),
        ]
        body = {"stream": True, "session_id": session, "tool_calls": calls}
        with server.client.stream("POST", "/v1/tool_calls", json=body) as stream:
            assert "x-wakegate-restored" not in stream.headers
            wait_until(lambda: server.run(session, "test -e began").json()["exit_code"] == 0, "the first call runs")
            kill_sandboxes(server, tmp_path / "state")
            events = "".join(stream.iter_text())
        assert "sandbox_lost" in events
        assert events.endswith("data: [DONE]\n\n")
        told = server.run(session, "cat note later")
        assert told.json()["stdout"] == "kept\nwritten"
        assert told.headers["x-wakegate-restored"] != "none"
        wait_until(lambda: "x-wakegate-restored" not in server.run(session, "true").headers, "it was told")


def test_loss_is_still_due_when_an_mcp_client_leaves_during_its_call(tmp_path: Path) -> None:
    """Its result would have reported the loss: the next client's does."""

    async def leave(server: Server, session: str) -> None:
        async with (
            httpx2.AsyncClient(headers={"x-session-id": session}, timeout=30) as http,
            Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client,
        ):
            call = asyncio.create_task(client.call_tool("run_shell", {"command": "touch found; sleep 2"}))
            await eventually(found, "the call runs")
            call.cancel()

    def found() -> bool:
        return next((tmp_path / "state").glob("**/found"), None) is not None

    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        lose_sandbox(server, tmp_path / "state", session)
        asyncio.run(leave(server, session))
        text, told = asyncio.run(call_by_mcp(server, session))
        assert told not in (None, "none"), text
        wait_until(lambda: asyncio.run(call_by_mcp(server, session)) == ("kept", None), "it was told")
