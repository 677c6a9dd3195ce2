"""Timeouts of the data path over real sockets: what happens when a side sends or reads nothing."""

from __future__ import annotations

import asyncio

from tests.support.scripted import Call, OpenScripted, get, slots_free, slow_reader
from tests.support.waiting import eventually

ON_UVLOOP = True
MB = 1 << 20


async def test_silent_uploader_gets_408(open_gateway: OpenScripted) -> None:
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


async def test_sandbox_that_keeps_sending_is_not_timed_out(open_gateway: OpenScripted) -> None:
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


async def test_client_that_does_not_read_is_disconnected(open_gateway: OpenScripted) -> None:
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
