"""Large bodies on the data path over real sockets: back-pressure both ways, and bodies that nobody reads."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from tests.support.scripted import Call, OpenScripted, get, slots_free, slow_reader
from tests.support.waiting import eventually

ON_UVLOOP = True
MB = 1 << 20


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
