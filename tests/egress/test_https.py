"""HTTPS whose TLS ends in the service: credentials, methods and paths, and attacks on both, of which none succeeds."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from gateway.core.model import Secret
from gateway.egress.authority import Authority, ensure_authority
from gateway.egress.credentials import placeholder_of
from gateway.egress.gate import EgressGate
from gateway.egress.log import Access, Outcome
from tests.support.egress import Proxy, open_proxy
from tests.support.internet import Internet
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

VALUE = "sk-live-7Qx/9+aV3nT0pLz"
HOST = "origin.example.com"
RUNTIME = "code-interpreters/default/one"
HOLDER = placeholder_of(RUNTIME, "KEY")
WORLD = ("any", "origin.example.com:*")


@pytest.fixture
async def proxy(gate: EgressGate, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A sandbox that may reach everything, and whose requests to one host get a key."""
    (tmp_path / "key").write_text(VALUE + "\n")
    secrets = (Secret("KEY", (HOST,), "header", "X-Key", file=str(tmp_path / "key")),)
    async with open_proxy(gate, *WORLD, runtime=RUNTIME, secrets=secrets) as made:
        yield made


def request(path: str = "/x", method: str = "GET", host: str = HOST, more: str = "", body: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n{body}".encode()


def values_seen(world: Internet, since: int) -> list[dict[str, Any]]:
    return [each for each in world.requests()[since:] if VALUE in json.dumps(each)]


def fields_of(seen: dict[str, Any], name: str) -> list[str]:
    return [value for other, value in seen["headers"] if other == name]


def ended(answer: bytes) -> bytes:
    """The status of an answer."""
    return answer.partition(b"\r\n")[0]


async def test_origin_gets_the_value_and_code_does_not(world: Internet, gate: EgressGate, proxy: Proxy) -> None:
    """Three requests on one connection, with a body and chunks: each has the key at the origin, no answer has it."""
    before = len(world.requests())
    lines: list[Access] = []
    gate.on_line(lines.append)
    trust = gate.bundle(time.time()).decode()
    answer = await proxy.fetch(
        f"{HOST}:443",
        request(more=f"X-Key: own\r\nX-Other: {HOLDER}\r\nAccept-Encoding: gzip\r\n"),
        request("/y", "POST", more="Content-Length: 5\r\n", body="hello"),
        request("/z", "POST", more="Transfer-Encoding: chunked\r\nConnection: close\r\n", body="3\r\nabc\r\n0\r\n\r\n"),
        trust=trust,
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 3, answer
    assert VALUE.encode() not in answer
    assert b"*" * len(VALUE) in answer
    seen = values_seen(world, before)
    assert [(each["method"], each["path"], each["body"]) for each in seen] == [
        ("GET", "/x", 0), ("POST", "/y", 5), ("POST", "/z", 3),
    ]  # fmt: skip
    assert all(fields_of(each, "x-key") == [VALUE] for each in seen)
    assert fields_of(seen[0], "x-other") == [VALUE]
    assert fields_of(seen[0], "accept-encoding") == ["identity"]
    await eventually(lambda: lines and lines[-1].outcome is Outcome.CLOSED, "its line is written")
    assert (lines[-1].requests, lines[-1].secrets) == (3, "KEY")
    assert VALUE not in str(lines)


async def test_certificate_is_of_the_host_and_of_this_gateway_alone(
    gate: EgressGate, proxy: Proxy, tmp_path: Path
) -> None:
    """Good by the bundle of sandboxes; not by the machine's authorities. Other hosts keep their own."""
    trust = gate.bundle(time.time()).decode()
    async with proxy.secure(f"{HOST}:443", trust=trust) as (_, writer):
        made = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [HOST]
        assert (made.not_valid_after_utc - made.not_valid_before_utc).days <= 8
        assert "Wakegate egress" in made.issuer.rfc4514_string()
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
    async with proxy.secure("other.example.com:443", trust=trust) as (_, writer):
        other = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        assert "Wakegate" not in other.issuer.rfc4514_string()
    with pytest.raises(ssl.SSLCertVerificationError):
        async with proxy.secure(f"{HOST}:443", trust=ensure_authority(tmp_path / "stranger", time.time()).decode()):
            pass


def test_authority_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    """A second start has the same; a key that is gone, or does not fit, makes another."""
    first = ensure_authority(tmp_path / "a", time.time())
    assert ensure_authority(tmp_path / "a", time.time()) == first
    assert ((tmp_path / "a" / "authority.key").stat().st_mode & 0o777) == 0o600
    assert ((tmp_path / "a").stat().st_mode & 0o777) == 0o700
    assert ensure_authority(tmp_path / "a", time.time() + 4.5 * 365 * 86400) != first
    other = ensure_authority(tmp_path / "b", time.time())
    (tmp_path / "b" / "authority.key").write_bytes((tmp_path / "a" / "authority.key").read_bytes())
    assert ensure_authority(tmp_path / "b", time.time()) != other
    made = Authority(tmp_path / "b")
    for number in range(300):
        made.context(f"h{number}.example.com", time.time())
    assert len(made._contexts) == 256


# Attacks.

SMUGGLED = {
    "another Host": request(host="other.example.com"),
    "no Host": b"GET /x HTTP/1.1\r\n\r\n",
    "two Hosts": request(more="Host: other.example.com\r\n"),
    "Host with another port": request(host=f"{HOST}:8443"),
    "a whole URL": request("https://other.example.com/x"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 30,
    "a length and chunks": request("/x", "POST", more="Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                                   body="0\r\n\r\nGET /smuggled HTTP/1.1\r\n"),
    "two lengths": request("/x", "POST", more="Content-Length: 0\r\nContent-Length: 40\r\n", body="GET /smuggled"),
    "two lengths in one": request("/x", "POST", more="Content-Length: 0, 40\r\n", body="GET /smuggled"),
    "a folded field": request(more="X-A: b\r\n Content-Length: 9\r\n"),
    "a space before the colon": request("/x", "POST", more="Content-Length : 40\r\n", body="GET /smuggled"),
    "chunks of another name": request("/x", "POST", more="Transfer-Encoding: xchunked\r\n", body="0\r\n\r\nGET /smug"),
    "chunks twice": request("/x", "POST", more="Transfer-Encoding: chunked, chunked\r\n", body="0\r\n\r\nGET /s"),
    "chunks in HTTP/1.0": b"POST /x HTTP/1.0\r\nHost: origin.example.com\r\nTransfer-Encoding: chunked\r\n\r\n",
    "bare line feeds": b"GET /x HTTP/1.1\nHost: origin.example.com\n\n",
    "a NUL in a field": request(more="X-A: b\0c\r\n"),
    "a size that is none": request("/x", "POST", more="Transfer-Encoding: chunked\r\n", body="+3\r\nabc\r\n0\r\n\r\n"),
    "TRACE": request("/x", "TRACE"),
    "CONNECT": request("other.example.com:443", "CONNECT"),
    "HTTP/0.9": b"GET /x\r\n\r\n",
    "HTTP in clear in TLS' place": b"",
}  # fmt: skip


@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED)
@pytest.mark.parametrize("pieces", [1, 4])
async def test_ambiguous_request_is_not_passed_on(world: Internet, proxy: Proxy, sent: bytes, pieces: int) -> None:
    """None of it reaches an origin, with a credential or without; a good request behind it does not either."""
    before = len(world.requests())
    answer = await proxy.fetch(f"{HOST}:443", sent + request("/after"), pieces=pieces)
    seen = world.requests()[before:]
    if sent:
        assert not [each for each in seen if each["path"] != "/x"], seen
        assert ended(answer).split(b" ")[1:2] in ([], [b"400"], [b"421"], [b"505"]), answer
    if b"+3" not in sent:  # its head is in order, and its body breaks off
        assert len(seen) == (0 if sent else 1)


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: origin.example.com\r\n\r\n", b"SSH-2.0-x\r\n", b"\0\1\2", b"PRI *"]
)
async def test_only_tls_goes_where_tls_is_ended(world: Internet, proxy: Proxy, first: bytes) -> None:
    before = len(world.requests())
    assert await proxy.ask(f"CONNECT {HOST}:443 HTTP/1.1\r\n\r\n".encode(), then=first) == (
        b"HTTP/1.1 200 Connection established\r\n\r\n"
    )
    assert len(world.requests()) == before


@pytest.mark.parametrize("name", ["other.example.com", "", "origin.example.com.evil.net"])
async def test_hello_for_another_host_gets_no_certificate(world: Internet, proxy: Proxy, name: str) -> None:
    """SNI that differs from the name of CONNECT; by its address the host is another one, which gets no key."""
    before = len(world.requests())
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with proxy.secure(f"{HOST}:443", name=name):
            pass
    await proxy.fetch("93.184.216.34:443", request(more="Connection: close\r\n"))
    assert values_seen(world, before) == []


async def test_redirect_does_not_carry_the_credential(world: Internet, proxy: Proxy) -> None:
    """A client that follows sends its placeholder to the other host, which gets just that."""
    before = len(world.requests())
    answer = await proxy.fetch(
        f"{HOST}:443", request("/redirect?https://other.example.com/got", more="Connection: close\r\n")
    )
    assert b"302" in ended(answer)
    followed = request("/got", host="other.example.com", more=f"X-Key: {HOLDER}\r\nConnection: close\r\n")
    assert b"200" in ended(await proxy.fetch("other.example.com:443", followed))
    seen = world.requests()[before:]
    assert [each["path"] for each in values_seen(world, before)] == ["/redirect?https://other.example.com/got"]
    assert fields_of(seen[-1], "x-key") == [HOLDER]


async def test_placeholder_means_nothing_elsewhere(world: Internet, proxy: Proxy) -> None:
    """In the URL and the body to the host itself, in all of a request to another one, and in clear."""
    before = len(world.requests())
    sent = request(f"/{HOLDER}?k={HOLDER}", "POST", more="Content-Length: 40\r\nConnection: close\r\n", body=HOLDER)
    answer = await proxy.fetch(f"{HOST}:443", sent)
    assert VALUE.encode() not in answer
    assert world.requests()[-1]["path"] == f"/{HOLDER}?k={HOLDER}"
    other = sent.replace(HOST.encode(), b"other.example.com")
    await proxy.fetch("other.example.com:443", other)
    plain = f"GET http://{HOST}/{HOLDER} HTTP/1.1\r\nHost: {HOST}\r\nX-Key: {HOLDER}\r\n\r\n"
    await proxy.ask(plain.encode())
    assert [each["port"] for each in values_seen(world, before)] == [443]
    assert len(world.requests()) == before + 3


async def test_placeholder_of_another_sessions_runtime_means_nothing(
    world: Internet, gate: EgressGate, proxy: Proxy
) -> None:
    """A session without a secret, or with another of the same name, sends the first one's placeholder."""
    before = len(world.requests())
    sent = request(more=f"X-Key: {HOLDER}\r\nConnection: close\r\n")
    async with open_proxy(gate, *WORLD, session="two", runtime="code-interpreters/default/two") as plain:
        await plain.fetch(f"{HOST}:443", sent)
    secrets = (Secret("KEY", (HOST,), env="HOME_OF_TESTS"),)
    async with open_proxy(
        gate, *WORLD, session="three", runtime="code-interpreters/default/three", secrets=secrets
    ) as unread:
        assert b"502" in ended(await unread.fetch(f"{HOST}:443", sent))
    assert values_seen(world, before) == []
    assert [fields_of(each, "x-key") for each in world.requests()[before:]] == [[HOLDER]]


@pytest.mark.parametrize(("port", "reason"), [(8443, b"self-signed"), (8444, b"mismatch"), (8445, b"expired")])
async def test_origin_that_cannot_prove_itself_gets_nothing(
    world: Internet, gate: EgressGate, tmp_path: Path, port: int, reason: bytes
) -> None:
    """Of an unknown authority, for another name, expired: the answer says so, and the origin sees no request."""
    before = len(world.requests())
    (tmp_path / "key").write_text(VALUE)
    secrets = (Secret("KEY", (f"{HOST}:{port}",), "bearer", file=str(tmp_path / "key")),)
    async with open_proxy(gate, *WORLD, runtime=RUNTIME, secrets=secrets) as made:
        answer = await made.fetch(f"{HOST}:{port}", request(host=f"{HOST}:{port}"))
        assert b"502" in ended(answer), answer
        assert reason in answer
    assert len(world.requests()) == before


async def test_answer_that_cannot_be_looked_at_is_not_passed_on(world: Internet, proxy: Proxy) -> None:
    """Compressed although it was asked not to be."""
    before = len(world.requests())
    answer = await proxy.fetch(f"{HOST}:443", request("/gzip"))
    assert answer == b""
    assert len(values_seen(world, before)) == 1


async def test_websocket_passes_and_is_masked(world: Internet, proxy: Proxy) -> None:
    """After the change of protocol bytes go both ways; what the server says is still looked at. h2c is not offered."""
    more = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
    async with proxy.secure(f"{HOST}:443") as (reader, writer):
        writer.write(request("/switch", more=more))
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        writer.write(b"two " + VALUE.encode())
        assert await reader.readexactly(4 + len(VALUE)) == b"two " + b"*" * len(VALUE)
    assert not fields_of(world.requests()[-1], "sec-websocket-extensions")
    await proxy.fetch(
        f"{HOST}:443", request(more="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n")
    )
    assert not fields_of(world.requests()[-1], "upgrade")


async def test_methods_and_paths_bound_https(world: Internet, gate: EgressGate) -> None:
    """An entry with methods and paths ends TLS by itself; each request of a connection is decided about."""
    entry = {"host": HOST, "methods": ["GET"], "paths": ["/public/"]}
    before = len(world.requests())
    lines: list[Access] = []
    gate.on_line(lines.append)
    async with open_proxy(gate, entry) as made:
        good = request("/public/a", more="X-A: b\r\n")
        for wrong in (request("/private"), request("/public/../private"), request("/public/%2e%2e/private"),
                      request("/public/a", "POST", more="Content-Length: 0\r\n"), request("*", "OPTIONS")):  # fmt: skip
            answer = await made.fetch(f"{HOST}:443", good, wrong, request("/public/after"))
            assert answer.count(b"HTTP/1.1 ") == 2, answer
            assert b" 403 " in answer
            assert b"egress refused" in answer
    assert {each["path"] for each in world.requests()[before:]} == {"/public/a"}
    await eventually(lambda: [each.outcome for each in lines].count(Outcome.CUT) == 5, "each refusal is a line")
    assert "/private" in "".join(line.reason for line in lines)


async def test_requests_follow_each_other_at_once_on_a_connection(world: Internet, proxy: Proxy) -> None:
    """Each is sent the moment the answer before it is there, which is while the service ends that exchange."""
    before = len(world.requests())
    async with proxy.secure(f"{HOST}:443") as (reader, writer):
        for number in range(300):
            writer.write(request(f"/{number}"))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
    assert [each["path"] for each in world.requests()[before:]] == [f"/{number}" for number in range(300)]


async def test_large_bodies_go_whole_both_ways(world: Internet, proxy: Proxy) -> None:
    """20 MB down and 5 MB up, through both ends of TLS."""
    async with proxy.secure(f"{HOST}:443") as (reader, writer):
        writer.write(request("/bytes/20000000"))
        await reader.readuntil(b"\r\n\r\n")
        assert len(await reader.readexactly(20_000_000)) == 20_000_000
        writer.write(request("/up", "POST", more="Content-Length: 5000000\r\n") + b"x" * 5_000_000)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        assert json.loads(await reader.readuntil(b"}"))["body"] == 5_000_000
