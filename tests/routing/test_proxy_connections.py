"""Connections of the data path over real sockets: how they are reused, and what happens when a side leaves."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.scripted import Call, OpenScripted, get, reaches, slots_free
from tests.support.waiting import eventually

ON_UVLOOP = True


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
