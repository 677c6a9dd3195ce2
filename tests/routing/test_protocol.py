"""What must never pass the gateway's own reading of HTTP: requests that two parties could read in two ways."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvicorn

from gateway.app.gateway import Gateway
from gateway.serving.server import make_server
from tests.support.scripted import SHARED, Call, OpenScripted, ScriptedSandbox, Served, scripted
from tests.support.waiting import eventually

ON_UVLOOP = True
EVIL = "GET /evil HTTP/1.1\nhost: h\n\n"

REFUSED = {
    "content-length-and-chunked": "POST / HTTP/1.1\nhost: h\n{s}content-length: 4\ntransfer-encoding: chunked\n\n0\n\n"
    + EVIL,
    "chunked-and-content-length": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding: chunked\ncontent-length: 4\n\n0\n\n"
    + EVIL,
    "two-lengths": "POST / HTTP/1.1\nhost: h\n{s}content-length: 1\ncontent-length: 2\n\nab" + EVIL,
    "two-equal-lengths": "POST / HTTP/1.1\nhost: h\n{s}content-length: 1\ncontent-length: 1\n\na" + EVIL,
    "length-list": "POST / HTTP/1.1\nhost: h\n{s}content-length: 1, 2\n\na" + EVIL,
    "signed-length": "POST / HTTP/1.1\nhost: h\n{s}content-length: +1\n\na" + EVIL,
    "negative-length": "POST / HTTP/1.1\nhost: h\n{s}content-length: -1\n\na" + EVIL,
    "hex-length": "POST / HTTP/1.1\nhost: h\n{s}content-length: 0x1\n\na" + EVIL,
    "huge-length": "POST / HTTP/1.1\nhost: h\n{s}content-length: 99999999999999999999\n\na" + EVIL,
    "xchunked": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding: xchunked\n\n0\n\n" + EVIL,
    "chunked-not-last": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding: chunked, gzip\n\n0\n\n" + EVIL,
    "gzip-chunked": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding: gzip, chunked\n\n0\n\n" + EVIL,
    "chunked-twice": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding: chunked, chunked\n\n0\n\n" + EVIL,
    "two-chunked-fields": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding: chunked\ntransfer-encoding: chunked\n\n0\n\n"
    + EVIL,
    "identity-field-too": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding: chunked\ntransfer-encoding: x\n\n0\n\n"
    + EVIL,
    "vertical-tab-chunked": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding: \x0bchunked\n\n0\n\n" + EVIL,
    "space-before-colon": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding : chunked\n\n0\n\n" + EVIL,
    "space-in-name": "POST / HTTP/1.1\nhost: h\n{s}content length: 4\n\n" + EVIL,
    "obs-fold": "POST / HTTP/1.1\nhost: h\n{s}x: a\n b\n\n" + EVIL,
    "folded-encoding": "POST / HTTP/1.1\nhost: h\n{s}transfer-encoding:\n chunked\n\n0\n\n" + EVIL,
    "nul-in-value": "GET / HTTP/1.1\nhost: h\n{s}x: a\0b\n\n" + EVIL,
    "no-colon": "GET / HTTP/1.1\nhost: h\n{s}nonsense\n\n" + EVIL,
    "empty-name": "GET / HTTP/1.1\nhost: h\n{s}: x\n\n" + EVIL,
    "two-hosts": "GET / HTTP/1.1\nhost: a\nhost: b\n{s}\n",
    "asterisk": "OPTIONS * HTTP/1.1\nhost: h\n{s}\n",
    "authority": "CONNECT inside:22 HTTP/1.1\nhost: h\n{s}\n",
    "no-slash": "GET evil HTTP/1.1\nhost: h\n{s}\n",
    "http-2-preface": "PRI * HTTP/2.0\n\nSM\n\n",
    "http-0.9": "GET /\n\n",
    "http-3.7": "GET / HTTP/3.7\nhost: h\n{s}\n",
    "lower-case-version": "GET / http/1.1\nhost: h\n{s}\n",
    "space-in-target": "GET /a b HTTP/1.1\nhost: h\n{s}\n",
    "tls": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "long-target": "GET /" + "a" * 70_000 + " HTTP/1.1\nhost: h\n{s}\n",
    "long-field": "GET / HTTP/1.1\nhost: h\n{s}x: " + "a" * 70_000 + "\n\n",
    "many-fields": "GET / HTTP/1.1\nhost: h\n{s}" + "x: y\n" * 300 + "\n",
    "endless-head": "GET / HTTP/1.1\nhost: h\n{s}" + "x: y\n" * 60_000,
}


@SHARED
@pytest.mark.parametrize("shape", REFUSED)
async def test_ambiguous_request_is_refused_and_never_forwarded(
    kept_gateway: tuple[Served, ScriptedSandbox], shape: str
) -> None:
    """A 4xx in JSON, the connection closed, and nothing of it or of what follows it at the sandbox."""
    gateway, sandbox = kept_gateway
    client = await gateway.connect()
    await client.send(REFUSED[shape].replace("{s}", f"x-session-id: {await gateway.session()}\n"))
    answer = await client.answer()
    assert 400 <= answer.status < 500
    assert answer.json.keys() == {"error", "code"}
    assert (answer.get("content-type") or "").startswith("application/json")
    assert await client.closed() == b""
    assert sandbox.requests == []


@SHARED
@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nhost: h\n{s}\n\n",
        b"GET / HTTP/1.1\r\nhost: h\n{s}\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\n{s}\r\n\n",
        b"GET / HTTP/1.1\r\nx: a\rb\r\n{s}\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: h\r\n{s}\r\ntransfer-encoding: chunked\r\n\n0\r\n\r\n",
    ],
    ids=["all-lf", "one-lf", "final-lf", "bare-cr", "lf-before-body"],
)
async def test_bare_line_ends_are_refused(kept_gateway: tuple[Served, ScriptedSandbox], raw: bytes) -> None:
    """Only CRLF ends a line; a lone LF or CR is how two parsers come to disagree."""
    gateway, sandbox = kept_gateway
    client = await gateway.connect()
    await client.send(raw.replace(b"{s}", b"x-session-id: " + (await gateway.session()).encode()))
    assert (await client.answer()).status == 400
    assert await client.closed() == b""
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "body",
    [b"zz\r\n", b"-1\r\nx", b"0x3\r\nabc\r\n",
     b"3\nabc\r\n0\r\n\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"fffffffffffffffff\r\n",
     b" 3\r\nabc\r\n"],
    ids=["letters", "negative", "hex-prefix", "bare-lf", "longer-than-said", "overflow", "space"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["together", "later"])
async def test_bad_chunks_end_the_request(open_gateway: OpenScripted, body: bytes, how: str) -> None:
    """Refused when it comes with the head; cut, at the sandbox too, when the request was under way already."""

    async def script(call: Call) -> None:
        while await call.chunk():
            pass
        await call.reply()

    gateway, sandbox = await open_gateway(script)
    client = await gateway.connect()
    head = f"POST / HTTP/1.1\nhost: h\nx-session-id: {await gateway.session()}\ntransfer-encoding: chunked\n\n"
    await client.send(head.replace("\n", "\r\n").encode() + (body if how == "together" else b"3\r\nabc\r\n"))
    if how == "later":
        await eventually(lambda: sandbox.requests, "the head is at the sandbox")
        await client.send(body)
    rest = await client.closed()
    assert b" 200 " not in rest
    await eventually(lambda: sandbox.left == sandbox.dials, "the sandbox's side is cut")


async def test_absolute_form_names_a_path_and_no_other_host(open_gateway: OpenScripted) -> None:
    """RFC 9112 3.2.2 wants it understood; the gateway is no forward proxy: the path goes to the session's sandbox."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    answer = await gateway.ask(f"GET http://127.0.0.1:1/a/b?c HTTP/1.1\nhost: h\nx-session-id: {session}")
    assert answer.status == 200
    assert sandbox.requests[0].start == "GET /a/b?c HTTP/1.1"


async def test_slow_head_gets_408(open_gateway: OpenScripted) -> None:
    """A client that drips its head is answered once the time is over, though its bytes never stop."""
    gateway, sandbox = await open_gateway(request_head_timeout=0.4)
    client = await gateway.connect()

    async def drip() -> None:
        await client.send("GET / HTTP/1.1\nx: ")
        while True:
            client.writer.write(b"a")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    answer = await client.answer()
    dripping.cancel()
    assert (answer.status, answer.json["code"]) == (408, "REQUEST_TIMEOUT")
    await client.closed()
    assert sandbox.requests == []


async def test_slow_head_of_a_later_request_gets_408(open_gateway: OpenScripted) -> None:
    """The bound holds for each request of a connection."""
    gateway, _ = await open_gateway(request_head_timeout=0.3)
    client = await gateway.connect()
    assert (await client.ask("GET /healthz HTTP/1.1\nhost: h")).status == 200
    await client.send("GET / HTTP/1.1\nx: a")
    assert (await client.answer()).status == 408
    assert await client.closed() == b""


async def test_idle_connection_is_closed_without_an_answer(open_gateway: OpenScripted) -> None:
    """Nothing was asked, so nothing is answered: before the first request, and between requests after keep-alive."""
    gateway, _ = await open_gateway(request_head_timeout=0.3, keep_alive_timeout=1.0)
    fresh = await gateway.connect()
    used = await gateway.connect()
    assert (await used.ask("GET /healthz HTTP/1.1\nhost: h")).status == 200
    assert await fresh.closed() == b""
    assert await used.closed() == b""


async def test_head_in_small_pieces_is_read(open_gateway: OpenScripted) -> None:
    """One byte at a time, with a body after it."""
    gateway, sandbox = await open_gateway()
    client = await gateway.connect()
    head = f"POST /x HTTP/1.1\nhost: h\nx-session-id: {await gateway.session()}\ncontent-length: 3\n\nabc"
    for byte in head.replace("\n", "\r\n").encode():
        await client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.answer()).status == 200
    assert sandbox.requests[0].body == b"abc"


async def test_large_head_of_a_later_request_in_pieces_gets_431(open_gateway: OpenScripted) -> None:
    """The first piece counts, also where an earlier request came on the connection."""
    gateway, _ = await open_gateway()
    client = await gateway.connect()
    assert (await client.ask("GET /healthz HTTP/1.1\nhost: h")).status == 200
    await client.send(b"GET /healthz HTTP/1.1\r\nhost: h\r\nx-a: " + b"a" * 60_000)
    for _ in range(20):
        await asyncio.sleep(0)
    await client.send(b"b" * 8_000 + b"\r\n\r\n")
    assert (await client.answer()).status == 431


async def test_upgrade_to_anything_but_websocket_is_ignored(open_gateway: OpenScripted) -> None:
    """RFC 9110 7.8: the request is answered as if it had not asked, and the sandbox is not asked either."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    client = await gateway.connect()
    answer = await client.ask(
        f"GET / HTTP/1.1\nhost: h\nx-session-id: {session}\n"
        "connection: upgrade, http2-settings\nupgrade: h2c\nhttp2-settings: AA"
    )
    assert answer.status == 200
    seen = sandbox.requests[0]
    assert (seen.get("upgrade"), seen.get("connection"), seen.get("http2-settings")) == (None, None, None)


async def test_server_that_ends_answers_what_is_already_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to end with a request in a kept connection's buffer, and another that comes in two pieces: both are
    answered, as their connections' last; a silent connection is closed."""
    servers: list[uvicorn.Server] = []

    def noted(gateway: Gateway) -> uvicorn.Server:
        servers.append(make_server(gateway))
        return servers[0]

    monkeypatch.setattr("gateway.serving.server.make_server", noted)
    async with scripted(tmp_path) as (gateway, _):
        silent, whole, halved = [await gateway.connect() for _ in range(3)]
        for client in (silent, whole, halved):
            assert (await client.ask("GET /healthz HTTP/1.1\nhost: h\n\n")).start == "HTTP/1.1 200 OK"
        whole.writer.write(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")  # the kernel has it, and no turn was taken yet
        halved.writer.write(b"GET /healthz HTTP/1.1\r\nho")
        for connection in list(servers[0].server_state.connections):
            connection.shutdown()
        assert await silent.closed() == b""
        await halved.send("st: h\n\n")
        for client in (whole, halved):
            answer = await client.fill(await client.head())
            assert (answer.start, answer.get("connection")) == ("HTTP/1.1 200 OK", "close")
            assert await client.closed() == b""
