"""Bytes per second of a session: how long each amount has to wait, and that transfers do wait."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from gateway.core.model import Secret
from gateway.egress.gate import EgressGate
from gateway.egress.limits import Account, Share
from gateway.egress.policy import Limits
from gateway.egress.relay import CHUNK_BYTES, Pipe
from tests.support.egress import open_proxy

HOST = "origin.example.com"


def test_rate_is_of_both_directions_and_of_all_connections() -> None:
    """1000 bytes a second, of which a quarter may go at once: what is beyond that waits for its share."""
    account = Account(Limits(rate=1000), now=100.0)
    assert account.moved(250, 0, 100.0) == 0.0
    assert account.moved(0, 500, 100.0) == pytest.approx(0.5)
    assert account.moved(500, 0, 100.0) == pytest.approx(1.0)
    assert account.moved(0, 1, 101.0) == pytest.approx(0.001)
    assert account.moved(1, 0, 200.0) == 0.0  # silence saves up a quarter of a second, no more
    assert account.moved(0, 749, 200.0) == pytest.approx(0.5)


def test_without_a_rate_nothing_waits() -> None:
    assert Account(Limits(), now=0.0).moved(10**12, 10**12, 0.0) == 0.0


@pytest.mark.processes
@pytest.mark.parametrize("ended", [False, True], ids=["TLS passes", "TLS is ended"])
async def test_downloads_wait_for_their_rate(gate: EgressGate, tmp_path: Path, ended: bool) -> None:
    """Two at once share 1 MB a second: 3 MB cannot be there before two. A lower bound alone, so load does no harm."""
    (tmp_path / "key").write_text("sk-0123456789")
    secrets = (Secret("KEY", (HOST,), "bearer", file=str(tmp_path / "key")),) if ended else ()
    loop = asyncio.get_running_loop()
    async with open_proxy(gate, HOST, limits=Limits(rate=1_000_000), secrets=secrets) as proxy:

        async def download() -> int:
            async with proxy.secure(f"{HOST}:443") as (reader, writer):
                writer.write(f"GET /bytes/1500000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                await reader.readuntil(b"\r\n\r\n")
                return len(await reader.readexactly(1_500_000))

        began = loop.time()
        assert sum(await asyncio.gather(download(), download())) == 3_000_000
        # The last pieces, of 256 KiB each, are on their way before they are waited for.
        assert loop.time() - began > (3_000_000 - 2 * (256 << 10)) / 1_000_000 - 0.25


async def test_sink_that_is_slow_takes_away_none_of_a_pause() -> None:
    """What the kernel takes only in part waits for the sink, and then for the rest of the pause."""
    loop = asyncio.get_running_loop()
    source, feed = socket.socketpair()
    sink, drain = socket.socketpair()
    for each in (source, feed, sink, drain):
        each.setblocking(False)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    feed.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    counts: list[int] = []

    def count(amount: int) -> float:
        counts.append(amount)
        return 3600.0

    pipe = Pipe(loop, source, sink, count)
    sent = feed.send(b"x" * (3 * CHUNK_BYTES))
    pipe.start()
    received = 0
    while not counts or received < counts[0]:
        received += len(await loop.sock_recv(drain, CHUNK_BYTES))
    for _ in range(20):  # turns of the loop, in which it would read on
        await asyncio.sleep(0)
    assert sent > counts[0] > 4096
    assert (len(counts), pipe.moved) == (1, counts[0])
    pipe.close()
    for each in (source, feed, sink, drain):
        each.close()


async def test_nothing_is_read_while_there_is_something_to_wait_for() -> None:
    """After a pause it is asked again, with no amount, before the next read."""
    loop = asyncio.get_running_loop()
    source, feed = socket.socketpair()
    sink, drain = socket.socketpair()
    for each in (source, feed, sink, drain):
        each.setblocking(False)
    asked = asyncio.Event()
    waits = [0.001] * 5
    amounts: list[int] = []

    def count(amount: int) -> float:
        amounts.append(amount)
        if amount == 5 and len(amounts) > 1:
            asked.set()
        return waits.pop() if waits else 0.0

    pipe = Pipe(loop, source, sink, count)
    pipe.start()
    feed.send(b"first")
    assert await loop.sock_recv(drain, 10) == b"first"
    feed.send(b"later")
    async with asyncio.timeout(10):
        await asked.wait()
    assert amounts == [5, 0, 0, 0, 0, 0, 5]
    pipe.close()
    for each in (source, feed, sink, drain):
        each.close()


async def test_share_that_is_used_up_waits_for_the_answer_and_not_for_good() -> None:
    """Nothing passes until it is late; then a piece each half second, so that a store that is away stops nobody."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    share, limits = Share(lambda: answer), Limits(bytes=1 << 20)
    share.bytes, share.asked_at = 100, 50.0
    assert share.pause(limits, 100, 50.1, again=False) == share.pause(limits, 100, 50.1, again=True) == 0.03
    assert share.pause(limits, 100, 50.3, again=False) == 0.5
    assert share.pause(limits, 100, 50.3, again=True) == 0.0
