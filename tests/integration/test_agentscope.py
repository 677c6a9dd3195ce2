"""AgentScope Runtime's sandbox server over a real gateway: requests of its clients, keys, tenants, and bad input."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest

from tests.support.keyed import ADMIN, make_key, serve_with_keys
from tests.support.serve import Server
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that asks for keys."""
    with serve_with_keys(tmp_path_factory.mktemp("wg")) as served:
        yield served


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    """A member's."""
    return make_key(server, "acme")


def ask(server: Server, key: str, method: str, **arguments: Any) -> tuple[int, Any]:
    """Status, and `data` or the whole error."""
    reply = server.client.post(
        f"/agentscope/{method}", json=arguments, headers={"authorization": f"Bearer {key}"} if key else {}
    )
    return reply.status_code, reply.json()["data"] if reply.status_code == 200 else reply.json()


def texts(result: Any) -> dict[str, str]:
    return {each["description"]: each["text"] for each in result["content"]}


def test_a_base_sandbox_runs_cells_and_commands_until_it_is_released(server: Server, key: str) -> None:
    """What BaseSandbox and SandboxService send, by the names of the asynchronous clients too."""
    status, made = ask(server, key, "create_from_pool", sandbox_type="base", meta={"session_ctx_id": "s1_u1"})
    assert status == 200, made
    assert ask(server, key, "get_session_mapping", session_ctx_id="s1_u1") == (200, [made])
    assert ask(server, key, "list_session_keys") == (200, ["s1_u1"])
    info = ask(server, key, "get_info", identity=made)[1]
    assert info["version"] == "wakegate/runtime-sandbox-base:latest"
    assert info["meta"] == {"session_ctx_id": "s1_u1"}
    assert list(ask(server, key, "list_tools", identity=made, tool_type=None)[1]["generic"]) == [
        "run_ipython_cell",
        "run_shell_command",
    ]

    ask(server, key, "call_tool", identity=made, tool_name="run_ipython_cell", arguments={"code": "x = 20"})
    cell = {"code": "import sys; print('said'); print('no', file=sys.stderr); x + 1"}
    status, result = ask(server, key, "call_tool_async", identity=made, tool_name="run_ipython_cell", arguments=cell)
    assert status == 200, result
    assert texts(result) == {"stdout": "said\n21\n", "stderr": "no\n"}
    assert result["isError"]
    failed = ask(server, key, "call_tool", identity=made, tool_name="run_ipython_cell", arguments={"code": "1 / 0"})[1]
    assert "ZeroDivisionError" in texts(failed)["stdout"]
    command = {"command": "echo hi; exit 3"}
    ran = ask(server, key, "call_tool", identity=made, tool_name="run_shell_command", arguments=command)[1]
    assert texts(ran) == {"stdout": "hi\n", "returncode": "3"}
    assert not ran["isError"]

    assert ask(server, key, "stop", identity=made) == (200, True)
    assert ask(server, key, "get_status", identity=made) == (200, "exited")
    assert ask(server, key, "start", identity=made) == (200, True)
    assert ask(server, key, "get_status", identity=made) == (200, "running")
    assert ask(server, key, "release", identity=made) == (200, True)
    assert ask(server, key, "release", identity=made) == (200, True)
    assert ask(server, key, "get_info", identity=made) == (404, {"detail": f"No container found with id: {made}."})


def test_a_tenant_sees_and_cleans_up_its_own_sandboxes_only(server: Server, key: str) -> None:
    """A client that stops releases everything that is listed for it, so another tenant's must not be."""
    other = make_key(server, "other")
    made = ask(server, key, "create", sandbox_type="base_async", meta={"session_ctx_id": "mine"})[1]
    assert ask(server, other, "list_session_keys") == (200, [])
    assert ask(server, other, "get_session_mapping", session_ctx_id="mine") == (200, [])
    assert ask(server, other, "check_health", identity=made)[0] == 404
    assert ask(server, other, "release", identity=made) == (200, True)
    assert ask(server, other, "cleanup") == (200, None)
    assert ask(server, key, "check_health", identity=made) == (200, True)
    assert ask(server, key, "cleanup") == (200, None)
    assert ask(server, key, "check_health", identity=made)[0] == 404


def tool(server: Server, key: str, sandbox: str, name: str, **arguments: Any) -> tuple[bool, str]:
    """Whether a tool of the filesystem's failed, and its text."""
    status, result = ask(server, key, "call_tool", identity=sandbox, tool_name=name, arguments=arguments)
    assert status == 200, result
    return result["isError"], result["content"][0]["text"]


@pytest.fixture(scope="module")
def sandbox(server: Server, key: str) -> str:
    """A filesystem sandbox with a few files."""
    made = ask(server, key, "create_from_pool", sandbox_type="filesystem")[1]
    script = "mkdir -p a/b && printf 'one\\ntwo\\ntwo\\n' > a/t.txt && touch a/b/Deep.py && ln -s /etc/passwd link"
    ask(server, key, "call_tool", identity=made, tool_name="run_shell_command", arguments={"command": script})
    return str(made)


def test_filesystem_tools_read_write_edit_and_find(server: Server, key: str, sandbox: str) -> None:
    """All eleven, in the words of MCP's reference server; what is wrong with a file is a result."""
    assert ask(server, key, "get_info", identity=sandbox)[1]["version"] == "wakegate/runtime-sandbox-filesystem:latest"
    listed = ask(server, key, "list_tools", identity=sandbox, tool_type="filesystem")[1]["filesystem"]
    assert len(listed) == 11
    assert listed["edit_file"]["json_schema"]["function"]["parameters"]["required"] == ["path", "edits"]

    assert tool(server, key, sandbox, "read_file", path="/workspace/a/t.txt") == (False, "one\ntwo\ntwo\n")
    assert tool(server, key, sandbox, "write_file", path="new/é.txt", content="é") == (
        False,
        "Successfully wrote to new/é.txt",
    )
    failed, text = tool(server, key, sandbox, "read_multiple_files", paths=["new/é.txt", "none"])
    assert not failed
    assert text.startswith("new/é.txt:\né\n\n---\nnone: Error - ")
    edits = [{"oldText": "two\ntwo", "newText": "2"}]
    shown = tool(server, key, sandbox, "edit_file", path="a/t.txt", edits=edits, dryRun=True)
    assert shown == (False, "```diff\n--- a/t.txt\n+++ a/t.txt\n@@ -2,2 +2,1 @@\n-two\n-two\n+2\n```\n\n")
    assert tool(server, key, sandbox, "read_file", path="a/t.txt")[1] == "one\ntwo\ntwo\n"
    assert tool(server, key, sandbox, "edit_file", path="a/t.txt", edits=edits) == shown
    assert tool(server, key, sandbox, "read_file", path="a/t.txt")[1] == "one\n2\n"
    assert tool(server, key, sandbox, "edit_file", path="a/t.txt", edits=edits)[0]

    assert not tool(server, key, sandbox, "create_directory", path="/workspace/x/y")[0]
    assert tool(server, key, sandbox, "list_directory", path="a")[1] == "[DIR] b\n[FILE] t.txt"
    tree = json.loads(tool(server, key, sandbox, "directory_tree", path="a")[1])
    assert tree[0] == {"name": "b", "type": "directory", "children": [{"name": "Deep.py", "type": "file"}]}
    assert tool(server, key, sandbox, "search_files", path=".", pattern="deep")[1] == "/workspace/a/b/Deep.py"
    assert tool(server, key, sandbox, "search_files", path="a", pattern="**/*.PY")[1] == "/workspace/a/b/Deep.py"
    found = tool(server, key, sandbox, "search_files", path="/workspace", pattern="*.py", excludePatterns=["b"])
    assert found == (False, "No matches found")
    assert not tool(server, key, sandbox, "move_file", source="x/y", destination="z")[0]
    assert tool(server, key, sandbox, "move_file", source="z", destination="a")[0]
    assert "isDirectory: true" in tool(server, key, sandbox, "get_file_info", path="z")[1]
    assert tool(server, key, sandbox, "list_allowed_directories")[1] == "Allowed directories:\n/workspace"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read_file", {"path": "../etc/passwd"}),
        ("read_file", {"path": "/etc/passwd"}),
        ("read_file", {"path": "link"}),
        ("read_file", {"path": "a"}),
        ("read_file", {"path": 1}),
        ("write_file", {"path": "/workspace", "content": "x"}),
        ("write_file", {"path": "a", "content": "x"}),
        ("edit_file", {"path": "a/t.txt", "edits": []}),
        ("edit_file", {"path": "a/t.txt", "edits": [1]}),
        ("read_multiple_files", {"paths": ["a"] * 1000}),
        ("search_files", {"path": ".", "pattern": "*a" * 100}),
        ("search_files", {"path": ".", "pattern": "a" * 300}),
    ],
)
def test_a_filesystem_tool_says_what_is_wrong(
    server: Server, key: str, sandbox: str, name: str, arguments: dict[str, Any]
) -> None:
    """As a result with isError, also for what leads out of the workspace."""
    failed, text = tool(server, key, sandbox, name, **arguments)
    assert failed
    assert text.startswith("Error: ")
    assert "root:" not in text


def test_files_go_in_and_out_by_the_proxy(server: Server, key: str, sandbox: str) -> None:
    """What `sandbox.fs` of 1.1 sends: read, write, batch, list, exists, move, mkdir, remove."""
    base = f"/agentscope/proxy/{sandbox}/workspace"
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as http:
        put = http.put(f"{base}/file", params={"path": "/workspace/p/a.txt"}, content="hé".encode())
        assert put.json() | {"mtime_ms": 0} == {
            "path": "/workspace/p/a.txt", "name": "a.txt", "type": "file", "size": 3, "mtime_ms": 0,
        }  # fmt: skip
        assert put.json()["mtime_ms"] > 1_600_000_000_000
        got = http.get(f"{base}/file", params={"path": "p/a.txt", "format": "text"})
        assert (got.text, got.headers["content-type"]) == ("hé", "text/plain; charset=utf-8")
        assert http.get(f"{base}/file", params={"path": "p/a.txt", "format": "bytes"}).content == "hé".encode()
        form = [("files", ("x", b"1")), ("files", ("y", b"22"))]
        batch = http.post(f"{base}/files:batch", data={"paths": ["p/b", "p/q/c"]}, files=form)
        assert [each["path"] for each in batch.json()] == ["/workspace/p/b", "/workspace/p/q/c"]
        listed = http.get(f"{base}/list", params={"path": "/workspace/p", "depth": 5}).json()
        assert [(each["name"], each["type"], each["size"]) for each in listed] == [
            ("a.txt", "file", 3), ("b", "file", 1), ("q", "dir", None), ("c", "file", 2),
        ]  # fmt: skip
        moved = http.post(f"{base}/move", json={"source": "p/b", "destination": "/workspace/p/a.txt"})
        assert moved.json()["size"] == 1
        assert http.post(f"{base}/mkdir", json={"path": "p/new"}).json() == {"created": True}
        assert http.post(f"{base}/mkdir", json={"path": "p/new"}).json() == {"created": False}
        assert http.delete(f"{base}/entry", params={"path": "p"}).status_code == 204
        assert http.delete(f"{base}/entry", params={"path": "p"}).status_code == 204
        assert http.get(f"{base}/exists", params={"path": "p"}).json() == {"exists": False}
        for method, path, params, status in (
            ("GET", "file", {"path": "p/a.txt"}, 404),
            ("GET", "file", {"path": "/etc/passwd"}, 403),
            ("GET", "file", {"path": "a", "format": "xml"}, 400),
            ("GET", "file", {}, 400),
            ("GET", "list", {"path": "none"}, 404),
            ("GET", "list", {"path": ".", "depth": "0"}, 400),
            ("PUT", "file", {"path": "/workspace"}, 400),
            ("DELETE", "entry", {"path": "."}, 400),
            ("POST", "files:batch", {}, 400),
            ("GET", "../fastapi/docs", {}, 404),
        ):
            refused = http.request(method, f"{base}/{path}", params=params)
            assert refused.status_code == status, (method, path, refused.text)
            assert "detail" in refused.json()
        assert http.get("/agentscope/proxy/no-such/workspace/file?path=a").status_code == 404


def test_a_tool_ends_when_its_client_leaves(server: Server, key: str, sandbox: str) -> None:
    """Their clients leave after 60 s; nobody reads what runs on."""
    admin = {"authorization": f"Bearer {ADMIN}", "x-session-id": sandbox}

    def in_sandbox(script: str) -> str:
        reply = server.client.post("/api/execute", json={"command": ["sh", "-c", script]}, headers=admin)
        return str(reply.json()["stdout"])

    address = urlsplit(server.url)
    body = orjson.dumps(
        {
            "identity": sandbox,
            "tool_name": "run_shell_command",
            "arguments": {"command": "echo $$ > /workspace/pid; exec sleep 1000"},
        }
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            f"POST /agentscope/call_tool HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {key}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: in_sandbox("cat pid 2>/dev/null").strip() != "", "the tool runs")
        assert in_sandbox("kill -0 $(cat pid) && echo on") == "on\n"
    wait_until(lambda: in_sandbox("kill -0 $(cat pid) 2>/dev/null || echo over") == "over\n", "it is ended")


def test_the_server_is_healthy_without_a_key(server: Server) -> None:
    """Deployments ask for it."""
    assert server.client.get("/agentscope/health").json()["status"] == "healthy"


@pytest.mark.parametrize(
    ("method", "arguments", "status", "detail"),
    [
        ("create", {"sandbox_type": "gui"}, 400, "'gui' is not offered here"),
        ("create", {"sandbox_type": ["base"]}, 400, "sandbox_type: expected text"),
        ("create", {"environment": {"A": "1"}}, 400, "environment: not supported"),
        ("create", {"meta": {"a": "b" * 5000}}, 400, "meta: expected at most"),
        ("create", {"meta": 1}, 400, "meta: expected an object"),
        ("get_info", {}, 400, "identity: expected text"),
        ("get_info", {"identity": "x" * 200}, 400, "identity: expected text"),
        ("get_info", {"identity": "../a"}, 404, "No container found with id"),
        ("add_mcp_servers", {}, 404, "/agentscope/add_mcp_servers"),
    ],
)
def test_bad_requests_say_what_is_wrong_in_agentscopes_shape(
    server: Server, key: str, method: str, arguments: dict[str, Any], status: int, detail: str
) -> None:
    """A client shows `detail` as if it were the result."""
    got, error = ask(server, key, method, **arguments)
    assert got == status, error
    assert detail in error["detail"]


def test_a_request_without_a_key_is_refused_in_agentscopes_shape(server: Server) -> None:
    """401 with `detail`, which clients print."""
    status, error = ask(server, "", "list_session_keys")
    assert status == 401
    assert "detail" in error
