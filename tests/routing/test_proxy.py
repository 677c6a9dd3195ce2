"""The data path over real sockets: what goes up, what comes back, and what happens when a side breaks or is silent."""

from __future__ import annotations

import asyncio
import socket

import psutil
import pytest

from tests.support.scripted import Call, OpenScripted, Served, get, reaches
from tests.support.waiting import eventually

ON_UVLOOP = True
MB = 1 << 20


def slots_free(gateway: Served) -> bool:
    """Nothing is in flight on any route."""
    return all(route.in_flight == 0 for route in gateway.gateway.activator.routes.values())


# What goes up


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
async def test_401_of_picod_is_never_the_clients(open_gateway: OpenScripted, body: bytes) -> None:
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


# What comes back


async def test_answers_carry_session_start_kind_and_timing(open_gateway: OpenScripted) -> None:
    """Both spellings of the session header, warm for the first and live for the next, and the stages that took time."""
    gateway, _ = await open_gateway(lambda call: call.reply(fields="x-session-id: forged\nserver-timing: own;dur=1\n"))
    first = await gateway.ask("GET / HTTP/1.1\nhost: h\nx-wakegate-runtime: default/my-interpreter")
    session = first.get("x-session-id")
    assert session
    assert first.get("x-agentcube-session-id") == session
    assert first.get("x-wakegate-start") == "warm"
    ours = first.all("server-timing")
    assert "own;dur=1" in ours
    assert {part.split(";")[0].strip() for value in ours for part in value.split(",")} >= {
        "queue",
        "claim",
        "connect",
        "upstream",
    }
    second = await gateway.ask(get(session))
    assert (second.get("x-session-id"), second.get("x-wakegate-start")) == (session, "live")
    assert any("upstream;dur=" in value for value in second.all("server-timing"))


async def test_cold_start_is_reported(open_gateway: OpenScripted) -> None:
    """With an empty pool the first answer says cold."""
    gateway, _ = await open_gateway()
    for runtime in gateway.gateway.catalog.all():
        await gateway.provider.resize(runtime.key, 0)
    answer = await gateway.ask("GET / HTTP/1.1\nhost: h\nx-wakegate-runtime: my-interpreter")
    assert answer.get("x-wakegate-start") == "cold"


async def test_head_is_answered_without_a_body_and_the_connection_goes_on(open_gateway: OpenScripted) -> None:
    """Content-Length tells what GET would send; the next request on both connections is not confused by it."""

    async def script(call: Call) -> None:
        if call.request.method == "HEAD":
            await call.send("HTTP/1.1 200 OK\ncontent-length: 1000\n\n")
        else:
            await call.reply(b"after")

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    head = await client.ask(get(session, method="HEAD"))
    assert (head.status, head.get("content-length"), head.body) == (200, "1000", b"")
    assert (await client.ask(get(session))).body == b"after"
    assert sandbox.dials == 1


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_without_a_body_pass(open_gateway: OpenScripted, status: str) -> None:
    """204 and 304 end with their head on both sides, whatever length a 304 tells of."""

    async def script(call: Call) -> None:
        if call.request.path == "/empty":
            length = "content-length: 77\n" if status.startswith("304") else ""
            await call.send(f"HTTP/1.1 {status}\netag: x\n{length}\n")
        else:
            await call.reply(b"after")

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    empty = await client.ask(get(session, "/empty"))
    assert (empty.start.partition(" ")[2], empty.get("etag"), empty.get("transfer-encoding")) == (status, "x", None)
    assert (await client.ask(get(session))).body == b"after"
    assert sandbox.dials == 1


@pytest.mark.parametrize("framing", ["content-length: 5", "transfer-encoding: chunked"])
async def test_204_with_a_body_is_passed_on_without_its_framing(open_gateway: OpenScripted, framing: str) -> None:
    """RFC 9110 8.6: a client would wait for a body, or take what follows for one; the connection is not used again."""

    async def script(call: Call) -> None:
        if call.request.path == "/empty":
            await call.send(f"HTTP/1.1 204 No Content\n{framing}\nx: y\n\nhello")
        else:
            await call.reply(b"after")

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    empty = await client.ask(get(session, "/empty"))
    assert (empty.status, empty.get("x")) == (204, "y")
    assert (empty.get("content-length"), empty.get("transfer-encoding")) == (None, None)
    assert (await client.ask(get(session))).body == b"after"
    assert sandbox.dials == 2


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\ntransfer-encoding: gzip, chunked\n\n0\n\n",
        "HTTP/1.1 200 OK\ntransfer-encoding: identity\n\nabc",
        "HTTP/1.1 200 OK\ncontent-length: 1\ntransfer-encoding: chunked\n\n0\n\n",
        "HTTP/1.1 200 OK\ncontent-length: 1\ncontent-length: 2\n\nab",
        "HTTP/1.1 200 OK\ncontent-length: -1\n\n",
        "HTTP/1.1 600 Odd\ncontent-length: 0\n\n",
        "HTTP/1.1 200 OK\n" + "x: y\n" * 257 + "content-length: 0\n\n",
        "HTTP/1.1 200 OK\nx: " + "y" * 200_000 + "\ncontent-length: 0\n\n",
        "HTTP/1.1 101 Switching Protocols\nconnection: upgrade\nupgrade: x\n\n",
        "SSH-2.0-OpenSSH_9.2\n",
    ],
    ids=[
        "gzip",
        "identity",
        "both",
        "two-lengths",
        "negative",
        "status",
        "many-fields",
        "long-field",
        "101",
        "no-http",
    ],
)
async def test_answer_that_breaks_the_rules_is_a_502(open_gateway: OpenScripted, answer: str) -> None:
    """What a sandbox answers is checked before a byte of it goes on."""
    gateway, _ = await open_gateway(lambda call: call.send(answer))
    session = await gateway.session()
    told = await gateway.ask(get(session))
    assert (told.status, told.json["code"]) == (502, "SANDBOX_LOST")


async def test_trailer_of_an_answer_that_never_ends_is_cut(open_gateway: OpenScripted) -> None:
    """It would be held in memory until it ends."""

    async def script(call: Call) -> None:
        await call.send("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n3\nabc\n0\nx: ")
        await call.send("a" * 300_000)

    gateway, sandbox = await open_gateway(script)
    client = await gateway.connect()
    await client.send(get(await gateway.session()) + "\n\n")
    assert b"0\r\n\r\n" not in await client.closed()
    await eventually(lambda: sandbox.left == sandbox.dials, "the sandbox's side is cut")


async def test_interim_answers_are_passed_over(open_gateway: OpenScripted) -> None:
    """100, 102 and 103 of the sandbox, each with fields of its own, do not stand for the answer nor add to it."""

    async def script(call: Call) -> None:
        await call.send("HTTP/1.1 100 Continue\n\nHTTP/1.1 102 Processing\n\n")
        await call.send("HTTP/1.1 103 Early Hints\nlink: </x>; rel=preload\n\n")
        await call.reply(b"final", "201 Created", "x-final: 1\n")

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    for _ in range(2):
        answer = await client.ask(get(session))
        assert (answer.status, answer.body, answer.get("x-final"), answer.get("link")) == (201, b"final", "1", None)
    assert sandbox.dials == 1


async def test_chunked_answer_passes_and_its_trailers_are_no_header(open_gateway: OpenScripted) -> None:
    """Chunk extensions and trailer fields end here; a trailer that comes with the head is not merged into it."""

    async def script(call: Call) -> None:
        await call.send(
            "HTTP/1.1 200 OK\ntransfer-encoding: chunked\nx-head: 1\n\n"
            "5;ext=1\nhello\n6\n world\n0\nx-trailer: 1\nset-cookie: a=1\n\n"
        )

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    for _ in range(2):
        answer = await client.ask(get(session))
        assert answer.body == b"hello world"
        assert (answer.get("x-head"), answer.get("x-trailer"), answer.get("set-cookie")) == ("1", None, None)
    assert sandbox.dials == 1


async def test_answer_without_length_lasts_until_the_sandbox_closes(open_gateway: OpenScripted) -> None:
    """RFC 9112 6.3: it is whole when the connection ends, and the client gets it framed."""

    async def script(call: Call) -> None:
        await call.send("HTTP/1.1 200 OK\nconnection: close\n\nhello ")
        await call.send("world")
        await call.close()

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    for _ in range(2):
        answer = await client.ask(get(session))
        assert (answer.body, answer.get("transfer-encoding")) == (b"hello world", "chunked")
    assert sandbox.dials == 2


async def test_answer_of_http_1_0_without_length_lasts_until_the_sandbox_closes(open_gateway: OpenScripted) -> None:
    """An old server needs no Connection field to say so."""

    async def script(call: Call) -> None:
        await call.send("HTTP/1.0 200 OK\n\nold")
        await call.close()

    gateway, _ = await open_gateway(script)
    assert (await gateway.ask(get(await gateway.session()))).body == b"old"


async def test_http_1_0_client_gets_an_unframed_body(open_gateway: OpenScripted) -> None:
    """Chunked coding is not sent to a client that cannot know it; the connection's end is the body's."""

    async def script(call: Call) -> None:
        await call.send("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n5\nhello\n0\n\n")

    gateway, _ = await open_gateway(script)
    client = await gateway.connect()
    await client.send(f"GET / HTTP/1.0\nx-session-id: {await gateway.session()}\n\n")
    head = await client.head()
    assert (head.status, head.get("transfer-encoding")) == (200, None)
    assert await client.closed() == b"hello"


@pytest.mark.parametrize("framing", ["transfer-encoding: chunked", "connection: close"])
async def test_events_are_flushed_at_once(open_gateway: OpenScripted, framing: str) -> None:
    """The client reads the head before any event, and each event before the sandbox makes the next one."""
    go = asyncio.Semaphore(0)
    chunked = "chunked" in framing

    async def script(call: Call) -> None:
        await call.send(f"HTTP/1.1 200 OK\ncontent-type: text/event-stream\n{framing}\n\n")
        for number in range(3):
            await go.acquire()
            event = f"data: {number}\n\n".encode()
            await call.send(b"%x\r\n%b\r\n" % (len(event), event) if chunked else event)
        await call.close()

    gateway, _ = await open_gateway(script)
    client = await gateway.connect()
    await client.send(get(await gateway.session()) + "\n")
    assert (await client.head()).get("content-type") == "text/event-stream"
    for number in range(3):
        go.release()
        assert await client.chunk() == f"data: {number}\n\n".encode()


# Connections


async def test_connections_to_the_sandbox_are_reused(open_gateway: OpenScripted) -> None:
    """Twenty requests, also on new client connections, take one dial; two at a time take two."""
    both = asyncio.Barrier(2)

    async def script(call: Call) -> None:
        if call.request.path == "/both":
            await both.wait()
        await call.reply()

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    for _ in range(10):
        await gateway.ask(get(session, "/", "content-length: 2", "POST"), b"ab")
        await gateway.ask(get(session))
    assert sandbox.dials == 1
    await asyncio.gather(gateway.ask(get(session, "/both")), gateway.ask(get(session, "/both")))
    assert sandbox.dials == 2


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_connection_closed_between_requests_is_replaced(open_gateway: OpenScripted, how: str) -> None:
    """A sandbox that closes an idle connection costs the next request a dial, not an error."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    await gateway.ask(get(session))
    pool = gateway.gateway.activator.routes[session].pool
    sandbox.calls[0].abort() if how == "abort" else await sandbox.calls[0].close()
    await eventually(lambda: not pool.idle, "the gateway saw the end")
    answer = await gateway.ask(get(session))
    assert (answer.status, sandbox.dials, pool.open) == (200, 2, 1)


async def test_connection_that_says_close_is_not_used_again(open_gateway: OpenScripted) -> None:
    """Connection: close of the sandbox ends that connection and not the client's."""
    gateway, sandbox = await open_gateway(lambda call: call.reply(fields="connection: close\n"))
    session = await gateway.session()
    client = await gateway.connect()
    for _ in range(2):
        assert (await client.ask(get(session))).get("connection") is None
    assert sandbox.dials == 2


async def test_bytes_after_an_answer_reach_nobody(open_gateway: OpenScripted) -> None:
    """A sandbox that answers twice to one request gives neither this client nor the next a forged answer."""

    async def script(call: Call) -> None:
        await call.send(
            "HTTP/1.1 200 OK\ncontent-length: 4\n\ntrueHTTP/1.1 418 Forged\ncontent-length: 6\nx-forged: 1\n\nforged"
        )

    gateway, _ = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    for _ in range(3):
        answer = await client.ask(get(session))
        assert (answer.status, answer.body, answer.get("x-forged")) == (200, b"true", None)


async def test_late_bytes_on_an_idle_connection_end_it(open_gateway: OpenScripted) -> None:
    """What nobody asked for is not read as the answer to the next request."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    await gateway.ask(get(session))
    pool = gateway.gateway.activator.routes[session].pool
    await sandbox.calls[0].send("HTTP/1.1 418 Forged\ncontent-length: 6\n\nforged")
    await eventually(lambda: not pool.idle, "the connection is given up")
    assert (await gateway.ask(get(session))).body == b"ok"
    assert sandbox.dials == 2


async def test_pipelined_requests_are_answered_in_order(open_gateway: OpenScripted) -> None:
    """Also when an earlier one takes longer, and when one of them is the gateway's own to answer."""
    gate = asyncio.Event()

    async def script(call: Call) -> None:
        if call.request.path == "/0":
            await gate.wait()
        await call.reply(call.request.path.encode())

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    await client.send("".join(get(session, f"/{n}") + "\n" for n in range(4)) + "GET /healthz HTTP/1.1\nhost: h\n\n")
    await eventually(lambda: sandbox.requests, "the first is at the sandbox")
    gate.set()
    assert [(await client.answer()).body for _ in range(4)] == [b"/0", b"/1", b"/2", b"/3"]
    assert (await client.answer()).json == {"status": "alive"}


# Back-pressure


async def slow_reader(gateway: Served, session: str, path: str = "/") -> socket.socket:
    """A client whose socket takes very little before it is read from."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    await loop.sock_connect(sock, (host, int(port)))
    await loop.sock_sendall(sock, get(session, path, "\n").replace("\n", "\r\n").encode() + b"\r\n")
    return sock


async def settled(value: list[int]) -> int:
    """Wait until a counter stands still for a while."""
    last = -1
    while last != value[0]:
        last = value[0]
        await asyncio.sleep(0.2)
    return last


async def test_slow_reader_holds_the_sandbox_back_and_not_in_memory(open_gateway: OpenScripted) -> None:
    """Of 100 MB only what buffers hold leaves the sandbox while the client does not read; then all of it arrives."""
    size, sent = 100 * MB, [0]

    async def script(call: Call) -> None:
        await call.send(f"HTTP/1.1 200 OK\ncontent-length: {size}\n\n")
        block = bytes(MB)
        while sent[0] < size:
            call.writer.write(block)
            await call.writer.drain()
            sent[0] += len(block)

    gateway, _ = await open_gateway(script)
    before = psutil.Process().memory_info().rss
    client = await slow_reader(gateway, await gateway.session())
    await eventually(lambda: sent[0] > 0, "the sandbox begins to send")
    assert await settled(sent) < 24 * MB  # kernel buffers both ways and our 256 kB
    assert psutil.Process().memory_info().rss - before < 24 * MB
    loop, got = asyncio.get_running_loop(), 0
    while got < size:
        got += len(await loop.sock_recv(client, 4 * MB))
    assert psutil.Process().memory_info().rss - before < 40 * MB
    client.close()


async def test_slow_sandbox_holds_the_client_back_and_not_in_memory(open_gateway: OpenScripted) -> None:
    """Of a 100 MB upload only what buffers hold leaves the client while the sandbox does not read; then all arrives."""
    size, sent, go = 100 * MB, [0], asyncio.Event()
    received = [0]

    async def script(call: Call) -> None:
        await go.wait()
        while received[0] < size:
            received[0] += len(await call.reader.read(MB))
        await call.reply()

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    before = psutil.Process().memory_info().rss
    client = await gateway.connect()
    await client.send(get(session, "/", f"content-length: {size}\n\n", "PUT"))

    async def pour() -> None:
        block = bytes(MB)
        while sent[0] < size:
            client.writer.write(block)
            await client.writer.drain()
            sent[0] += len(block)

    pouring = asyncio.create_task(pour())
    await eventually(lambda: sent[0] > 0, "the client begins to send")
    assert await settled(sent) < 32 * MB  # an upload of known length has a megabyte of ours, and the kernel's buffers
    assert psutil.Process().memory_info().rss - before < 24 * MB
    go.set()
    await pouring
    assert (await client.answer()).status == 200
    assert received[0] == size
    assert psutil.Process().memory_info().rss - before < 40 * MB
    assert sandbox.dials == 1


def numbered(size: int) -> bytes:
    """Bytes that show when a piece is missing, doubled or out of place."""
    return b"".join(b"%07d\n" % line for line in range(size // 8))


async def test_large_body_arrives_whole_and_the_next_request_is_read_from_its_end(open_gateway: OpenScripted) -> None:
    """Two large bodies and a small request, sent in one go on one connection, are three requests at the sandbox."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    client = await gateway.connect()
    body = numbered(3 * MB)
    for path in ("/one", "/two"):
        client.writer.write(
            get(session, path, f"content-length: {len(body)}\n\n", "PUT").replace("\n", "\r\n").encode()
        )
        client.writer.write(body)
    client.writer.write(get(session, "/three").replace("\n", "\r\n").encode() + b"\r\n")
    assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]
    assert [request.path for request in sandbox.requests] == ["/one", "/two", "/three"]
    assert [request.body == body for request in sandbox.requests] == [True, True, False]
    assert sandbox.dials == 1
    assert slots_free(gateway)


async def test_large_body_that_is_refused_may_still_be_sent(open_gateway: OpenScripted) -> None:
    """The refusal comes at once; a client that sends all before it reads is served on the same connection after it."""

    async def script(call: Call) -> None:
        if call.request.path == "/refused":
            await call.reply(b"too large", "413 Content Too Large")
        else:
            await call.reply()

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    await client.send(get(session, "/refused", f"content-length: {20 * MB}\n\n", "POST"))
    await client.send(bytes(MB))
    assert (await client.answer()).status == 413
    for _ in range(19):
        await client.send(bytes(MB))
    assert (await client.ask(get(session))).status == 200
    assert sandbox.dials == 2


@pytest.mark.parametrize("who", ["client", "sandbox"])
async def test_side_that_leaves_in_a_large_body_ends_the_exchange(open_gateway: OpenScripted, who: str) -> None:
    """A client that leaves: its sandbox's connection is closed. A sandbox that does: the client is told 502."""
    begun = asyncio.Event()

    async def script(call: Call) -> None:
        await call.reader.readexactly(2 * MB)
        begun.set()
        if who == "client":
            await call.closed()
            raise ConnectionResetError
        call.abort()

    gateway, sandbox = await open_gateway(script)
    client = await gateway.connect()
    await client.send(get(await gateway.session(), "/", f"content-length: {50 * MB}\n\n", "PUT"))
    await client.send(bytes(3 * MB))
    await begun.wait()
    if who == "client":
        client.abort()
        await eventually(lambda: sandbox.left == 1, "the gateway closed it")
    else:
        assert (await client.answer()).status == 502
    await eventually(lambda: slots_free(gateway), "slots are given back")


# When a side leaves


async def test_client_that_leaves_ends_what_the_sandbox_does(open_gateway: OpenScripted) -> None:
    """Before an answer, in the middle of one, and of an upload: the connection to the sandbox is closed."""

    async def script(call: Call) -> None:
        if call.request.path == "/begun":
            await call.send("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n1\nx\n")
        await call.closed()
        raise ConnectionResetError

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    requests = [
        get(session, "/silent") + "\n",
        get(session, "/begun") + "\n",
        get(session, "/up", "content-length: 9\n\nabc", "POST"),
    ]
    for number, request in enumerate(requests):
        client = await gateway.connect()
        await client.send(request)
        await reaches(lambda: len(sandbox.requests), number + 1, "the request is at the sandbox")
        client.abort()
        await reaches(lambda: sandbox.left, number + 1, "the gateway closed it")
    await eventually(lambda: slots_free(gateway), "slots are given back")


async def test_pipelining_client_that_leaves_ends_the_running_request(open_gateway: OpenScripted) -> None:
    """The request that runs hears of it, not only the last one that was read."""

    async def script(call: Call) -> None:
        await call.closed()
        raise ConnectionResetError

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    await client.send((get(session) + "\n") * 3)
    await eventually(lambda: sandbox.requests, "the first is at the sandbox")
    client.abort()
    await eventually(lambda: sandbox.left == 1, "the gateway closed it")
    await eventually(lambda: slots_free(gateway), "slots are given back")
    assert len(sandbox.requests) == 1


async def test_answer_may_come_before_the_request_is_whole(open_gateway: OpenScripted) -> None:
    """A refusal in the middle of an upload reaches the client at once; that connection is not used again."""

    async def script(call: Call) -> None:
        await call.reply(b"too large", "413 Content Too Large")

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    await client.send(get(session, "/", "content-length: 1000000\n\n", "POST"))
    await client.send(bytes(1000))
    answer = await client.answer()
    assert (answer.status, answer.body) == (413, b"too large")
    await gateway.ask(get(session))
    assert sandbox.dials == 2
    await eventually(lambda: slots_free(gateway), "slots are given back")


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        b"HTTP/1.1 999 Strange\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"a" * 700_000,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 150_000,
        b"",
    ],
    ids=["ssh", "status", "lengths", "both", "101", "colon", "nul", "999", "long-field", "many-fields", "nothing"],
)
async def test_garbage_of_the_sandbox_is_a_502(open_gateway: OpenScripted, garbage: bytes) -> None:
    """The client gets JSON, a code and both session headers; the connection is not used again."""

    async def script(call: Call) -> None:
        if call.request.path == "/well":
            await call.reply()
            return
        call.writer.write(garbage)
        await call.close()

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    answer = await gateway.ask(get(session))
    assert (answer.status, answer.json["code"]) == (502, "SANDBOX_LOST")
    assert (answer.get("x-session-id"), answer.get("x-agentcube-session-id")) == (session, session)
    assert len(answer.body) < 1000
    assert (await gateway.ask(get(session, "/well"))).status == 200
    assert sandbox.dials == (2 if garbage else 3)  # one that only closes is asked whether it is still there
    assert slots_free(gateway)


@pytest.mark.parametrize("framing", ["content-length: 100", "transfer-encoding: chunked"])
async def test_cut_answer_is_cut_for_the_client_too(open_gateway: OpenScripted, framing: str) -> None:
    """An answer whose sandbox died in the middle is never made to look whole."""
    begun = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(f"HTTP/1.1 200 OK\n{framing}\n\n5\nhello\n")
        await begun.wait()
        call.abort()

    gateway, _ = await open_gateway(script)
    client = await gateway.connect()
    await client.send(get(await gateway.session()) + "\n")
    assert (await client.head()).status == 200
    begun.set()
    assert b"0\r\n\r\n" not in await client.closed()
    await eventually(lambda: slots_free(gateway), "slots are given back")


# When a side falls silent


async def test_silent_uploader_is_told_408(open_gateway: OpenScripted) -> None:
    """A body that stops coming ends after the idle time of that direction, also once part of it was sent on."""

    async def script(call: Call) -> None:
        await call.closed()
        raise ConnectionResetError

    gateway, sandbox = await open_gateway(script, request_idle_timeout=0.3)
    session = await gateway.session()
    for length, body in ((10, ""), (10, "abc"), (2 * MB, "a" * MB)):
        client = await gateway.connect()
        await client.send(get(session, "/", f"content-length: {length}\n\n{body}", "POST"))
        answer = await client.answer()
        assert (answer.status, answer.json["code"], answer.get("x-session-id")) == (408, "REQUEST_TIMEOUT", session)
        await client.closed()
    await eventually(lambda: sandbox.left == sandbox.dials, "the sandbox's side is closed too")


async def test_silent_sandbox_is_a_504(open_gateway: OpenScripted) -> None:
    """No byte for the idle time of that direction: told before an answer began, cut after."""

    async def script(call: Call) -> None:
        if call.request.path == "/begun":
            await call.send("HTTP/1.1 200 OK\ncontent-length: 9\n\nabc")
        await call.closed()
        raise ConnectionResetError

    gateway, sandbox = await open_gateway(script, response_idle_timeout=0.3)
    session = await gateway.session()
    answer = await gateway.ask(get(session))
    assert (answer.status, answer.json["code"], answer.get("x-session-id")) == (504, "SANDBOX_TIMEOUT", session)
    client = await gateway.connect()
    await client.send(get(session, "/begun") + "\n")
    assert (await client.head()).status == 200
    assert await client.closed() == b"abc"
    await eventually(lambda: sandbox.left == 2, "the sandbox's side is closed too")


async def test_talking_sandbox_is_not_timed_out(open_gateway: OpenScripted) -> None:
    """The idle time counts silence, not length: a stream that lasts three times as long goes through."""

    async def script(call: Call) -> None:
        await call.send("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n")
        for _ in range(12):
            await asyncio.sleep(0.1)
            await call.send("1\nx\n")
        await call.send("0\n\n")

    gateway, _ = await open_gateway(script, response_idle_timeout=0.4)
    assert (await gateway.ask(get(await gateway.session()))).body == b"x" * 12


async def test_whole_exchange_is_bounded_when_asked_for(open_gateway: OpenScripted) -> None:
    """With a total time set, an endless stream is cut though it never falls silent."""

    async def script(call: Call) -> None:
        await call.send("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n")
        while True:
            await call.send("1\nx\n")
            await asyncio.sleep(0.02)

    gateway, _ = await open_gateway(script, request_timeout=0.5)
    client = await gateway.connect()
    await client.send(get(await gateway.session()) + "\n")
    assert (await client.head()).status == 200
    assert b"0\r\n\r\n" not in await client.closed()


async def test_client_that_takes_nothing_is_cut(open_gateway: OpenScripted) -> None:
    """A reader that stands still for its time loses the connection, and the sandbox's is closed."""

    async def script(call: Call) -> None:
        await call.send(f"HTTP/1.1 200 OK\ncontent-length: {100 * MB}\n\n")
        while True:
            call.writer.write(bytes(MB))
            await call.writer.drain()

    gateway, sandbox = await open_gateway(script, client_read_timeout=0.5)
    client = await slow_reader(gateway, await gateway.session())
    await eventually(lambda: sandbox.left == 1, "the sandbox's side is closed")
    await eventually(lambda: slots_free(gateway), "slots are given back")
    client.close()


# Errors of ours, and paths that are not proxied


async def test_errors_of_ours_carry_a_known_session(open_gateway: OpenScripted) -> None:
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
async def test_wrong_method_is_told_the_right_ones(open_gateway: OpenScripted, start: str, allowed: str) -> None:
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
