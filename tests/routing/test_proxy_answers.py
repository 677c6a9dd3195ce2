"""Answers on the data path over real sockets: what the client receives."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.scripted import Call, OpenScripted, get
from tests.support.waiting import eventually

ON_UVLOOP = True


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


async def test_interim_answers_are_skipped(open_gateway: OpenScripted) -> None:
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
