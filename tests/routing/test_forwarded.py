"""Whose word is taken on where a request began, and what a sandbox, a link and the log then hear."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.clock import SystemClock
from gateway.core.identity import ANONYMOUS
from gateway.core.proxies import node_address, read_proxies
from gateway.identity.peers import PeerSigner
from gateway.identity.shared_secret import SharedSecret
from gateway.routing.forwarded import MAX_ENTRIES, read_forwarded
from tests.support.scripted import Message, OpenScripted, get

ON_UVLOOP = True
LOOPBACK = "127.0.0.0/8"
PROXIES = read_proxies("127.0.0.0/8, 10.0.0.0/8, fd00::/8")


def told(seen: Message) -> tuple[str | None, ...]:
    """What the sandbox was sent; each field once, which `get` asserts."""
    return tuple(seen.get(name) for name in ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded"))


def lines(text: str) -> dict[bytes, list[bytes]]:
    """Header lines as claims."""
    claims: dict[bytes, list[bytes]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        claims.setdefault(name.encode(), []).append(value.encode("latin-1"))
    return claims


async def test_chain_of_trusted_proxies_is_kept_and_extended(open_gateway: OpenScripted) -> None:
    """As nginx writes it behind a load balancer: client, balancer, and the address that dialled us; on both paths."""
    gateway, sandbox = await open_gateway(trusted_proxies=f"{LOOPBACK},10.0.0.0/8")
    session = await gateway.session()
    chain = "x-forwarded-for: 203.0.113.9, 10.0.0.2\nx-forwarded-proto: https\nx-forwarded-host: gate.example\n"
    for _ in range(2):
        assert (await gateway.ask(get(session, "/", chain))).status == 421, "the host that the client meant is judged"
    gateway, sandbox = await open_gateway(trusted_proxies=f"{LOOPBACK},10.0.0.0/8", allowed_hosts="gate.example")
    session = await gateway.session()
    for _ in range(2):
        assert (await gateway.ask(get(session, "/", chain))).status == 200
        assert told(sandbox.requests[-1]) == (
            "203.0.113.9, 10.0.0.2, 127.0.0.1",
            "gate.example",
            "https",
            'for=203.0.113.9;host="gate.example";proto=https, for=10.0.0.2, for=127.0.0.1',
        )


@pytest.mark.parametrize("setting", ["", "10.0.0.0/8,fd00::/8,127.0.0.2"])
async def test_forwarding_fields_of_untrusted_senders_are_overwritten(open_gateway: OpenScripted, setting: str) -> None:
    """The sandbox hears our own observation alone, whatever a client sent and however often."""
    gateway, sandbox = await open_gateway(trusted_proxies=setting)
    session = await gateway.session()
    spoofed = "x-forwarded-for: 1.1.1.1\nx-forwarded-for: 10.0.0.1\nx-forwarded-host: evil\nx-forwarded-proto: https\n"
    for extra in (spoofed, spoofed + "forwarded: for=1.1.1.1;host=evil;proto=https\n", "forwarded: for=1.1.1.1\n"):
        await gateway.ask(get(session, "/", extra))
        assert told(sandbox.requests[-1]) == ("127.0.0.1", "h", "http", 'for=127.0.0.1;host="h";proto=http')


async def test_origin_is_compared_with_the_host_that_a_trusted_proxy_names(open_gateway: OpenScripted) -> None:
    """Behind a proxy that rewrites Host the gateway's own pages are known; a spoofed host permits nothing."""
    page = "origin: https://gate.example\nx-forwarded-host: gate.example\nx-forwarded-proto: https\n"
    for setting, status in ((LOOPBACK, 200), ("10.0.0.0/8", 403)):
        gateway, sandbox = await open_gateway(trusted_proxies=setting, allowed_hosts="h,gate.example")
        session = await gateway.session()
        assert (await gateway.ask(get(session, "/", page))).status == status
        if status == 200:
            assert sandbox.requests[-1].get("origin") == f"http://127.0.0.1:{sandbox.endpoint.port}"


async def test_foreign_origin_is_refused_behind_a_trusted_proxy_too(open_gateway: OpenScripted) -> None:
    """Also one that names the Host which the proxy made up for us."""
    gateway, _ = await open_gateway(trusted_proxies=LOOPBACK, allowed_hosts="gate.example,h")
    session = await gateway.session()
    for origin in ("http://evil.example", "http://h"):
        page = f"origin: {origin}\nx-forwarded-host: gate.example\n"
        assert (await gateway.ask(get(session, "/", page))).json["code"] == "ORIGIN_NOT_ALLOWED"


async def test_websocket_carries_the_same(open_gateway: OpenScripted) -> None:
    """Its handshake goes through the same reading."""
    gateway, sandbox = await open_gateway(trusted_proxies=LOOPBACK)
    session = await gateway.session()
    asked = "connection: upgrade\nupgrade: websocket\nsec-websocket-version: 13\n"
    asked += (
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\nx-forwarded-for: [2001:db8::7]:4711\nx-forwarded-proto: wss\n"
    )
    await gateway.ask(get(session, "/", asked))
    assert told(sandbox.requests[-1]) == (
        "2001:db8::7, 127.0.0.1", "h", "https", 'for="[2001:db8::7]";host="h";proto=https, for=127.0.0.1'
    )  # fmt: skip


async def test_gateway_passes_on_what_another_gateway_found(open_gateway: OpenScripted) -> None:
    """The gateway between is no proxy of the client's: the chain ends before it, and its own pages stay its own."""
    gateway, sandbox = await open_gateway(trusted_proxies=f"{LOOPBACK},10.0.0.0/8", allowed_hosts="gate.example,h")
    session = await gateway.session()
    gateway.gateway.access.peers = signer = PeerSigner(SystemClock())
    signer.open(SharedSecret(b"secret"))
    sent = (
        f"x-wakegate-hops: 1\nx-wakegate-peer: {signer.sign(ANONYMOUS, 'GET', b'/').decode()}\n"
        "origin: http://h\nx-forwarded-for: 203.0.113.9, 10.0.0.2\nx-forwarded-proto: https\n"
        'x-forwarded-host: gate.example\nforwarded: for=203.0.113.9;host="gate.example";proto=https, for=10.0.0.2\n'
    )
    answer = await gateway.ask(get(session, "/", sent))
    assert answer.status == 200
    assert told(sandbox.requests[-1]) == (
        "203.0.113.9, 10.0.0.2",
        "gate.example",
        "https",
        'for=203.0.113.9;host="gate.example";proto=https, for=10.0.0.2',
    )


@pytest.mark.parametrize(
    ("claims", "client", "chain"),
    [
        ("x-forwarded-for: 203.0.113.9", "203.0.113.9", "203.0.113.9 10.9.9.9"),
        ("x-forwarded-for: 1.1.1.1, 203.0.113.9, 10.0.0.2", "203.0.113.9", "203.0.113.9 10.0.0.2 10.9.9.9"),
        ("x-forwarded-for: 1.1.1.1\nx-forwarded-for: 203.0.113.9\nx-forwarded-for: 10.0.0.2", "203.0.113.9",
         "203.0.113.9 10.0.0.2 10.9.9.9"),
        ("x-forwarded-for: 10.0.0.5, 10.0.0.2", "10.0.0.5", "10.0.0.5 10.0.0.2 10.9.9.9"),
        ("x-forwarded-for: 203.0.113.9:4711", "203.0.113.9", "203.0.113.9 10.9.9.9"),
        ("x-forwarded-for: [2001:DB8::1]:4711, [fd00::1]", "2001:db8::1", "2001:db8::1 fd00::1 10.9.9.9"),
        ("x-forwarded-for: 2001:db8::1", "2001:db8::1", "2001:db8::1 10.9.9.9"),
        ("x-forwarded-for: ::ffff:10.0.0.7", "10.0.0.7", "10.0.0.7 10.9.9.9"),
        ("x-forwarded-for: 1.1.1.1, unknown, 10.0.0.2", "10.0.0.2", "unknown 10.0.0.2 10.9.9.9"),
        ("x-forwarded-for: 1.1.1.1, _hidden", "10.9.9.9", "unknown 10.9.9.9"),
        ("x-forwarded-for: 1.1.1.1, <script>", "10.9.9.9", "unknown 10.9.9.9"),
        ("x-forwarded-for: fe80::1%eth0", "10.9.9.9", "unknown 10.9.9.9"),
        ("x-forwarded-for: , ,203.0.113.9,,", "203.0.113.9", "203.0.113.9 10.9.9.9"),
        ("x-forwarded-for: ", "10.9.9.9", "10.9.9.9"),
        ("forwarded: for=1.1.1.1, For=\"[2001:db8::1]:80\";proto=http;by=10.0.0.9, for=10.0.0.2", "2001:db8::1",
         "2001:db8::1 10.0.0.2 10.9.9.9"),
        ("forwarded: for=203.0.113.9\nforwarded: for=10.0.0.2", "203.0.113.9", "203.0.113.9 10.0.0.2 10.9.9.9"),
        ("forwarded: for=_secret;proto=https", "10.9.9.9", "unknown 10.9.9.9"),
        ("forwarded: for=\"_gaz:_port\"", "10.9.9.9", "unknown 10.9.9.9"),
        ("forwarded: for=203.0.113.9, for=\"", "10.9.9.9", "unknown 10.9.9.9"),
        ("forwarded: for=\"\nforwarded: for=203.0.113.9", "203.0.113.9", "203.0.113.9 10.9.9.9"),
        ("forwarded: for=1.1.1.1;for=203.0.113.9", "10.9.9.9", "unknown 10.9.9.9"),
        ("forwarded: proto=https", "10.9.9.9", "unknown 10.9.9.9"),
    ],
)  # fmt: skip
def test_client_is_the_first_untrusted_address_from_the_right(claims: str, client: str, chain: str) -> None:
    """What stands left of it is nobody's word, and what is no address ends the walk."""
    assert PROXIES is not None
    believed = read_forwarded(lines(claims), "10.9.9.9", PROXIES, passed_on=False)
    assert (believed.client, " ".join(believed.chain)) == (client, chain)


@pytest.mark.parametrize(
    ("claims", "host", "scheme"),
    [
        ("x-forwarded-host: gate.example:8443\nx-forwarded-proto: HTTPS", "gate.example:8443", "https"),
        ("x-forwarded-host: [2001:db8::1]:443", "[2001:db8::1]:443", ""),
        ("x-forwarded-proto: ws", "", "http"),
        ("x-forwarded-host: a b\nx-forwarded-proto: gopher", "", ""),
        ("x-forwarded-host: evil/x\nx-forwarded-proto: https://", "", ""),
        ("x-forwarded-host: a\xe9\nx-forwarded-proto: ", "", ""),
        ("x-forwarded-for: 203.0.113.9, 10.0.0.2\nx-forwarded-host: gate.example, i\nx-forwarded-proto: https, http",
         "gate.example", "https"),
        ("x-forwarded-for: 1.1.1.1, 203.0.113.9, 10.0.0.2\nx-forwarded-host: made-up, gate.example, inner",
         "gate.example", ""),
        ("x-forwarded-for: 203.0.113.9, 10.0.0.2, 10.0.0.3\nx-forwarded-host: made-up, near", "near", ""),
        ("x-forwarded-host: made-up\nx-forwarded-host: near", "near", ""),
        ('forwarded: for=1.1.1.1;host=made-up, for=203.0.113.9;host="gate.example";proto=https, for=10.0.0.2;host=i',
         "gate.example", "https"),
        ('forwarded: for=203.0.113.9;host="ga\\te.example"', "gate.example", ""),
        ("x-forwarded-for: 203.0.113.9\nforwarded: for=1.1.1.1;host=made-up;proto=https", "", ""),
        ("x-forwarded-proto: http\nforwarded: for=1.1.1.1;host=made-up;proto=https", "", "http"),
    ],
)  # fmt: skip
def test_host_and_scheme_are_those_that_go_with_the_client(claims: str, host: str, scheme: str) -> None:
    """Malformed ones count as not said; where there is any X-Forwarded-* field, Forwarded is not read."""
    assert PROXIES is not None
    believed = read_forwarded(lines(claims), "10.9.9.9", PROXIES, passed_on=False)
    assert (believed.host.decode(), believed.scheme) == (host, scheme)


@pytest.mark.parametrize("written", ["10.0.0.0/8", "::ffff:10.0.0.0/104", "::ffff:a00:0/104", "10.0.0.0/255.0.0.0"])
@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "::ffff:a01:203", "0:0:0:0:0:ffff:a01:203"])
def test_network_of_ipv4_is_trusted_in_either_form(written: str, address: str) -> None:
    """Also where the setting has it as IPv6, and of a dual-stack socket; no other address with it."""
    proxies = read_proxies(written)
    assert proxies is not None
    assert proxies.trust(address)
    assert not proxies.trust("11.1.2.3")
    assert not proxies.trust("::a01:203")


@pytest.mark.parametrize("field", [b"x-forwarded-for", b"forwarded"])
def test_long_chains_are_cut(field: bytes) -> None:
    """Of a field's entries the last ones count, and no more of them go on."""
    assert PROXIES is not None
    entry = b"10.0.0.1" if field == b"x-forwarded-for" else b"for=10.0.0.1"
    for claimed in ([b", ".join([entry] * 400)], [entry] * 400):
        believed = read_forwarded({field: claimed}, "10.9.9.9", PROXIES, passed_on=False)
        assert len(believed.chain) == MAX_ENTRIES + 1
    assert node_address(b"1" * 65) is None


def test_over_long_forwarded_line_is_ignored() -> None:
    """As any malformed one."""
    assert PROXIES is not None
    line = b"for=203.0.113.9;x=" + b"y" * 9000
    assert read_forwarded({b"forwarded": [line]}, "10.9.9.9", PROXIES, passed_on=False).chain == ("unknown", "10.9.9.9")


NAMES = st.sampled_from([b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"forwarded"])
PIECES = st.sampled_from(
    [
        b"for=",
        b'"',
        b"\\",
        b",",
        b";",
        b"=",
        b"[",
        b"]",
        b":",
        b"10.0.0.1",
        b"::1",
        b"unknown",
        b" ",
        b"host=h",
        b"\xff",
    ]
)


@given(claims=st.dictionaries(NAMES, st.lists(st.lists(PIECES, max_size=9).map(b"".join) | st.binary(max_size=40))))
@example(claims={b"forwarded": [b'for="\\']})
@example(claims={b"x-forwarded-for": [b"[:]:", b":1"]})
def test_any_bytes_are_read(claims: dict[bytes, list[bytes]]) -> None:
    """No text makes it raise, and what goes on is addresses, a host and a scheme."""
    assert PROXIES is not None
    believed = read_forwarded(claims, "10.9.9.9", PROXIES, passed_on=False)
    assert believed.chain[-1] == "10.9.9.9"
    assert all(each == "unknown" or node_address(each.encode()) == each for each in believed.chain)
    assert believed.scheme in ("", "http", "https")
    assert not set(believed.host) & set(b'\r\n "\\,;/')
