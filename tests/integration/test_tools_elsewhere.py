"""Two gateways over one Redis: the tool surfaces of one on a session that the other has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from tests.support.redis_server import RedisServer, free_port
from tests.support.serve import Server, serve
from tests.support.tool_calls import chat_call
from tests.support.waiting import LIMIT_S

ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Both on this machine, each with sandboxes of its own."""
    folder = tmp_path_factory.mktemp("wg")
    redis = RedisServer(folder / "redis").start()
    ports = free_port(), free_port()
    flags = [
        ("--store", redis.url, "--port", str(port), "--advertise", f"http://127.0.0.1:{port}", "--warm-pool", "1")
        for port in ports
    ]
    try:
        with serve(folder / "one", *flags[0]) as one, serve(folder / "two", *flags[1]) as two:
            yield one, two
    finally:
        redis.kill()


def test_tools_files_and_ends_reach_the_gateway_that_has_the_session(servers: tuple[Server, Server]) -> None:
    """A call, a file up and down, and the end; the session stays where it is."""
    one, two = servers
    with OpenAI(base_url=f"{two.url}/v1", api_key="any", max_retries=0) as client:
        session = one.session()
        made = client.containers.files.create(session, file=("a.txt", b"words"))
        body = {"session_id": session, "tool_calls": [chat_call("a", "run_shell", command="cat a.txt; echo > b.txt")]}
        reply = two.client.post("/v1/tool_calls", json=body).json()
        assert reply["messages"][0]["content"] == "words"
        assert {each.path for each in client.containers.files.list(session)} == {"/workspace/a.txt", "/workspace/b.txt"}
        assert client.containers.files.content.retrieve(made.id, container_id=session).read() == b"words"
        assert one.run(session, "cat a.txt").json()["stdout"] == "words"
        client.containers.delete(session)
    assert one.state(session)["state"] == "terminated"


def test_mcp_session_is_known_to_the_other_gateway(servers: tuple[Server, Server]) -> None:
    """Made by one, used and ended through the other."""
    one, two = servers
    info = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bare", "version": "1"}}
    initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info}
    session = one.client.post("/mcp", json=initialize, headers=ACCEPT).headers["mcp-session-id"]
    named = {**ACCEPT, "mcp-session-id": session}
    params = {"name": "run_shell", "arguments": {"command": "echo over there"}}
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
    assert "over there" in one.client.post("/mcp", json=call, headers=named).text
    assert "over there" in two.client.post("/mcp", json=call, headers=named).text
    assert two.client.delete("/mcp", headers=named).status_code == 204
    assert one.state(session)["state"] == "terminated"


def test_call_retried_at_another_gateway_runs_once(servers: tuple[Server, Server]) -> None:
    """What one gateway ran, the other answers with what came of it: commands, code, files, alone and as a stream."""
    one, two = servers
    calls = [
        chat_call("a", "run_shell", command="echo x >> ran; date +%N"),
        chat_call("b", "run_python", code="n = globals().get('n', 0) + 1\nn"),
        chat_call("c", "write_file", path="note", content="first"),
    ]
    body = {"session_id": one.session(), "tool_calls": calls}
    key, retry = {"idempotency-key": "k" * 16}, {"x-stainless-retry-count": "1"}
    first = one.client.post("/v1/tool_calls", json=body, headers=key).json()
    again = two.client.post("/v1/tool_calls", json=body, headers=retry).json()
    assert again == first | {"replayed": ["a", "b", "c"]}
    changed = [chat_call("d", "run_shell", command="echo changed > note; wc -l < ran")]
    assert (
        one.client.post("/v1/tool_calls", json=body | {"tool_calls": changed}).json()["messages"][0]["content"] == "1"
    )
    assert two.client.post("/v1/tool_calls", json=body, headers=key).json() == again
    streamed = two.client.post("/v1/tool_calls", json=body | {"stream": True}, headers=key).text
    assert streamed.count('"replayed":true') == 3
    assert first["messages"][0]["content"] in streamed
    look = [chat_call("e", "run_shell", command="cat note ran")]
    seen = two.client.post("/v1/tool_calls", json=body | {"tool_calls": look}).json()
    assert seen["messages"][0]["content"].split() == ["changed", "x"]


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_call_retried_after_its_gateway_came_back_runs_once(tmp_path: Path, end: str) -> None:
    """Killed or terminated, the restarted gateway answers a retry with the first result."""
    calls = [chat_call("a", "run_shell", command="echo x >> ran; date +%N")]
    with serve(tmp_path / "state", "--warm-pool", "1") as first:
        session = first.session()
        body = {"session_id": session, "tool_calls": calls}
        answer = first.client.post("/v1/tool_calls", json=body).json()
        getattr(first, end)()
    with serve(tmp_path / "state", "--warm-pool", "1") as second:
        retry = second.client.post("/v1/tool_calls", json=body, headers={"x-stainless-retry-count": "1"}).json()
        assert retry == answer | {"replayed": ["a"]}
        assert second.run(session, "cat ran").json()["stdout"] == "x\n"


def test_chat_and_stored_files_are_reached_through_the_other_gateway(servers: tuple[Server, Server]) -> None:
    """Open WebUI's commands, files, working directory and terminal; a program of LibreChat's among an upload."""
    one, two = servers
    chat = {"x-session-id": "elsewhere", "x-user-id": "ada"}
    begun = one.client.post("/open-terminal/execute", json={"command": "echo here > note; mkdir sub"}, headers=chat)
    assert begun.json()["status"] == "done", begun.text
    moved = two.client.post("/open-terminal/files/cwd", json={"path": "/workspace/sub"}, headers=chat)
    assert moved.json() == {"cwd": "/workspace/sub"}, moved.text
    ran = two.client.post("/open-terminal/execute", json={"command": "pwd; cat ../note"}, headers=chat).json()
    assert "".join(each["data"] for each in ran["output"]) == "/workspace/sub\r\nhere\r\n"
    viewed = two.client.get("/open-terminal/files/view", params={"path": "/workspace/note"}, headers=chat)
    assert viewed.text == "here\n"
    terminal = one.client.post("/open-terminal/api/terminals", headers=chat).json()["id"]
    address = two.url.replace("http", "ws") + f"/open-terminal/api/terminals/{terminal}"
    with connect(address, additional_headers=chat, proxy=None, open_timeout=LIMIT_S) as socket:
        socket.send('{"type": "auth", "token": ""}')
        socket.send(b"exit 0\n")
        with contextlib.suppress(ConnectionClosedOK):
            while True:
                socket.recv(LIMIT_S)
        assert socket.close_code == 1000

    stored = one.client.post("/librechat/upload", files={"file": ("in.txt", b"stored")}).json()
    file = {"id": stored["files"][0]["fileId"], "name": "in.txt", "storage_session_id": stored["storage_session_id"]}
    body = {"lang": "py", "code": "print(open('/mnt/data/in.txt').read())", "files": [file]}
    assert two.client.post("/librechat/exec", json=body).json()["stdout"] == "stored\n"
    by_itself = two.client.post("/librechat/exec", json={"lang": "py", "code": "print(1)"}).json()["session_id"]
    assert one.client.post("/librechat/exec", json={**body, "session_id": by_itself}).json()["stdout"] == "stored\n"
