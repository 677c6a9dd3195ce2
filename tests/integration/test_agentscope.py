"""AgentScope Runtime's sandbox server over a real gateway: requests of its clients, keys, tenants, and bad input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.serve import Server, serve

ADMIN = "a" * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway with an admin key from a file."""
    folder = tmp_path_factory.mktemp("wg")
    (folder / "admin").write_text(ADMIN)
    with serve(folder / "state", "--admin-key-file", str(folder / "admin")) as served:
        yield served


def make_key(server: Server, tenant: str) -> str:
    reply = server.client.post(
        "/v1/keys", json={"role": "member", "tenant": tenant}, headers={"authorization": f"Bearer {ADMIN}"}
    )
    return str(reply.json()["key"])


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
