"""The egress service: bytes, limits, a policy that changes, and its end by kill -9: its successor knows as much."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gateway.egress.gate import EgressGate
from gateway.egress.log import Access, Outcome
from gateway.egress.notation import Grant
from gateway.egress.policy import Limits
from gateway.egress.records import SessionEgress
from tests.support.egress import Proxy, open_proxy
from tests.support.internet import Internet
from tests.support.waiting import eventually, wait_until

pytestmark = pytest.mark.processes

GET = b"GET http://origin.example.com/%b HTTP/1.1\r\nHost: origin.example.com\r\n\r\n"


async def tunnel(
    proxy: Proxy, target: str = "origin.example.com:80"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await proxy.connect()
    writer.write(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def download(proxy: Proxy, count: int) -> int:
    """How many bytes of so many came."""
    reader, writer = await proxy.connect()
    writer.write(GET % f"bytes/{count}".encode())
    seen = 0
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        while data := await reader.read(1 << 20):
            seen += len(data)
    writer.close()
    return seen


async def records_of(gate: EgressGate, session: str) -> SessionEgress:
    """What a session reached; the service reports it a moment after it has happened."""
    await eventually(lambda: gate.records.of(session) is not None, "the service reports")
    found = gate.records.of(session)
    assert found is not None
    return found


async def test_large_bodies_go_whole_both_ways(gate: EgressGate) -> None:
    """64 MB down in four streams at once, and up by length and in chunks."""
    async with open_proxy(gate, "origin.example.com") as proxy:
        assert await asyncio.gather(*(download(proxy, 16_000_000) for _ in range(4))) == [16_000_000] * 4
        body = b"x" * 5_000_000
        head = b"POST http://origin.example.com/u HTTP/1.1\r\nHost: origin.example.com\r\n"
        answer = await proxy.ask(head + b"Content-Length: 5000000\r\n\r\n" + body)
        assert b'"body": 5000000' in answer
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[:70000], body[:1000000]))
        answer = await proxy.ask(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert b'"body": 1070001' in answer
        found = await records_of(gate, "one")
        await eventually(lambda: found.down > 64_000_000 and found.up > 6_000_000, "bytes are counted")


async def test_server_may_speak_first(gate: EgressGate) -> None:
    """SSH's greeting comes before the client has said anything; what it says then is passed on."""
    async with open_proxy(gate, "origin.example.com:22") as proxy:
        reader, writer = await tunnel(proxy, "origin.example.com:22")
        assert await reader.readline() == b"SSH-2.0-origin\r\n"
        writer.write(b"SSH-2.0-client\r\n")
        assert await reader.readline() == b"SSH-2.0-client\r\n"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_connections_beyond_the_limit_are_refused(gate: EgressGate) -> None:
    async with open_proxy(gate, "origin.example.com:22", limits=Limits(connections=3)) as proxy:
        held = [await tunnel(proxy, "origin.example.com:22") for _ in range(3)]
        answer = await proxy.ask(b"CONNECT origin.example.com:22 HTTP/1.1\r\n\r\n")
        assert b" 403 " in answer
        assert b"spec.wakegate.egressLimits" in answer
        held[0][1].close()

        async def again() -> bool:
            return b" 200 " in await proxy.ask(b"CONNECT origin.example.com:22 HTTP/1.1\r\n\r\n")

        await eventually(again, "the place of one that left is free")
        for _, writer in held:
            writer.close()


async def test_bytes_beyond_the_limit_end_the_connection(gate: EgressGate) -> None:
    lines: list[Access] = []
    gate.on_line(lines.append)
    async with open_proxy(gate, "origin.example.com", limits=Limits(bytes=2_000_000)) as proxy:
        assert await download(proxy, 50_000_000) < 4_000_000
        assert b" 403 " in await proxy.ask(GET % b"x")
        await eventually(lambda: lines and lines[-1].outcome is Outcome.REFUSED, "both are in the log")
    assert [line.outcome for line in lines] == [Outcome.OPEN, Outcome.CUT, Outcome.REFUSED]


async def test_another_session_gets_another_policy_and_no_connection_of_the_last(gate: EgressGate) -> None:
    """As when a warm sandbox is claimed; a narrower policy for the same session leaves its connections open."""
    async with open_proxy(gate, "any", session="") as proxy:
        name = f"sb-{proxy.port}"
        reader, writer = await tunnel(proxy, "origin.example.com:22")
        assert await reader.readline() == b"SSH-2.0-origin\r\n"
        gate.bind(name, Grant("two", "acme", (("the setting", ("origin.example.com:22",)),), Limits()))
        assert await reader.read() == b""
        writer.close()
        assert b" 403 " in await proxy.ask(b"CONNECT other.example.com:22 HTTP/1.1\r\n\r\n")
        reader, writer = await tunnel(proxy, "origin.example.com:22")
        assert await reader.readline() == b"SSH-2.0-origin\r\n"
        gate.bind(name, Grant("two", "acme", (("the setting", ()),), Limits()))
        assert b" 403 " in await proxy.ask(b"CONNECT origin.example.com:22 HTTP/1.1\r\n\r\n")
        writer.write(b"still\n")
        assert await reader.readline() == b"still\n"
        writer.close()
        found = await records_of(gate, "two")
        await eventually(lambda: found.counts.get(Outcome.REFUSED) == 2, "the lines are the new session's")


async def test_end_of_a_sandbox_closes_its_connections(gate: EgressGate) -> None:
    async with open_proxy(gate, "origin.example.com:22") as proxy:
        reader, writer = await tunnel(proxy, "origin.example.com:22")
        assert await reader.readline() == b"SSH-2.0-origin\r\n"
    assert await reader.read() == b""
    writer.close()
    found = await records_of(gate, "one")
    await eventually(lambda: not found.open and found.counts.get(Outcome.CLOSED) == 1, "the log has its end")


async def test_killed_service_is_replaced_by_one_that_knows_as_much(gate: EgressGate) -> None:
    """kill -9 under load, five times: transfers break, the log says so, and new connections just wait a moment."""
    restarts = []
    gate.on_restart(lambda: restarts.append(1))
    async with open_proxy(gate, "origin.example.com") as proxy, open_proxy(gate, session="none") as closed:
        for _ in range(5):
            loads = [asyncio.create_task(download(proxy, 10_000_000_000)) for _ in range(5)]
            await eventually(lambda: (made := gate.records.of("one")) is not None and len(made.open) == 5, "they run")
            assert gate.pid is not None
            os.kill(gate.pid, signal.SIGKILL)
            assert all(0 <= seen < 10_000_000_000 for seen in await asyncio.gather(*loads))
            assert await download(proxy, 1000) == 1000  # made while there is no service, it may be
            assert b" 403 " in await closed.ask(GET % b"x")
            await eventually(lambda: not gate.records.open(), "what was cut is closed in the log")
    found = await records_of(gate, "one")
    assert found.counts[Outcome.CUT] == 25
    assert len(restarts) == 5


CRASH = """
import asyncio, os, signal, socket, sys
from gateway.egress.gate import EgressGate
from gateway.egress.notation import Grant
async def main():
    gate = EgressGate()
    gate.open("sb", socket.create_server(("127.0.0.1", 0)), Grant())
    while gate.pid is None: await asyncio.sleep(0.01)
    print(gate.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


def test_service_ends_with_its_gateway(tmp_path: Path) -> None:
    """kill -9 of the gateway: nothing of it is left."""
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", CRASH], cwd=root, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    service = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not service.is_running() or service.status() == psutil.STATUS_ZOMBIE, "the service has ended")


async def test_flood_of_refusals_is_counted_where_it_is_not_listed(world: Internet, gate: EgressGate) -> None:
    """A sandbox that asks 600 times at once fills neither the log nor the gateway; every request is answered."""
    async with open_proxy(gate) as proxy:

        async def answer() -> bytes:
            """To its end, which comes with it: 600 at once take what the machine takes."""
            reader, writer = await proxy.connect()
            writer.write(GET % b"x")
            try:
                return await reader.read()
            finally:
                writer.close()

        answers = await asyncio.gather(*(answer() for _ in range(600)))
        assert all(b" 403 " in answer for answer in answers)
        assert b" 403 " in await proxy.ask(GET % b"x")
        found = await records_of(gate, "one")
        await eventually(lambda: len(found.ended) >= 200, "the first have lines")
        assert len(found.ended) < 400
