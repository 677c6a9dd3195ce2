"""The service's port in a cluster, and picod's way to it: whose a connection is, and what strangers can do there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from gateway.core.errors import StoreUnavailableError
from gateway.egress.gate import EgressGate
from gateway.egress.log import Outcome
from gateway.egress.notation import Grant
from gateway.egress.policy import Limits
from picod import wire
from tests.support.internet import PUBLIC, Internet
from tests.support.picod import Executor, picod_process
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

GET = b"GET http://origin.example.com%b HTTP/1.1\r\nHost: origin.example.com\r\n\r\n"


@dataclass
class Door:
    """A gate with an entrance. `grants`: by token, the sandbox and what it may reach; `asked`: every question."""

    gate: EgressGate
    port: int
    grants: dict[str, tuple[str, Grant]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def whose(self, token: str) -> tuple[str, Grant] | None:
        self.asked.append(token)
        if token == "broken":
            raise StoreUnavailableError("the store is away")
        return self.grants.get(token)

    def admit(self, token: str, *entries: str, limits: Limits | None = None) -> None:
        """Let a token stand for a sandbox and a session of the same name."""
        grant = Grant(token, "default", (("the setting", entries),), limits or Limits())
        self.grants[token] = (f"sb-{token}", grant)

    async def say(self, sent: bytes) -> bytes:
        """What comes of bytes that are sent to the port itself, until it ends the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
async def door(world: Internet) -> AsyncIterator[Door]:
    """One whose service runs in the world's edge; its port is here."""
    entrance = socket.create_server(("127.0.0.1", 0))
    port = entrance.getsockname()[1]
    gate = EgressGate(wrapper=world.enter, entrance=entrance)
    made = Door(gate, port)
    gate.on_token(made.whose)
    gate.start()
    yield made
    await gate.aclose()


@dataclass(frozen=True)
class Pod:
    """A picod as in a pod, with its own loopback address in place of its own loopback."""

    executor: Executor
    host: str

    def tell(self, port: int, token: str) -> httpx.Response:
        return self.executor.client.put(wire.EGRESS_PATH, json={"address": f"127.0.0.1:{port}", "token": token})

    async def ask(self, path: str = "/x", host: str = "origin.example.com") -> tuple[bytes, bytes]:
        """Status line and body of a request that code sends to its proxy."""
        reader, writer = await asyncio.open_connection(self.host, wire.EGRESS_PORT)
        try:
            writer.write(f"GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return head.partition(b"\r\n")[0], body
        finally:
            writer.close()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A tunnel to what greets and echoes."""
        reader, writer = await asyncio.open_connection(self.host, wire.EGRESS_PORT)
        writer.write(b"CONNECT origin.example.com:22 HTTP/1.1\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readline() == b"SSH-2.0-origin\r\n"
        return reader, writer


@pytest.fixture
def pods() -> Iterator[list[Pod]]:
    """Two."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in (1, 2):
            host = f"127.{os.getpid() % 250 + 2}.254.{number}"
            environ = {wire.ENV_EGRESS: "service"}
            executor = stack.enter_context(picod_process("--auth", "none", "--egress-host", host, environ=environ))
            made.append(Pod(executor, host))
        yield made


async def test_pods_reach_what_their_own_sessions_may(world: Internet, door: Door, pods: list[Pod]) -> None:
    """Each by its token; a pod with another's token gets the other's rules, counted to the other, and nothing more."""
    one, two = pods
    door.admit("one", "origin.example.com")
    door.admit("two", "other.example.com")
    asking = asyncio.create_task(one.ask())  # before the way is known: it waits
    while not asking.done() and door.asked == []:
        assert one.tell(door.port, "one").status_code == 200
        await asyncio.sleep(0)
        await asyncio.wait((asking,), timeout=0.05)
    assert (await asking)[0] == b"HTTP/1.1 200 OK"
    assert two.tell(door.port, "two").status_code == 200
    assert b"403 egress refused: other.example.com" in (await one.ask(host="other.example.com"))[0]
    assert (await two.ask(host="other.example.com"))[0] == b"HTTP/1.1 200 OK"
    assert b" 403 " in (await two.ask())[0]
    assert two.tell(door.port, "one").status_code == 200
    assert (await two.ask())[0] == b"HTTP/1.1 200 OK"
    assert b" 403 " in (await two.ask(host="other.example.com"))[0]
    records = door.gate.records

    def counts(session: str) -> dict[Outcome, int]:
        found = records.of(session)
        return {} if found is None else found.counts

    await eventually(lambda: counts("one") == {Outcome.CLOSED: 2, Outcome.REFUSED: 2}, "the session's list has all")
    await eventually(lambda: counts("two") == {Outcome.CLOSED: 1, Outcome.REFUSED: 1}, "and so has the other's")
    found = records.of("one")
    assert found is not None
    assert {line.address for line in found.ended if line.outcome is Outcome.CLOSED} == {PUBLIC}


async def test_bytes_go_whole_both_ways(door: Door, pods: list[Pod]) -> None:
    """A download of 50 MB, and 10 MB that are echoed while only one side has ended; a side that ends is told."""
    door.admit("one", "origin.example.com", "origin.example.com:22")
    pods[0].tell(door.port, "one")
    assert len((await pods[0].ask("/bytes/50000000"))[1]) == 50_000_000
    reader, writer = await pods[0].open()
    sent = os.urandom(10_000_000)

    async def send() -> None:
        writer.write(sent)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    assert await reader.read(-1) == sent
    await sending
    writer.close()


async def test_limits_count_all_connections_of_a_session(door: Door, pods: list[Pod]) -> None:
    """Two pods that say the same token share its bytes and its connections."""
    door.admit("one", "origin.example.com", "origin.example.com:22", limits=Limits(connections=2, bytes=3_000_000))
    for pod in pods:
        pod.tell(door.port, "one")
    opened = [await pod.open() for pod in pods]
    assert b"403 egress refused: 2 connections" in (await pods[0].ask())[0]
    for _, writer in opened:
        writer.close()

    def closed() -> bool:
        found = door.gate.records.of("one")
        return found is not None and found.counts.get(Outcome.CLOSED) == 2

    await eventually(closed, "both are closed")
    assert len((await pods[0].ask("/bytes/2000000"))[1]) == 2_000_000
    assert len((await pods[1].ask("/bytes/2000000"))[1]) < 1_500_000


async def test_end_of_a_session_ends_its_connections_and_its_token(door: Door, pods: list[Pod]) -> None:
    """What is open breaks at once, and the token opens nothing, though it was good a moment ago."""
    door.admit("one", "origin.example.com:22", "origin.example.com")
    pods[0].tell(door.port, "one")
    reader, writer = await pods[0].open()
    del door.grants["one"]
    door.gate.leave("sb-one")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    assert b"403 egress refused: this sandbox has no session" in (await pods[0].ask())[0]
    # One whose sandbox is bound anew is asked about at once, not refused by the answer of before.
    door.admit("two", "origin.example.com:22", "origin.example.com")
    pods[0].tell(door.port, "two")
    reader, writer = await pods[0].open()
    door.gate.leave("sb-two")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    assert (await pods[0].ask())[0] == b"HTTP/1.1 200 OK"


async def test_killed_service_asks_anew(door: Door, pods: list[Pod]) -> None:
    """kill -9: what is open breaks, and the next connection is served by the successor, on the same port."""
    door.admit("one", "origin.example.com:22", "origin.example.com")
    pods[0].tell(door.port, "one")
    for _ in range(2):
        reader, writer = await pods[0].open()
        before = len(door.asked)
        assert door.gate.pid is not None
        os.kill(door.gate.pid, signal.SIGKILL)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert (await pods[0].ask())[0] == b"HTTP/1.1 200 OK"
        assert len(door.asked) == before + 1


async def test_strangers_at_the_port_get_nothing(door: Door) -> None:
    """Lines that are no greeting, too long, of nobody, or that cannot be asked about; requests without one."""
    door.admit("one", "origin.example.com")
    greeting = wire.EGRESS_GREETING.encode()
    assert b" 200 OK" in await door.say(b"%b one\n%b" % (greeting, GET % b"/x"))
    lines = (
        b"", b"\n", b"\xff\xfe\n", b"HELLO one\n", greeting + b"\n", greeting + b" \n",
        greeting + b" " + b"x" * 8192, b"\x05\x01\x00\n", b"CONNECT origin.example.com:80 HTTP/1.1\r\n\r\n",
    )  # fmt: skip
    for line in lines:
        asked = len(door.asked)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(line)
        with contextlib.suppress(OSError):  # it was refused, and closed, at its first byte
            writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b"", line
        writer.close()
        assert len(door.asked) == asked, line
    for token in (b"two", b"One", b"one ", b" one", b"broken"):
        assert b"403 egress refused" in await door.say(b"%b %b\n%b" % (greeting, token, GET % b"/x")), token


async def test_flood_of_tokens_asks_little_and_leaves_others_alone(door: Door, pods: list[Pod]) -> None:
    """2000 connections with as many tokens from one address cost it its questions; another pod is served meanwhile."""
    door.admit("one", "origin.example.com")
    pods[0].tell(door.port, "one")
    assert (await pods[0].ask())[0] == b"HTTP/1.1 200 OK"
    known, began = len(door.asked), time.monotonic()

    async def knock(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port, local_addr=("127.0.0.9", 0))
        try:
            writer.write(f"{wire.EGRESS_GREETING} t{number}\n".encode())
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    for first in range(0, 2000, 250):
        flood = asyncio.gather(*(knock(number) for number in range(first, first + 250)))
        assert (await pods[0].ask())[0] == b"HTTP/1.1 200 OK"
        assert not any(b" 200 " in each for each in await flood)
    questions = len([token for token in door.asked[known:] if token != "one"])
    assert questions <= 100 + 20 * (time.monotonic() - began) + 1


def test_way_is_taken_only_if_it_is_one(pods: list[Pod]) -> None:
    """Names, no port, lines in a token: 400. A sandbox without such egress answers 404."""
    client = pods[0].executor.client
    good = {"address": "127.0.0.1:1", "token": "x"}
    wrong = {
        "address": ("", "localhost:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:1x", 1),
        "token": ("", "a b", "a\nb", "\u00e9", 1),
    }
    for body in (*({**good, name: value} for name, values in wrong.items() for value in values), {}):
        assert client.put(wire.EGRESS_PATH, json=body).status_code == 400, body
    assert client.put(wire.EGRESS_PATH, json={"address": "[::1]:65535", "token": "x" * 2000}).status_code == 200
    assert client.get(f"/api/ports/{wire.EGRESS_PORT}/").status_code == 403
    with picod_process("--auth", "none") as other:
        assert other.client.put(wire.EGRESS_PATH, json={"address": "127.0.0.1:1", "token": "x"}).status_code == 404


async def test_service_that_is_away_is_an_answer(pods: list[Pod]) -> None:
    """Nobody listens there: a 502 that says so, at once, and no descriptor stays."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pods[0].tell(port, "x")
    assert b"502 egress failed: the gateway's egress service" in (await pods[0].ask())[0]
    before = pods[0].executor.descriptors()
    for _ in range(20):
        await pods[0].ask()
    await eventually(lambda: pods[0].executor.descriptors() <= before, "all are closed")
