"""Errors of the gateway itself on the data path, and paths that are not proxied."""

from __future__ import annotations

import pytest

from tests.support.scripted import OpenScripted, get

ON_UVLOOP = True


async def test_errors_of_the_gateway_carry_a_known_session(open_gateway: OpenScripted) -> None:
    """Also when no sandbox could be had; an id that is not well-formed is not repeated."""
    gateway, _ = await open_gateway()
    answer = await gateway.ask(get("unknown-id"))
    assert (answer.status, answer.json) == (
        404, {"error": 'sessions.agentcube.volcano.sh "unknown-id" not found', "code": "SESSION_NOT_FOUND"}
    )  # fmt: skip
    answer = await gateway.ask(get("not*well*formed"))
    assert (answer.status, answer.json["code"], answer.get("x-session-id")) == (400, "BAD_REQUEST", None)


async def test_session_is_bound_to_its_runtime(open_gateway: OpenScripted) -> None:
    """Under another name, namespace or kind it is not found, whether its route is in memory or not."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    other = [
        "default/code-interpreters/no-such",
        "other/code-interpreters/my-interpreter",
        "default/agent-runtimes/my-interpreter",
    ]
    for _ in range(2):
        for place in other:
            namespace, kind, name = place.split("/")
            path = f"/v1/namespaces/{namespace}/{kind}/{name}/invocations/x"
            answer = await gateway.ask(get(session, path))
            assert (answer.status, answer.json["code"]) == (404, "SESSION_NOT_FOUND")
        assert sandbox.requests == []
        gateway.gateway.activator.routes.clear()
    await gateway.ask(get(session))
    for place in other:
        namespace, kind, name = place.split("/")
        assert (
            await gateway.ask(get(session, f"/v1/namespaces/{namespace}/{kind}/{name}/invocations/x"))
        ).status == 404
    assert len(sandbox.requests) == 1


async def test_unknown_runtime_is_404_with_the_name(open_gateway: OpenScripted) -> None:
    """A client that misspelled it reads which one was not found."""
    gateway, _ = await open_gateway()
    answer = await gateway.ask("GET /v1/namespaces/default/code-interpreters/nope/invocations/ HTTP/1.1\nhost: h")
    assert (answer.status, answer.json) == (
        404,
        {"error": 'codeinterpreters.agentcube.volcano.sh "default/nope" not found', "code": "RUNTIME_NOT_FOUND"},
    )


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 301), ("HEAD", 301), ("POST", 307), ("PUT", 307), ("DELETE", 307)]
)
async def test_invocations_without_a_slash_redirects(open_gateway: OpenScripted, method: str, status: int) -> None:
    """As AgentCube's router does; the query stays."""
    gateway, sandbox = await open_gateway()
    path = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations"
    answer = await gateway.ask(f"{method} {path}?a=b HTTP/1.1\nhost: h\ncontent-length: 0")
    assert (answer.status, answer.get("location")) == (status, path + "/?a=b")
    assert sandbox.requests == []


async def test_unknown_paths_of_agentcube_get_the_plain_404(open_gateway: OpenScripted) -> None:
    """Unknown path, known path with a wrong method, and a broken data-plane path: AgentCube's text, never a 405."""
    gateway, _ = await open_gateway()
    for start in ("GET /v1/namespaces/a/b/c/invocations/", "GET /v1/code-interpreter", "POST /health"):
        answer = await gateway.ask(f"{start} HTTP/1.1\nhost: h\ncontent-length: 0")
        assert (answer.status, answer.body) == (404, b"404 page not found")
        assert (answer.get("content-type") or "").startswith("text/plain")


@pytest.mark.parametrize(
    ("start", "allowed"),
    [
        ("PUT /v1/sessions", "GET, HEAD, POST"),
        ("POST /healthz", "GET, HEAD"),
        ("POST /v1/sessions/x", "DELETE, GET, HEAD, PATCH"),
        ("GET /v1/sessions/x/wake", "POST"),
        ("GET /mcp", "DELETE, POST"),
        ("DELETE /v1/tools", "GET, HEAD"),
    ],
)
async def test_wrong_method_gets_405_and_allow(open_gateway: OpenScripted, start: str, allowed: str) -> None:
    """405 with Allow, and the same in words, in the shape of that API."""
    gateway, _ = await open_gateway()
    answer = await gateway.ask(f"{start} HTTP/1.1\nhost: h\ncontent-length: 0")
    assert (answer.status, answer.get("allow")) == (405, allowed)
    assert allowed in str(answer.json["error"])


@pytest.mark.parametrize(
    ("path", "fields", "status", "hint"),
    [
        ("/api/execute", "", 400, "x-session-id"),
        ("/api/execute", "", 400, "x-wakegate-runtime"),
        ("/nope", "", 404, "x-session-id"),
        ("/v1/chat/completions", "", 404, "x-session-id"),
        ("/v1/sessions/a/b/c", "x-session-id: s1", 404, "/v1/sessions/ID/ports/PORT"),
        ("/v1/runtimes/nope", "x-wakegate-runtime: x", 404, "/v1/sessions/ID/ports/PORT"),
    ],
)
async def test_unknown_path_is_answered_with_a_hint(
    open_gateway: OpenScripted, path: str, fields: str, status: int, hint: str
) -> None:
    """In JSON: which header is missing, or how a sandbox's path of a reserved name is reached."""
    gateway, sandbox = await open_gateway()
    answer = await gateway.ask(f"GET {path} HTTP/1.1\nhost: h\n{fields}")
    assert answer.status == status
    assert hint in answer.json["error"]
    assert sandbox.requests == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "//x", "/v1/models?a=b", "/api/execute", "/v2"])
async def test_session_header_takes_every_path_that_is_not_the_gateways_to_the_sandbox(
    open_gateway: OpenScripted, path: str
) -> None:
    """With either spelling of the header."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    for name in ("x-session-id", "x-agentcube-session-id"):
        assert (await gateway.ask(f"POST {path} HTTP/1.1\nhost: h\n{name}: {session}\ncontent-length: 0")).status == 200
    assert [seen.path for seen in sandbox.requests] == [path, path]


async def test_two_session_headers_that_differ_are_refused(open_gateway: OpenScripted) -> None:
    """No sandbox is chosen for the client."""
    gateway, sandbox = await open_gateway()
    answer = await gateway.ask(get(await gateway.session(), "/", f"x-agentcube-session-id: {await gateway.session()}"))
    assert (answer.status, answer.json["code"]) == (400, "BAD_REQUEST")
    assert sandbox.requests == []


async def test_live_session_costs_no_signature_and_no_store_call(open_gateway: OpenScripted) -> None:
    """Counted over a hundred requests after the first."""
    gateway, _ = await open_gateway()
    session = await gateway.session()
    client = await gateway.connect()
    await client.ask(get(session))
    signed = gateway.gateway.tokens.signed
    await gateway.gateway.store.aclose()  # from here any store call would fail
    for _ in range(100):
        assert (await client.ask(get(session))).status == 200
    assert gateway.gateway.tokens.signed == signed
    await gateway.gateway.store.start()
