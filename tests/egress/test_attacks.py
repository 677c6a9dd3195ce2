"""Code that wants out: each way is refused, and no host that it may not reach hears of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.core.model import SessionId
from gateway.egress.gate import EgressGate
from gateway.egress.log import Access, Outcome
from tests.support.egress import Proxy, open_proxy
from tests.support.internet import METADATA, OTHER, OWN, PRIVATE, PUBLIC, Internet
from tests.support.local_engine import KEY, execute, runtime, serving
from tests.support.waiting import LIMIT_S, eventually

# One egress service for all of them: each refuses, and none of them ends it.
pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

CLOSED = {METADATA, PRIVATE, "127.0.0.1", "192.0.2.1", "192.0.2.2"}
HOSTS = [
    "127.0.0.1", "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "0x7f.0.0.1", "127.1", "0", "0.0.0.0",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[fe80::1%25lo]", "[fe80::1%lo]",
    "[::1%lo]",
    "localhost", "localhost.", "loopback.example.com", "loopback.example.com.", "127.0.0.1.",
    "127.0.0.1:80@x", "x@127.0.0.1",
    METADATA, "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]", "metadata.example.com", "METADATA.example.com.", "metadata.example.com%00.example.com",
    PRIVATE, "inside.example.com", "[::ffff:10.20.30.40]", "192.0.2.2", "edge.example.com", "192.0.2.1",
]  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module")
async def anywhere(kept_gate: EgressGate) -> AsyncIterator[Proxy]:
    """A sandbox's proxy, with the widest policy that there is."""
    async with open_proxy(kept_gate, "any") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def narrow(kept_gate: EgressGate) -> AsyncIterator[Proxy]:
    """With a policy of one name."""
    async with open_proxy(kept_gate, "origin.example.com", "origin.example.com:22") as made:
        yield made


def closed_hosts_asked(world: Internet) -> list[dict[str, Any]]:
    return [each for each in world.requests() if each["address"] in CLOSED]


def other_hosts_asked(world: Internet) -> list[dict[str, Any]]:
    """What hosts besides origin.example.com heard, by address or by the Host of a request."""
    return [
        each
        for each in world.requests()
        if each["address"] != PUBLIC or ["host", "origin.example.com"] not in each["headers"]
    ]


@pytest.mark.parametrize("host", HOSTS)
async def test_connect_to_what_no_policy_opens(world: Internet, anywhere: Proxy, host: str) -> None:
    """Loopback, metadata, private and own addresses in every notation, by CONNECT and in absolute form."""
    before = len(closed_hosts_asked(world))
    tunnel = await anywhere.ask(f"CONNECT {host}:80 HTTP/1.1\r\n\r\n".encode())
    plain = await anywhere.ask(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    for answer in (tunnel, plain):
        assert answer.split()[1] in (b"400", b"403", b"502"), answer  # 502: a name that has no address
    assert len(closed_hosts_asked(world)) == before


@pytest.mark.parametrize("host", [each.strip("[]") for each in HOSTS])
async def test_socks_to_what_no_policy_opens(world: Internet, anywhere: Proxy, host: str) -> None:
    """The same over SOCKS5, as a name and, where it is one, as an address."""
    before = len(closed_hosts_asked(world))
    name = host.encode()
    requests = [b"\x03" + bytes((len(name),)) + name]
    try:
        packed = ip_address(host.partition("%")[0]).packed
        requests.append((b"\x01" if len(packed) == 4 else b"\x04") + packed)
    except ValueError:
        pass
    for address in requests:
        answer = await anywhere.ask(b"\x05\x01\x00\x05\x01\x00" + address + b"\x00\x50")
        assert answer[:2] == b"\x05\x00"
        assert answer[3] in (2, 4), answer  # not allowed, or no such host
    assert len(closed_hosts_asked(world)) == before


async def test_own_public_address_of_the_gateway_is_refused(anywhere: Proxy) -> None:
    """What listens there is the gateway and its neighbours, not the world."""
    answer = await anywhere.ask(f"CONNECT {OWN}:80 HTTP/1.1\r\n\r\n".encode())
    assert b" 403 " in answer
    assert b"an address of the machine that the gateway runs on" in answer


async def test_name_that_resolves_anew_each_time(world: Internet, anywhere: Proxy) -> None:
    """Rebinding: 60 names whose answers change between open and closed addresses, each asked for twice."""
    before = len(world.requests())
    for number in range(60):
        for _ in range(2):
            host = f"r{number}.rebinding.example.com"
            await anywhere.ask(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    seen = world.requests()[before:]
    assert seen  # some reached the open address
    assert {each["address"] for each in seen} == {PUBLIC}


@pytest.mark.parametrize("name", ["third.example.net", "other.example.com", None, "origin.example.com.evil.net"])
async def test_tls_for_another_name_than_was_asked_for(
    world: Internet, kept_gate: EgressGate, name: str | None
) -> None:
    """A hello with another server name, or none, is answered with an alert; the origin does not see it."""
    session = f"asks for {name}"  # whose lines are no other test's
    before = len(world.requests())
    context = ssl.create_default_context(cafile=str(world.ca))
    context.check_hostname = False
    lines: list[Access] = []
    kept_gate.on_line(lambda line: lines.append(line) if line.session == session else None)
    async with open_proxy(kept_gate, "origin.example.com", session=session) as narrow:
        reader, writer = await narrow.connect()
        writer.write(b"CONNECT origin.example.com:443 HTTP/1.1\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await writer.start_tls(context, server_hostname=name)
        writer.close()
        await eventually(lambda: lines and lines[-1].outcome is Outcome.CUT, "it is in the log")
    assert "its TLS hello names" in lines[-1].reason
    assert len(world.requests()) == before


_PLAIN = b"http://origin.example.com/ HTTP/1.1\r\nHost: origin.example.com\r\n"
_OTHER = b"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n"
SMUGGLED = [
    b"GET http://origin.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    b"GET " + _PLAIN + b"Host: other.example.com\r\n\r\n",
    b"GET " + _PLAIN + b" Host: other.example.com\r\n\r\n",
    b"GET http://origin.example.com/ HTTP/1.1\r\nHost: origin.example.com\nHost: other.example.com\r\n\r\n",
    b"GET http://origin.example.com@other.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    b"GET http://other.example.com\\@origin.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    b"GET http://origin.example.com#@other.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    b"GET //other.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    b"GET ftp://origin.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    _OTHER,
    b"CONNECT other.example.com:80 HTTP/1.1\r\nHost: origin.example.com:80\r\n\r\n",
    b"CONNECT origin.example.com:80 HTTP/1.1\r\nHost: other.example.com:80\r\n\r\n",
    # A second request behind the first: after a body of no length, two lengths, chunks, or an upgrade.
    b"GET " + _PLAIN + b"\r\n" + _OTHER,
    b"POST " + _PLAIN + b"Content-Length: 0\r\n\r\n" + _OTHER,
    b"POST " + _PLAIN + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _OTHER,
    b"POST " + _PLAIN + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _OTHER,
    b"POST " + _PLAIN + b"Connection: Content-Length\r\nContent-Length: 46\r\n\r\n" + _OTHER,
    b"GET " + _PLAIN + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + _OTHER,
]
IN_TUNNEL = [
    b"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\r\nGET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    b"GET / HTTP/1.1\nHost: other.example.com\n\n",
    b"get / http/1.1\r\nHost: other.example.com\r\n\r\n",
    b"GET http://other.example.com/ HTTP/1.1\r\nHost: origin.example.com\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: origin.example.com\r\n\r\nGET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: origin.example.com\r\nHost: other.example.com\r\n\r\n",
]


@pytest.mark.parametrize("sent", SMUGGLED)
@pytest.mark.parametrize("pause", [False, True])
async def test_host_is_smuggled(world: Internet, narrow: Proxy, sent: bytes, pause: bool) -> None:
    """Another Host than the URL's, twice a Host, a request behind a request; whole and in two pieces."""
    before = len(other_hosts_asked(world))
    await narrow.ask(sent, pieces=2 if pause else 1)
    assert len(other_hosts_asked(world)) == before


@pytest.mark.parametrize("sent", IN_TUNNEL)
@pytest.mark.parametrize("pieces", [1, 3])
async def test_host_is_smuggled_through_a_tunnel(world: Internet, narrow: Proxy, sent: bytes, pieces: int) -> None:
    """The same in a tunnel to the port of HTTP in clear, by CONNECT and over SOCKS5."""
    before = len(other_hosts_asked(world))
    await narrow.ask(b"CONNECT origin.example.com:80 HTTP/1.1\r\n\r\n", then=sent, pieces=pieces)
    name = b"origin.example.com"
    socks = b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name + b"\x00\x50"
    await narrow.ask(socks, then=sent, pieces=pieces)
    assert len(other_hosts_asked(world)) == before


@pytest.mark.parametrize(
    ("command", "address"),
    [(2, b"\x01\x5d\xb8\xd8\x22\x00\x50"), (3, b"\x01\x00\x00\x00\x00\x00\x00"), (3, b"\x03\x07a.b.com\x00\x35"),
     (9, b"\x01\x5d\xb8\xd8\x22\x00\x50")],
)  # fmt: skip
async def test_udp_and_bind_are_refused_in_so_many_words(anywhere: Proxy, command: int, address: bytes) -> None:
    """SOCKS5's code for a command that is not supported, with the widest policy."""
    answer = await anywhere.ask(b"\x05\x01\x00\x05" + bytes((command, 0)) + address)
    assert answer == b"\x05\x00" + b"\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize("target", ["8.8.8.8:53", "origin.example.com:53", "origin.example.com:853", f"{PUBLIC}:53"])
async def test_dns_over_the_proxy(narrow: Proxy, target: str) -> None:
    """Neither to a server of one's own nor to the permitted host at DNS's ports."""
    assert b" 403 " in await narrow.ask(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())


async def test_refused_name_is_not_resolved(world: Internet, narrow: Proxy) -> None:
    """A lookup would carry data out: names of another domain are refused without one."""
    answer = await narrow.ask(b"CONNECT c2VjcmV0.rebinding.example.com:443 HTTP/1.1\r\n\r\n")
    assert b"is not allowed" in answer
    assert b"resolution" not in answer


async def _in_sandbox(kept_gate: EgressGate, folder: Path, run: Callable[[Any], Awaitable[None]], *egress: str) -> None:
    async with serving(folder, runtime(egress=egress), egress=kept_gate) as provider:
        await run(await provider.claim(KEY, SessionId("one")))


async def test_redirect_to_metadata(world: Internet, kept_gate: EgressGate, tmp_path: Path) -> None:
    """A permitted host that redirects to a closed one leads nowhere."""
    before = len(closed_hosts_asked(world))

    async def run(sandbox: Any) -> None:
        url = f"http://origin.example.com/redirect?http://{METADATA}/latest/meta-data/"
        done = await execute(sandbox, "curl", "-sSL", "-w", "%{http_code}", url)
        assert done["stdout"].endswith("403"), done

    await _in_sandbox(kept_gate, tmp_path, run, "any")
    assert len(closed_hosts_asked(world)) == before


async def test_environment_is_unset(world: Internet, kept_gate: EgressGate, tmp_path: Path) -> None:
    """Without the proxy there is no route at all: not to hosts, not to a name server."""
    before = len(world.requests())
    code = (
        "import socket\n"
        f"for kind, address in ((1, ('{PUBLIC}', 80)), (2, ('8.8.8.8', 53)), (1, ('{METADATA}', 80))):\n"
        "    try:\n"
        "        with socket.socket(socket.AF_INET, kind) as s:\n"
        "            s.settimeout(5); s.connect(address); s.send(b'x'); print('out')\n"
        "    except OSError as error: print(error.errno)\n"
        "try: socket.getaddrinfo('origin.example.com', 80); print('out')\n"
        "except OSError as error: print('no name')\n"
    )

    async def run(sandbox: Any) -> None:
        done = await execute(sandbox, "env", "-i", "/usr/bin/python3", "-c", code)
        assert done["stdout"].split("\n")[:4] == ["101", "101", "101", "no name"], done

    await _in_sandbox(kept_gate, tmp_path, run, "any")
    assert len(world.requests()) == before


async def test_other_sandbox_is_not_reached(world: Internet, kept_gate: EgressGate, tmp_path: Path) -> None:
    """Two sandboxes, two policies: the same port in each is another proxy, and none is reached from outside."""
    narrow, wide = runtime(egress=("origin.example.com",)), runtime(
        egress=("any",), key=type(KEY)("default", "wide")
    )  # fmt: skip
    async with serving(tmp_path, narrow, wide, egress=kept_gate) as provider:
        one = await provider.claim(narrow.key, SessionId("one"))
        two = await provider.claim(wide.key, SessionId("two"))
        url = "http://other.example.com/"
        answers = await asyncio.gather(
            *(execute(each, "curl", "-sS", "-w", "%{http_code}", url) for each in (one, two))
        )
        assert [answer["stdout"][-3:] for answer in answers] == ["403", "200"]
        seen = await execute(
            one, "sh", "-c", "cat /proc/net/unix | wc -l; find / -type s 2>/dev/null; ls -l /proc/*/fd"
        )
        assert "egress" not in seen["stdout"], seen
    assert OTHER in {each["address"] for each in world.requests()}


BEGINNINGS = [
    b"", b"CONNECT origin.exam", b"GET http://origin.example.com/ HTTP/1.1\r\nA: b\r\n", b"\x05", b"\x05\xff",
    b"\x05\x01\x00\x05\x01\x00\x03\xff", b"\x16\x03\x01\xff\xff", b"\0" * 100, b"A" * 70_000,
    b"CONNECT origin.example.com:80 HTTP/1.1\r\n" + b"a: b\r\n" * 10_000,
]  # fmt: skip


async def test_sandbox_that_leaves_requests_unfinished_keeps_no_other_waiting(
    world: Internet, kept_gate: EgressGate
) -> None:
    """With more connections than it may have, none of them going on; its own are over with its end."""
    async with open_proxy(kept_gate, "any") as greedy, open_proxy(kept_gate, "any", session="two") as other:
        held: list[asyncio.StreamWriter] = []
        try:
            for number in range(600):
                _, writer = await greedy.connect()
                held.append(writer)
                writer.write(BEGINNINGS[number % len(BEGINNINGS)])
                if number % 100 == 99:
                    reader, asking = await other.connect()
                    asking.write(
                        b"GET http://origin.example.com/ HTTP/1.1\r\nHost: origin.example.com\r\n"
                        b"Connection: close\r\n\r\n"
                    )
                    async with asyncio.timeout(LIMIT_S):
                        assert b" 200 " in await reader.readline()
                    asking.close()
        finally:
            for writer in held:
                writer.transport.abort()
