"""Requests on the data path over real sockets: what the sandbox receives."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.model import Kind, RuntimeKey
from gateway.runtimes.catalog import default_runtime
from tests.support.scripted import Call, OpenScripted, get, reaches
from tests.support.waiting import eventually

ON_UVLOOP = True


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT", "PURGE", "M-SEARCH"]
)
async def test_proxy_passes_every_method(open_gateway: OpenScripted, method: str) -> None:
    """Standard methods and those of WebDAV and caches reach the sandbox under their own name."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    answer = await gateway.ask(get(session, "/a/b?c=d", "content-length: 3", method), b"abc")
    assert (answer.status, answer.body) == (200, b"ok")
    assert sandbox.requests[0].start == f"{method} /a/b?c=d HTTP/1.1"
    assert sandbox.requests[0].body == b"abc"


async def test_proxy_sends_the_path_and_query_as_they_came(open_gateway: OpenScripted) -> None:
    """On both forms of address nothing is decoded, merged or resolved."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    odd = "a%2Fb//c/../d;e=1?x=%20&y=?z&x"
    await gateway.ask(get(session, "/" + odd))
    await gateway.ask(get(session, "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/" + odd))
    assert [request.path for request in sandbox.requests] == ["/" + odd] * 2


ODD_TARGETS = [b"/a?", b"/?", b"/\xc3\xa9?\xff=%20", b"/%C3%A9\xc3\xa9", b"/\xff\xfe/x", b"/a?b?", b'/|^`{}"<>\\']


@pytest.mark.parametrize("target", ODD_TARGETS)
@pytest.mark.parametrize("size", [1, 6, 10_000])
async def test_odd_targets_pass_unchanged(open_gateway: OpenScripted, target: bytes, size: int) -> None:
    """Bytes beyond ASCII, a "?" with nothing behind it: as they came, in however many pieces, also for a later request
    of a connection, and behind a body of such bytes that is not touched either."""
    gateway, sandbox = await open_gateway()
    session = (await gateway.session()).encode()
    client = await gateway.connect()
    body = b"\xff\xc3\xa9\n" * 3
    raw = b"POST %b HTTP/1.1\r\nhost: h\r\nuser-agent: \xe9\r\nx-session-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        target, session, len(body), body
    )  # fmt: skip
    for _ in range(2):
        for start in range(0, len(raw), size):
            await client.send(raw[start : start + size])
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
    for seen in sandbox.requests:
        assert seen.start.encode("latin-1") == b"POST %b HTTP/1.1" % target
        assert (seen.body, seen.get("user-agent")) == (body, "\xe9")
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize("body", [b'{"error":"Invalid token"}', b"x" * 100_000])
async def test_401_of_picod_does_not_reach_the_client(open_gateway: OpenScripted, body: bytes) -> None:
    """It speaks of the gateway's token: 503 with Retry-After, on both paths, and the next request has a new token."""
    tokens: list[str | None] = []

    async def script(call: Call) -> None:
        tokens.append(call.request.get("authorization"))
        await call.body()
        if len(tokens) in (1, 3):
            await call.reply(body, "401 Unauthorized", "www-authenticate: Bearer\n")
        else:
            await call.reply()

    gateway, _ = await open_gateway(script)
    session = await gateway.session()
    for status in (503, 200, 503, 200):
        answer = await gateway.ask(get(session, "/api/execute", "content-length: 2", "POST"), b"{}")
        assert answer.status == status
        assert answer.get("www-authenticate") is None
        if status == 503:
            assert (answer.json["code"], answer.get("retry-after")) == ("SANDBOX_REFUSED_TOKEN", "1")
    assert tokens[0] != tokens[1]


async def test_401_of_a_server_behind_a_port_passes(open_gateway: OpenScripted) -> None:
    """That one is the application's, with its challenge."""
    gateway, _ = await open_gateway(lambda call: call.reply(b"no", "401 Unauthorized", "www-authenticate: Basic\n"))
    session = await gateway.session()
    answer = await gateway.ask(f"GET /v1/sessions/{session}/ports/8000/ HTTP/1.1\nhost: h")
    assert (answer.status, answer.get("www-authenticate"), answer.body) == (401, "Basic", b"no")


@pytest.mark.parametrize("answered_by", ["port", "agent"])
async def test_401_of_picod_is_distinguished_from_that_of_a_port_or_an_agent(
    open_gateway: OpenScripted, answered_by: str
) -> None:
    """picod marks its own: the gateway answers 503, and sends a new token next time. No client sees the mark."""
    tokens: list[str | None] = []

    async def script(call: Call) -> None:
        tokens.append(call.request.get("authorization"))
        if len(tokens) == 1:
            await call.reply(b"{}", "401 Unauthorized", "X-Wakegate-Refused: token\n")
        else:
            await call.reply(b"app", "200 OK", "x-wakegate-refused: token\n")

    kind = Kind.AGENT_RUNTIME if answered_by == "agent" else Kind.CODE_INTERPRETER
    runtime = replace(default_runtime(1), key=RuntimeKey("default", "served", kind))
    gateway, _ = await open_gateway(script, runtimes=[runtime])
    session = (await gateway.gateway.lifecycle.create(runtime.key)).session.id
    head = f"GET /v1/sessions/{session}/ports/8000/ HTTP/1.1\nhost: h" if answered_by == "port" else get(session, "/x")
    answer = await gateway.ask(head)
    assert (answer.status, answer.json["code"]) == (503, "SANDBOX_REFUSED_TOKEN")
    assert answer.get("retry-after") == "1"
    answer = await gateway.ask(head)
    assert (answer.status, answer.body, answer.get("x-wakegate-refused")) == (200, b"app", None)
    assert tokens[0] != tokens[1]


async def test_request_without_a_host_is_refused(open_gateway: OpenScripted) -> None:
    """HTTP/1.1 with none or two of them: 400. HTTP/1.0 has none."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    for hosts in ("", "host: h\nhost: h\n"):
        answer = await gateway.ask(f"GET / HTTP/1.1\n{hosts}x-session-id: {session}")
        assert (answer.status, answer.json["code"]) == (400, "BAD_REQUEST")
        assert "Host header" in answer.json["error"]
    assert (await gateway.ask(f"GET / HTTP/1.0\nx-session-id: {session}")).status == 200
    assert len(sandbox.requests) == 1


async def test_proxy_sends_its_own_credentials_and_forwarding_fields(open_gateway: OpenScripted) -> None:
    """The client's Authorization ends here, a token of ours goes on; who asked is said once, hop-by-hop never."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    await gateway.ask(
        get(session, "/", "authorization: Bearer mine\ncookie: a=1\nx-hop: 1\nconnection: x-hop\nte: trailers")
    )
    seen = sandbox.requests[0]
    scheme, _, token = (seen.get("authorization") or "").partition(" ")
    assert scheme == "Bearer"
    assert token.count(".") == 2
    assert (seen.get("cookie"), seen.get("x-hop"), seen.get("te"), seen.get("x-session-id")) == (
        None,
        None,
        None,
        None,
    )
    assert (seen.get("x-agentcube-session-id"), seen.get("x-forwarded-for")) == (session, "127.0.0.1")
    assert seen.get("forwarded") == 'for=127.0.0.1;host="h";proto=http'
    assert seen.get("host") == f"127.0.0.1:{sandbox.endpoint.port}"


async def test_origin_follows_host_where_it_named_it(open_gateway: OpenScripted) -> None:
    """On both paths: a page's own requests look like its own to the sandbox, a foreign page's do not."""
    gateway, sandbox = await open_gateway(allowed_origins="http://other")
    session = await gateway.session()
    for origin in ("https://h", "http://h:80", "http://localhost:8080", "http://other"):
        await gateway.ask(get(session, "/", f"origin: {origin}"))
    own = f"http://127.0.0.1:{sandbox.endpoint.port}"
    assert [seen.get("origin") for seen in sandbox.requests] == [own, own, "http://localhost:8080", "http://other"]


async def test_proxy_passes_a_chunked_body_as_it_comes(open_gateway: OpenScripted) -> None:
    """The sandbox sees the first chunk before the client has made the second, and the end when the client ends."""
    arrived: list[bytes] = []

    async def script(call: Call) -> None:
        assert call.request.get("transfer-encoding") == "chunked"
        while data := await call.chunk():
            arrived.append(data)
        await call.reply()

    gateway, _ = await open_gateway(script)
    client = await gateway.connect()
    await client.send(get(await gateway.session(), "/", "transfer-encoding: chunked\n\n", "POST"))
    for piece in (b"first", b"second"):
        await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await reaches(lambda: arrived[-1:], [piece], "the piece at the sandbox")
    await client.send(b"0\r\n\r\n")
    assert (await client.answer()).status == 200


async def test_held_request_keeps_its_body(open_gateway: OpenScripted) -> None:
    """A body that waits for longer than the watch for leaving clients begins is whole when its sandbox is there."""
    gateway, sandbox = await open_gateway()
    gateway.provider.hold = asyncio.Event()
    client = await gateway.connect()
    head = "POST / HTTP/1.1\nhost: h\nx-wakegate-runtime: my-interpreter\ncontent-length: 6\n\n"
    await client.send(head.replace("\n", "\r\n").encode() + b"abc")
    await eventually(lambda: gateway.gateway.activator.held, "the request is held")
    await asyncio.sleep(0.35)  # three turns of the ticker, so that it had its chance to lose something
    await client.send(b"def")
    gateway.provider.hold.set()
    assert (await client.answer()).status == 200
    assert sandbox.requests[0].body == b"abcdef"


async def test_expect_100_continue_is_answered_by_the_gateway(open_gateway: OpenScripted) -> None:
    """The client hears 100 when its body is wanted; the sandbox sees no Expect."""
    gateway, sandbox = await open_gateway()
    client = await gateway.connect()
    await client.send(get(await gateway.session(), "/", "expect: 100-continue\ncontent-length: 3\n\n", "POST"))
    assert (await client.head()).status == 100
    await client.send(b"abc")
    assert (await client.answer()).status == 200
    assert (sandbox.requests[0].get("expect"), sandbox.requests[0].body) == (None, b"abc")
