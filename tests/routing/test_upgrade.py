"""Requests that ask for another protocol: a WebSocket is one, every other request is read as if it had not asked."""

from __future__ import annotations

import pytest

from tests.support.scripted import Call, Client, OpenScripted, Served
from tests.support.waiting import eventually

ON_UVLOOP = True
EVIL = "GET /evil HTTP/1.1\nhost: h\n\n"

TOKENS = {
    "h2c": "connection: Upgrade, HTTP2-Settings\nupgrade: h2c\nhttp2-settings: AAMAAABkAAQBAAAAAAIAAAAA\n",
    "unknown": "connection: upgrade\nupgrade: x/1\n",
    "tls": "connection: close, upgrade\nupgrade: TLS/1.0\n",
    "websocket": "connection: upgrade\nupgrade: websocket\nsec-websocket-version: 13\nsec-websocket-key: "
    "dGhlIHNhbXBsZSBub25jZQ==\n",
    "list": "connection: upgrade\nupgrade: websocket, h2c\n",
}
BODIES = {
    "length": ("content-length: {0}\n", "{1}"),
    "chunked": ("transfer-encoding: chunked\n", "{0:x}\r\n{1}\r\n0\r\n\r\n"),
}


def post(session: str, upgrade: str, framing: str, path: str, body: str) -> bytes:
    """A POST whose body is itself a request, so that a byte of it that is not read as body shows."""
    field, shape = BODIES[framing]
    body = body.replace("\n", "\r\n")
    head = f"POST {path} HTTP/1.1\nhost: h\nx-session-id: {session}\n{TOKENS[upgrade]}{field.format(len(body))}\n"
    return (head.replace("\n", "\r\n") + shape.format(len(body), body)).encode()


async def echo_path(call: Call) -> None:
    await call.reply(call.request.path.encode() + b" " + await call.body())


@pytest.mark.parametrize("framing", BODIES)
@pytest.mark.parametrize("upgrade", TOKENS)
@pytest.mark.parametrize("size", [7, 100_000])
async def test_upgrade_that_is_not_served_is_ignored_and_its_body_read(
    open_gateway: OpenScripted, upgrade: str, framing: str, size: int
) -> None:
    """The body reaches the sandbox whole and none of it is read as a request, in however many pieces it comes."""
    gateway, sandbox = await open_gateway(echo_path)
    session = await gateway.session()
    client = await gateway.connect()
    raw = post(session, upgrade, framing, "/one", EVIL)
    for start in range(0, len(raw), size):
        await client.send(raw[start : start + size])
    answer = await client.answer()
    assert (answer.status, answer.body) == (200, b"/one " + EVIL.replace("\n", "\r\n").encode())
    assert [(seen.path, seen.get("upgrade"), seen.get("connection")) for seen in sandbox.requests] == [
        ("/one", None, None)
    ]


@pytest.mark.parametrize("framing", BODIES)
async def test_requests_behind_an_ignored_upgrade_are_answered_in_order(
    open_gateway: OpenScripted, framing: str
) -> None:
    """Several such requests and a plain one, all in one write: each body stays with its request."""
    gateway, sandbox = await open_gateway(echo_path)
    session = await gateway.session()
    client = await gateway.connect()
    plain = f"GET /last HTTP/1.1\r\nhost: h\r\nx-session-id: {session}\r\n\r\n".encode()
    upgrades = ("h2c", "websocket", "unknown")
    await client.send(b"".join(post(session, each, framing, f"/{each}", EVIL + each) for each in upgrades) + plain)
    for each in upgrades:
        assert (await client.answer()).body == f"/{each} {EVIL}{each}".replace("\n", "\r\n").encode()
    assert (await client.answer()).body == b"/last "
    assert [seen.path for seen in sandbox.requests] == ["/h2c", "/websocket", "/unknown", "/last"]
    assert sandbox.dials == 1  # each was whole, so its connection could carry the next


async def test_upgrade_without_a_body_is_a_plain_request(open_gateway: OpenScripted) -> None:
    """A GET of curl --http2, and requests behind it on the connection."""
    gateway, _ = await open_gateway(echo_path)
    session = await gateway.session()
    client = await gateway.connect()
    for path in ("/a", "/b"):
        answer = await client.ask(f"GET {path} HTTP/1.1\nhost: h\nx-session-id: {session}\n{TOKENS['h2c']}")
        assert answer.body == path.encode() + b" "


async def test_large_body_of_an_ignored_upgrade_streams(open_gateway: OpenScripted) -> None:
    """One that is longer than any buffer, whose rest goes past the parser."""
    gateway, _ = await open_gateway(echo_path)
    client = await gateway.connect()
    body = "x" * (3 << 20)
    await client.send(post(await gateway.session(), "h2c", "length", "/big", body))
    assert (await client.answer()).body == b"/big " + body.encode()


async def test_websocket_behind_a_request_under_way_is_ignored(open_gateway: OpenScripted) -> None:
    """Its handshake would overtake the earlier answer; it is answered as the plain GET that it also is."""
    gateway, _ = await open_gateway(echo_path)
    session = await gateway.session()
    client = await gateway.connect()
    first = f"GET /first HTTP/1.1\nhost: h\nx-session-id: {session}\n\n"
    second = f"GET /second HTTP/1.1\nhost: h\nx-session-id: {session}\n{TOKENS['websocket']}\n"
    await client.send(first + second)
    assert (await client.answer()).body == b"/first "
    assert (await client.answer()).body == b"/second "


async def test_body_of_an_ignored_upgrade_that_stops_is_timed_out(open_gateway: OpenScripted) -> None:
    """The idle timeout of request bodies holds for it, for a websocket's too; the sandbox's connection is closed."""
    gateway, sandbox = await open_gateway(request_idle_timeout=0.3)
    client = await gateway.connect()
    whole = post(await gateway.session(), "websocket", "length", "/x", "abcdef")
    await client.send(whole[:-3])
    answer = await client.answer()
    assert (answer.status, answer.json["code"]) == (408, "REQUEST_TIMEOUT")
    await eventually(lambda: sandbox.left == sandbox.dials, "the half-fed connection is closed")


async def stop_early(call: Call) -> None:
    if call.request.method == "POST":
        await call.reply(b"early", "413 Content Too Large")
    else:
        await call.reply(b"next")


async def _upload_half(gateway: Served, session: str, framing: str) -> Client:
    client = await gateway.connect()
    length = "content-length: 100000" if framing == "length" else "transfer-encoding: chunked"
    head = f"POST / HTTP/1.1\nhost: h\nx-session-id: {session}\n{length}\n\n"
    await client.send(head.replace("\n", "\r\n").encode() + (b"3\r\nabc\r\n" if framing == "chunked" else b"abc"))
    return client


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_connection_that_still_owes_a_body_is_not_used_again(open_gateway: OpenScripted, framing: str) -> None:
    """The sandbox answered before it read the body: the next request gets a connection of its own."""
    gateway, sandbox = await open_gateway(stop_early)
    session = await gateway.session()
    client = await _upload_half(gateway, session, framing)
    assert (await client.answer()).status == 413
    await eventually(lambda: sandbox.left == 1, "the connection is closed")
    assert (await gateway.ask(f"GET / HTTP/1.1\nhost: h\nx-session-id: {session}")).body == b"next"
    assert sandbox.dials == 2


async def test_trailers_are_no_fields_of_the_request(open_gateway: OpenScripted) -> None:
    """RFC 9110 6.5.1: what comes behind a body can neither name a session nor add to what the sandbox sees."""
    gateway, sandbox = await open_gateway(echo_path)
    session = await gateway.session()
    client = await gateway.connect()
    head = f"POST /t HTTP/1.1\nhost: h\nx-session-id: {session}\ntransfer-encoding: chunked\n\n"
    await client.send(head + "3\nabc\n0\nx-late: 1\nx-session-id: other\n\n")
    assert (await client.answer()).body == b"/t abc"
    assert sandbox.requests[0].get("x-late") is None


async def test_trailer_that_never_ends_is_cut(open_gateway: OpenScripted) -> None:
    """It would be held in memory until it ends."""
    gateway, sandbox = await open_gateway(echo_path)
    client = await _upload_half(gateway, await gateway.session(), "chunked")
    await client.send(b"0\r\nx: ")
    await client.send(b"a" * 200_000)
    assert await client.closed() == b""
    await eventually(lambda: sandbox.left == sandbox.dials, "the sandbox's side is cut")
