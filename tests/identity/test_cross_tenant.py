"""Another tenant's ids, tried at every path of /openapi.json and of the data path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
import websockets

from gateway.api.openapi.table import CONTROL
from gateway.api.permissions import PERMISSIONS
from gateway.api.session_search import read_query, search_sessions
from gateway.core.identity import KEY_ROLES, ROLES, Identity, Permission, Role, acting_as
from gateway.core.model import SessionId
from tests.support.scripted import OpenScripted, key_of
from tests.support.waiting import LIMIT_S

ON_UVLOOP = True
METHODS = ("get", "post", "put", "patch", "delete", "head")
LISTS = {
    ("get", "/v1/sessions"), ("get", "/v1/containers"), ("get", "/v1/runtimes"), ("get", "/v1/tools"),
    ("get", "/v1/caller"), ("get", "/v1/events"), ("get", "/v1/usage"), ("get", "/v1/tenants/self"),
    ("post", "/v1/console/session"), ("delete", "/v1/console/session"),
    ("get", "/v1/agents"), ("get", "/api/v1/agents"), ("get", "/v1/agents/{name}/tasks"),
    ("get", "/v1/agents/{name}/schedules"),
    ("get", "/jupyter/api"), ("get", "/jupyter/api/kernelspecs"), ("get", "/jupyter/api/kernels"),
    ("get", "/jupyter/api/sessions"), ("get", "/jupyter/api/contents"),
    ("get", "/open-terminal/system"), ("get", "/open-terminal/execute"), ("get", "/open-terminal/files/cwd"),
    ("get", "/open-terminal/files/list"), ("get", "/open-terminal/files/search"),
    ("get", "/open-terminal/api/terminals"), ("get", "/open-terminal/ports"),
    ("get", "/v1/sandbox/dependencies"), ("post", "/v1/sandbox/dependencies/update"),
    ("get", "/v1/sandbox/dependencies/refresh"), ("get", "/sandboxes"), ("get", "/v2/sandboxes"),
    ("get", "/apis/extensions.agents.x-k8s.io/v1beta1/namespaces/{namespace}/sandboxclaims"),
    ("get", "/apis/agents.x-k8s.io/v1beta1/namespaces/{namespace}/sandboxes"),
}  # fmt: skip
MAKES = {
    "/v1/sessions",
    "/v1/containers",
    "/v1/code-interpreter",
    "/v1/agent-runtime",
    "/v1/tool_calls",
    "/agentscope/create",
    "/agentscope/create_from_pool",
    "/jupyter/api/kernels",
    "/jupyter/api/sessions",
    "/v1/run",
    "/v1/sandbox/run",
    "/mcp",
    "/sandboxes",
    "/v2/sandboxes",
    "/open-terminal/api/terminals",
}
PUBLIC = {
    "/healthz", "/readyz", "/health", "/health/live", "/health/ready", "/openapi.json", "/agentscope/health",
    "/open-terminal/health", "/open-terminal/api/config", "/open-terminal/openapi.json",
}  # fmt: skip
CALL = {"id": "call_1", "type": "function", "function": {"name": "run_python", "arguments": '{"code": "1"}'}}
BODIES: dict[str, Any] = {
    "/v1/tool_calls": {"tool_calls": [CALL]},
    "/mcp": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(method, path) of everything that is described."""
    for path, item in document["paths"].items():
        yield from ((method, path) for method in item if method in METHODS)


def filled(path: str, session: SessionId) -> str:
    """The path with another tenant's session wherever one is named."""
    for name in ("session_id", "container_id", "sandbox_id"):
        path = path.replace(f"{{{name}}}", session)
    return (
        path.replace("{port}", "8000").replace("{namespace}", "default").replace("{name}", "my-interpreter")
        .replace("{path}", "api/files").replace("{", "").replace("}", "")
    )  # fmt: skip


async def test_no_path_shows_uses_or_changes_another_tenants_session(open_gateway: OpenScripted) -> None:
    """Whatever is asked answers as for a session that does not exist; the sandbox hears nothing, the record stays."""
    gateway, sandbox = await open_gateway(auth=True)
    with acting_as(Identity(Role.MEMBER, "acme")):
        session = await gateway.session(metadata={"openai": "container", "name": "secret-name"})
    before = await gateway.gateway.store.get(session)
    headers = {"authorization": f"Bearer {await key_of(gateway, 'other')}", "host": "h"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, trust_env=False, timeout=LIMIT_S) as client:
        document = (await client.get("/openapi.json")).json()
        tried = 0
        for method, path in operations(document):
            named = {} if path in MAKES and "tool" not in path and path != "/mcp" else {"x-session-id": session}
            body = BODIES.get(path, {})
            reply = await client.request(method, filled(path, session), headers=named, content=orjson.dumps(body))
            tried += 1
            what = f"{method} {path}: {reply.status_code} {reply.text[:200]}"
            assert "secret-name" not in reply.text, what
            if (method, path) in LISTS or path in PUBLIC or (method == "post" and path in MAKES and not named):
                assert session not in reply.text or reply.status_code == 404, what
                continue
            assert reply.status_code in (400, 403, 404, 405, 409, 422), what
        assert tried > 60
        for path in ("/", "/api/execute", f"/v1/sessions/{session}/ports/8000/", f"/v1/sessions/{session}/terminal"):
            assert (await client.get(path, headers={"x-session-id": session})).status_code == 404
        data_plane = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/api/files"
        assert (await client.get(data_plane, headers={"x-agentcube-session-id": session})).status_code == 404
        after = (await client.get("/v1/sessions", params={"after": session})).json()
        assert after["code"] == "BAD_REQUEST"
    assert sandbox.requests == []
    assert await gateway.gateway.store.get(session) == before


async def test_no_search_finds_a_session_of_another_tenant_or_person(open_gateway: OpenScripted) -> None:
    """Whatever is searched for; their own tenant's person and the operator find it."""
    gateway, _ = await open_gateway(auth=True)
    ann = Identity(Role.MEMBER, "acme", user="ann")
    with acting_as(ann):
        session = await gateway.session()

    async def found(caller: Identity, text: str) -> list[str]:
        with acting_as(caller):
            page, _ = await search_sessions(
                gateway.gateway.store, read_query(text), lambda each: True, ended=True, after=None, limit=10
            )
        return [each.id for each in page]

    for text in (session, "active", "my-interpreter"):
        assert await found(replace(ann, user="bob"), text) == []
        assert await found(replace(ann, tenant="other"), text) == []
        assert await found(ann, text) == await found(Identity(Role.OPERATOR), text) == [session]


async def test_no_websocket_reaches_another_tenants_session(open_gateway: OpenScripted) -> None:
    """Terminals, ports by path and by host, and any path with a session header: 404 before a sandbox hears of it."""
    gateway, sandbox = await open_gateway(auth=True, domain="boxes.example")
    with acting_as(Identity(Role.MEMBER, "acme")):
        session = await gateway.session()
    authorization = {"authorization": f"Bearer {await key_of(gateway, 'other')}"}
    address, by_host = urlsplit(gateway.url), f"8000-{session}.boxes.example"
    data_plane = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/ws"
    for host, path, headers in (
        (address.netloc, "/ws", {"x-session-id": session}),
        (address.netloc, "/api/terminal", {"x-session-id": session}),
        (address.netloc, data_plane, {"x-agentcube-session-id": session}),
        (address.netloc, f"/v1/sessions/{session}/terminal", {}),
        (address.netloc, f"/v1/sessions/{session}/ports/8000/ws", {}),
        (by_host, "/ws", {}),
    ):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(
                f"ws://{host}{path}",
                host=address.hostname,
                port=address.port,
                additional_headers={**authorization, **headers},
                proxy=None,
            ).__aenter__()
        assert refused.value.response.status_code == 404, path
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=LIMIT_S) as client:
        assert (await client.get("/", headers={**authorization, "host": by_host})).status_code == 404
    assert sandbox.requests == []


async def test_no_call_over_mcp_reaches_another_tenants_session(open_gateway: OpenScripted) -> None:
    """By either header, for calls of tools and for the session's end."""
    gateway, sandbox = await open_gateway(auth=True)
    with acting_as(Identity(Role.MEMBER, "acme")):
        session = await gateway.session()
    before = await gateway.gateway.store.get(session)
    headers = {
        "authorization": f"Bearer {await key_of(gateway, 'other')}", "host": "h", "mcp-session-id": session,
        "accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18",
    }  # fmt: skip
    params = {"name": "run_python", "arguments": {"code": "1"}}
    body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, trust_env=False, timeout=LIMIT_S) as client:
        assert (await client.post("/mcp", content=body)).status_code == 404
        assert (await client.post("/mcp", content=body, headers={"x-session-id": session})).status_code == 404
        assert (await client.delete("/mcp")).status_code == 404
    assert sandbox.requests == []
    assert await gateway.gateway.store.get(session) == before


async def test_unused_id_of_an_mcp_client_is_worth_nothing_to_another_tenant(open_gateway: OpenScripted) -> None:
    """Nor with a character changed, in capitals, or after 8 hours; no record is written meanwhile."""
    gateway, _ = await open_gateway(auth=True)
    clock = gateway.gateway.clock
    ours, theirs = [{
        "authorization": f"Bearer {await key_of(gateway, tenant)}", "host": "h",
        "accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18",
    } for tenant in ("acme", "other")]  # fmt: skip
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "n", "version": "1"}}
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=LIMIT_S) as client:

        async def status(method: str, headers: dict[str, str], named: str | None, **params: Any) -> int:
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            session = {} if named is None else {"mcp-session-id": named}
            reply = await client.post("/mcp", json=body, headers={**headers, **session})
            given.append(reply.headers.get("mcp-session-id", ""))
            return reply.status_code

        given: list[str] = []
        assert await status("initialize", ours, None, **hello) == 200
        unused = given[0]
        call = {"name": "run_python", "arguments": {"code": "1"}}
        last = "a" if unused[-1] != "a" else "b"
        for headers, named in (
            (theirs, unused),
            (ours, unused[:-1] + last),
            (ours, "mcp-" + unused[4:].upper()),
            (ours, "mcp-"),
        ):
            assert await status("tools/list", headers, named) == 404
            assert await status("tools/call", headers, named, **call) == 404
        assert (await client.delete("/mcp", headers={**theirs, "mcp-session-id": unused})).status_code == 404
        assert await status("tools/list", ours, unused) == 200
        assert await gateway.gateway.store.get(SessionId(unused)) is None
        later = clock.now() + 8 * 3600
        with mock.patch.object(clock, "now", return_value=later):
            assert await status("tools/call", ours, unused, **call) == 404


async def test_pages_for_operators_show_no_contents_and_no_names_of_sessions(open_gateway: OpenScripted) -> None:
    """Metrics have no session in any label, pools none of its metadata; members and viewers see neither page."""
    gateway, _ = await open_gateway(auth=True)
    with acting_as(Identity(Role.MEMBER, "acme")):
        session = await gateway.session(metadata={"name": "secret-name"})
    await gateway.gateway.usage.flush()
    async with httpx.AsyncClient(
        base_url=gateway.url, headers={"host": "h"}, trust_env=False, timeout=LIMIT_S
    ) as client:
        for path in ("/metrics", "/v1/autoscaler", "/v1/autoscaler/history"):
            for role, status in ((Role.MEMBER, 403), (Role.VIEWER, 403), (Role.OPERATOR, 200)):
                key = await key_of(gateway, "other", role)
                reply = await client.get(path, headers={"authorization": f"Bearer {key}"})
                assert reply.status_code == status, f"{path} {role}"
                assert "secret-name" not in reply.text
                assert path != "/metrics" or session not in reply.text


@pytest.mark.parametrize("role", KEY_ROLES)
async def test_role_is_let_in_where_its_permissions_say(open_gateway: OpenScripted, role: Role) -> None:
    """403 exactly where the table has no permission for the role; 401 without a key, unless the operation is public."""
    gateway, _ = await open_gateway(auth=True, unauthenticated_rate=0)
    key = await key_of(gateway, "acme", role)
    async with httpx.AsyncClient(
        base_url=gateway.url, headers={"host": "h"}, trust_env=False, timeout=LIMIT_S
    ) as client:
        for name, operation in CONTROL.items():
            method = operation.method
            path = filled(operation.path, SessionId("no-such-session"))
            content = orjson.dumps(BODIES.get(path, {}))
            reply = await client.request(method, path, headers={"authorization": f"Bearer {key}"}, content=content)
            nobody = await client.request(method, path, content=content)
            permission = PERMISSIONS[name]
            if permission is Permission.PUBLIC:
                assert nobody.status_code == (404 if "oauth" in path else 200)  # this gateway has no issuer
                continue
            assert nobody.status_code == 401, name
            expected = permission in ROLES[role]
            assert (reply.status_code != 403) == expected, f"{name}: {reply.status_code} {reply.text}"
