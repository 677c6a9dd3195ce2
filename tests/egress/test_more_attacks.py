"""Further ways out, by names, by bytes and by patience: each is refused, and no host that is closed hears of it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.core.model import Secret
from gateway.egress.credentials import placeholder_of
from gateway.egress.gate import EgressGate
from tests.support.egress import Proxy, open_proxy
from tests.support.internet import METADATA, PRIVATE, PUBLIC, Internet
from tests.support.waiting import LIMIT_S

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

CLOSED = {METADATA, PRIVATE, "127.0.0.1", "192.0.2.1", "192.0.2.2"}
HOST = "origin.example.com"
VALUE = "sk-live-4Hd/2+bW8mQ1rKz"
RUNTIME = "code-interpreters/default/more"
HOLDER = placeholder_of(RUNTIME, "KEY")


@pytest_asyncio.fixture(loop_scope="module")
async def anywhere(kept_gate: EgressGate) -> AsyncIterator[Proxy]:
    """A sandbox's proxy, with the widest policy that there is."""
    async with open_proxy(kept_gate, "any", f"{HOST}:*") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def narrow(kept_gate: EgressGate) -> AsyncIterator[Proxy]:
    """With one name, and names below another."""
    async with open_proxy(kept_gate, HOST, f"{HOST}:22", "*.below.example.com") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def keyed(kept_gate: EgressGate, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """With a key for one host."""
    file = tmp_path_factory.mktemp("keyed") / "key"
    file.write_text(VALUE)
    secrets = (Secret("KEY", (HOST,), "header", "X-Key", file=str(file)),)
    async with open_proxy(kept_gate, "any", HOST, runtime=RUNTIME, secrets=secrets) as made:
        yield made


def closed_hosts_asked(world: Internet) -> list[dict[str, Any]]:
    return [each for each in world.requests() if each["address"] in CLOSED]


def connect(host: str, port: int = 80) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\n\r\n".encode()


def socks(name: bytes, port: int = 80) -> bytes:
    return b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big")


# Names and addresses.

ADDRESSES = [
    # IPv4 within IPv6 (mapped, compatible, translated, NAT64, 6to4, Teredo); zones; what is malformed.
    "::ffff:0:127.0.0.1", "::ffff:a9fe:a9fe", "0:0:0:0:0:ffff:10.20.30.40", "::a9fe:a9fe", "64:ff9b::7f00:1",
    "64:ff9b::a14:1e28", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:ffff::10.20.30.40", "2002:7f00:1::1", "2002:a14:1e28::",
    "2002:a9fe:a9fe::a9fe:a9fe", "2001:0:5db8:d822:0:0:5601:5601", "2001::5601:5601", "fd00:ec2::254", "fd20:ce::254",
    "fec0::1", "ff02::1", "100::1", "5f00::1", "2001:db8::1", "fc00::1", "::1%lo", "::1%25lo", "fe80::1%1", "::1%",
    "::127.0.0.1%eth0", "1::2::3", ":::1", "::ffff:127.1", "::ffff:0x7f.0.0.1", "[::1]", "::1]", "::g",
]  # fmt: skip
NAMES = [
    "1.1", "127.0.0.1.", "127.0.0.1..", "0x7f.1", "0X7F000001", "0177.1", "1e1.0.0.127", "127.0.0.0x1",
    "127\u30020\u30020\u30021", "\uff11\uff12\uff17.0.0.1", "\u2460\u2461\u2466.0.0.1", "LOCALHOST",
    "a..b", ".origin.example.com", "origin.example.com..", "-a.example.com", "a" * 64 + ".example.com",
    "a." * 126 + "example", "*.example.com", "*", "or\u0131gin.example.com", "\u03bfrigin.example.com",
    "origin.example.com\u200b", "ORIGIN.example.com\u3002", "xn--", "%6c", "origin.example.com%2eevil.example.net",
    "origin.example.com\t", "or\u00adigin.example.com", "metadata.example.com.", "user@origin.example.com",
    "user:pw@metadata.example.com", "origin.example.com:80@127.0.0.1", "@127.0.0.1", "",
    "origin.example.com/../metadata.example.com", "origin.example.com?@127.0.0.1", "origin.example.com#127.0.0.1",
    "origin.example.com\\@127.0.0.1", "xn--localhost-", "0", "0x0", "00.0.0.0", "4294967295", "18446744073709551617",
]  # fmt: skip


@pytest.mark.parametrize("host", ADDRESSES)
async def test_address_in_another_form_is_refused(world: Internet, anywhere: Proxy, host: str) -> None:
    """By CONNECT, in absolute form and as a name of SOCKS5, however the IPv4 address is put into it."""
    before = len(world.requests())
    plain = f"GET http://[{host}]/ HTTP/1.1\r\nHost: [{host}]\r\n\r\n".encode()
    for sent in (connect(f"[{host}]"), plain):
        assert (await anywhere.ask(sent)).split(b" ")[1] in (b"400", b"403", b"502")
    assert (await anywhere.ask(socks(host.encode())))[3] != 0
    assert len(world.requests()) == before


@pytest.mark.parametrize("host", NAMES)
async def test_name_that_is_not_one_or_is_another_s_is_refused(
    world: Internet, anywhere: Proxy, narrow: Proxy, host: str
) -> None:
    """Numbers, dots, look-alikes of other scripts, what URLs have beside a host; with a wide and a narrow policy."""
    before = len(world.requests())
    plain = f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for proxy in (anywhere, narrow):
        for sent in (connect(host), plain):
            answer = await proxy.ask(sent)
            assert answer.split(b" ")[1] in (b"400", b"403", b"404", b"502"), answer
        if len(host.encode()) < 256:
            assert (await proxy.ask(socks(host.encode())))[3] != 0
    asked = world.requests()[before:]
    assert not asked


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [("origin.example.com.", True), ("ORIGIN.Example.COM", True), ("below.example.com", False),
     ("a.below.example.com", True), ("a.b.below.example.com", True), ("xbelow.example.com", False),
     ("a.below.example.com.evil.example.net", False), ("*.below.example.com", False), (".below.example.com", False),
     ("a.below.example.comx", False), ("xn--bcher-kva.below.example.com", True), ("below.example.com.", False)],
)  # fmt: skip
async def test_wildcard_is_what_is_below_and_nothing_beside(narrow: Proxy, host: str, is_allowed: bool) -> None:
    """Where a name is allowed and has no address, that is another answer (502) than a refusal (403)."""
    answer = await narrow.ask(connect(host))
    assert answer.split(b" ")[1] == (b"200" if "rigin" in host.lower() else b"502" if is_allowed else b"403"), answer


@pytest.mark.parametrize("name", ["multi", "chain", "loop", "mixed", "flood"])
async def test_name_with_several_addresses_or_aliases(world: Internet, anywhere: Proxy, name: str) -> None:
    """Aliases of aliases that end inside, closed addresses among open ones, a hundred of them: only open ones hear."""
    before = len(world.requests())
    for _ in range(3):
        host = f"{name}.aliases.example.com"
        await anywhere.ask(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert {each["address"] for each in world.requests()[before:]} <= {PUBLIC}
    if name in ("multi", "mixed", "flood"):
        assert len(world.requests()) > before


@pytest.mark.parametrize(
    "name",
    [b"\0", b"origin.example.com\0.evil.example.net", b"a" * 255, b"\xff" * 255, b"a.b." * 63 + b"abc", b"", b"\n",
     b"127.0.0.1\0origin.example.com", b"origin.example.com:80", b"[::1]", b"origin.example.com/"],
)  # fmt: skip
async def test_socks_name_of_any_bytes(world: Internet, anywhere: Proxy, narrow: Proxy, name: bytes) -> None:
    """Its length is one byte, so 255 of them at most: none is cut, completed or read up to a NUL."""
    before = len(world.requests())
    for proxy in (anywhere, narrow):
        answer = await proxy.ask(socks(name), then=b"GET / HTTP/1.1\r\nHost: origin.example.com\r\n\r\n")
        assert answer[:2] == b"\x05\x00"
        assert answer[3] in (2, 4), answer
    assert len(world.requests()) == before


# Requests behind requests.


async def test_host_of_connect_opens_nothing(world: Internet, narrow: Proxy) -> None:
    """What CONNECT names counts, in whichever order and number Hosts follow."""
    before = len(world.requests())
    for host in ("metadata.example.com", "other.example.com:80", f"{HOST}:80"):
        assert b" 403 " in await narrow.ask(f"CONNECT other.example.com:80 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        inner = f"GET /inner HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        asked = f"CONNECT {HOST}:80 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        await narrow.ask(asked, then=inner)
    assert {(each["address"], each["path"]) for each in world.requests()[before:]} == {(PUBLIC, "/inner")}
    assert len(world.requests()) == before + 1


@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_second_request_of_a_connection_goes_nowhere(world: Internet, anywhere: Proxy, pieces: int) -> None:
    """Pipelined to the same host, to another, and in another form: one request in clear has one connection."""
    first = f"GET http://{HOST}/first HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    for second in (first, first.replace(b"origin", b"other"), connect("other.example.com"), b"\x05\x01\x00"):
        before = len(world.requests())
        answer = await anywhere.ask(first + second.replace(b"/first", b"/second"), pieces=pieces)
        assert answer.count(b"HTTP/1.1 200") == 1
        assert b"connection: close" in answer.lower()
        assert [each["path"] for each in world.requests()[before:]] == ["/first"]


SMUGGLED = {
    "a tab before chunked": "Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n",
    "chunked in capitals and a length": "Transfer-Encoding: CHUNKED\r\nContent-Length: 5\r\n",
    "identity": "Transfer-Encoding: identity\r\nContent-Length: 5\r\n",
    "gzip, chunked": "Transfer-Encoding: gzip, chunked\r\n",
    "chunked in two fields": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "a quoted coding": 'Transfer-Encoding: "chunked"\r\n',
    "a vertical tab": "Transfer-Encoding: \x0bchunked\r\n",
    "a NUL in the name": "Transfer\0-Encoding: chunked\r\n",
    "a negative length": "Content-Length: -1\r\n",
    "a length in hexadecimal": "Content-Length: 0x5\r\n",
    "a huge length": "Content-Length: 99999999999999999999\r\n",
    "an underscore and a length": "Content-Length: 5\r\nContent-Length: 5\r\n",
    "a bare CR": "X-A: b\rTransfer-Encoding: chunked\r\n",
    "a folded coding": "Transfer-Encoding:\r\n chunked\r\n",
}
CHUNKS = ["0x5\r\nhello\r\n0\r\n\r\n", "5\nhello\n0\n\n", "FFFFFFFFFFFFFFFFF\r\nhello", "-1\r\n",
          "5\r\nhelloX0\r\n\r\n", "\r\n5\r\nhello\r\n0\r\n\r\n"]  # fmt: skip
ODD_CHUNKS = ["5 \r\nhello\r\n0\r\n\r\n", "5;a=\x00\r\nhello\r\n0\r\n\r\n", "005\r\nhello\r\n0\r\nX: y\r\n\r\n"]


@pytest.mark.parametrize("fields", SMUGGLED.values(), ids=SMUGGLED)
async def test_body_with_two_readings_is_not_passed_on_where_tls_is_ended(
    world: Internet, keyed: Proxy, fields: str
) -> None:
    """Neither it nor what follows: the origin, which would get the key with it, sees nothing."""
    before = len(world.requests())
    sent = f"POST /x HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n5\r\nhello\r\n0\r\n\r\n"
    behind = f"GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    answer = await keyed.fetch(f"{HOST}:443", (sent + behind).encode("latin-1"))
    assert answer.split(b" ")[1:2] in ([], [b"400"]), answer
    assert len(world.requests()) == before


@pytest.mark.parametrize("body", CHUNKS)
async def test_chunks_with_two_readings_end_the_connection(world: Internet, keyed: Proxy, body: str) -> None:
    """Their head is in order, so the request may have begun; nothing behind it is a request."""
    before = len(world.requests())
    head = f"POST /x HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
    behind = f"GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    await keyed.fetch(f"{HOST}:443", (head + body + behind).encode("latin-1"))
    assert "/smuggled" not in json.dumps(world.requests()[before:])


@pytest.mark.parametrize("body", ODD_CHUNKS)
async def test_oddly_written_chunks_reach_the_origin_in_one_reading(world: Internet, keyed: Proxy, body: str) -> None:
    """What is read leniently is written anew, so the origin finds the end of a body where it was found here."""
    before = len(world.requests())
    head = f"POST /x HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
    behind = "GET /behind HTTP/1.1\r\nHost: other.example.com\r\n\r\n"
    await keyed.fetch(f"{HOST}:443", (head + body + behind).encode("latin-1"))
    assert [(each["path"], each["body"]) for each in world.requests()[before:]] in ([("/x", 5)], [])


# Credentials.


async def test_redirects_that_come_back_carry_the_key_to_its_host_alone(world: Internet, keyed: Proxy) -> None:
    """From its host to another, to one in clear, to metadata, and back: a client that follows all of them."""
    before = len(world.requests())
    chain = [("other.example.com:443", "/a"), (f"{HOST}:443", "/b"), ("third.example.net:443", "/c")]
    for target, path in chain:
        host = target.partition(":")[0]
        more = f"X-Key: {HOLDER}\r\nAuthorization: Basic {base64.b64encode(HOLDER.encode()).decode()}\r\n"
        sent = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n".encode()
        answer = await keyed.fetch(target, sent)
        assert VALUE.encode() not in answer
    plain = f"GET http://{HOST}/d HTTP/1.1\r\nHost: {HOST}\r\nX-Key: {HOLDER}\r\n\r\n".encode()
    await keyed.ask(plain)
    assert b" 403 " in await keyed.ask(connect(METADATA, 443))
    seen = [each["path"] for each in world.requests()[before:] if VALUE in json.dumps(each)]
    assert seen == ["/b"]
    assert len(world.requests()) == before + 4


async def test_parts_of_an_answer_show_no_value(world: Internet, keyed: Proxy) -> None:
    """Range and its kin are dropped, so that no answer is too short for the value to be found in it."""
    before = len(world.requests())
    for fields in ("Range: bytes=0-3\r\n", "range:bytes=1-2,4-5\r\nIf-Range: x\r\n", "Accept-Encoding: br\r\n"):
        sent = f"GET /x HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n".encode()
        answer = await keyed.fetch(f"{HOST}:443", sent)
        assert b" 200 " in answer.partition(b"\r\n")[0]
        assert VALUE.encode() not in answer
    kept = {name for each in world.requests()[before:] for name, _ in each["headers"]}
    assert not kept & {"range", "if-range"}


async def test_websocket_shows_no_value_however_it_is_cut(keyed: Proxy) -> None:
    """An origin that echoes the value byte by byte over frames of its own.

    All but three bytes of it: what begins like that is too much else to be held back.
    """
    fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    async with keyed.secure(f"{HOST}:443") as (reader, writer):
        writer.write(f"GET /switch HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n".encode())
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        for byte in VALUE.encode() + b".":
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        echoed = await reader.readexactly(len(VALUE) + 1)
    assert echoed[3:] == b"*" * (len(VALUE) - 3) + b"."


# Patience and size.


async def test_heads_without_end_are_refused(world: Internet, anywhere: Proxy, keyed: Proxy) -> None:
    """One field, many fields, a long path; in clear, in a tunnel and where TLS is ended."""
    before = len(world.requests())
    long = {"a field": "X-A: " + "b" * 70_000, "fields": "\r\n".join(f"X-{n}: b" for n in range(400)),
            "no end": "X-A: b\r\n" * 20_000}  # fmt: skip
    for fields in long.values():
        plain = f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n".encode()
        assert b" 431 " in (await anywhere.ask(plain)).partition(b"\r\n")[0]
        inner = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n".encode()
        assert b" 403 " in (await anywhere.ask(connect(HOST), then=inner)).partition(b"\r\n\r\n")[2]
        # The alert or the answer, whichever the kernel lets through before it resets what was left unread.
        assert (await keyed.fetch(f"{HOST}:443", inner)).split(b" ")[1:2] in ([], [b"431"])
    assert len(world.requests()) == before


async def test_slow_clients_and_half_open_connections_leave_room_for_others(
    world: Internet, kept_gate: EgressGate
) -> None:
    """500 that have shut down one side, read nothing of a large answer, or send a byte now and then."""
    async with (
        open_proxy(kept_gate, HOST, session="slow") as slow,
        open_proxy(kept_gate, HOST, session="other") as other,
    ):
        held: list[asyncio.StreamWriter] = []
        request = f"GET http://{HOST}/bytes/50000000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        try:
            for number in range(500):
                reader, writer = await slow.connect()
                held.append(writer)
                if number % 3 == 0:
                    writer.write(connect(HOST, 443)[:-2])
                    writer.write_eof()
                elif number % 3 == 1:
                    reader._transport.pause_reading()  # type: ignore[attr-defined]
                    writer.write(request if number < 60 else request[:-2])
                else:
                    writer.write(b"GET http://")
            for _ in range(3):
                for writer in held[2::3]:
                    writer.write(b"o")
                asked = f"GET http://{HOST}/beside HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
                async with asyncio.timeout(LIMIT_S):
                    assert b" 200 " in await other.ask(asked)
        finally:
            for writer in held:
                writer.transport.abort()


# The package cache.


async def test_cache_takes_no_bomb_and_no_other_file_s_content(world: Internet, tmp_path: Path) -> None:
    """Compressed, of another digest, of another project: passed on as it is, and not kept as what it is not."""
    files = "files.pythonhosted.org"
    digest = "ab" * 32
    poisoned = f"packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/other_project-1.0-py3-none-any.whl"
    bomb = "packages/bomb/bomb-1.0.tar.gz"
    for name, content in ((poisoned, b"of another"), (bomb, gzip.compress(bytes(20 << 20)))):
        (world.files / name).parent.mkdir(parents=True, exist_ok=True)
        (world.files / name).write_bytes(content)
    gate = EgressGate(
        wrapper=world.enter, authority=tmp_path / "egress", trusted=world.ca, cache=(tmp_path / "cache", 1_000_000, 1)
    )
    gate.bundle(0.0)
    asked = "GET /{} HTTP/1.1\r\nHost: " + files + "\r\nConnection: close\r\n\r\n"
    async with open_proxy(gate, "pypi") as proxy:
        for _ in range(2):
            answer = await proxy.fetch(f"{files}:443", asked.format(poisoned).encode())
            assert answer.endswith(b"of another")
            assert b"X-Wakegate-Egress: cached" not in answer
            answer = await proxy.fetch(f"{files}:443", asked.format(bomb).encode())
            assert len(answer) < 1 << 20  # as it is on the wire: nothing here unpacks it
        for path in (poisoned.replace("other", "Other"), f"./{poisoned}", f"{poisoned}?x", f"{poisoned}%00"):
            answer = await proxy.fetch(f"{files}:443", asked.format(path).encode())
            assert b"X-Wakegate-Egress: cached" not in answer
    await gate.aclose()
    assert sum(each.stat().st_size for each in (tmp_path / "cache" / "kept").iterdir()) < 1_000_000
    assert b"of another" not in [each.read_bytes() for each in (tmp_path / "cache" / "kept").iterdir()]
