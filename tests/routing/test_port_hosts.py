"""Host names for the ports of sessions: which of them lead where, and what never lies behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError
from gateway.routing.access import AccessPolicy, OriginError
from gateway.routing.port_hosts import PortHost, PortHostError, PortHosts
from gateway.sessions.membership import Membership
from gateway.store.memory import MemoryStore
from gateway.testing import ScriptedProvider
from tests.support.scripted import KEY, Call, OpenScripted, ScriptedSandbox, served

ON_UVLOOP = True
DOMAIN = "sandboxes.example"
HANDSHAKE = (
    "connection: upgrade\nupgrade: websocket\nsec-websocket-version: 13\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\n"
)
COOKIES = (
    "set-cookie: a=1; Path=/deep; Domain=sandboxes.example; HttpOnly\nset-cookie: __Host-b=1; Path=/; Secure\n"
    "set-cookie: c=1; domain=.example\nset-cookie: d=1\nclear-site-data: *\n"
)


async def ports(open_gateway: OpenScripted, script: Any = None, **changes: Any) -> Any:
    """A gateway with the domain, its sandbox, and the host of port 8000 of a session."""
    more = {} if script is None else {"script": script}
    gateway, sandbox = await open_gateway(**more, **{"domain": DOMAIN, **changes})
    session = await gateway.session()
    return gateway, sandbox, f"8000-{session}.{DOMAIN}"


@pytest.mark.parametrize("form", ["{}", "{}:8080", "{}.", "{}.:443"])
@pytest.mark.parametrize("change", [str, str.upper])
async def test_name_leads_to_the_port_of_its_session(open_gateway: OpenScripted, form: str, change: Any) -> None:
    """With or without a port and a final dot, in any case; path and query as they came; on both paths."""
    gateway, sandbox, host = await ports(open_gateway)
    host = form.format(change(host))
    for target in (
        "/",
        "/a%2Fb//c/../d?x=%20&y",
        "/v1/sessions",
        "/mcp",
        "/healthz",
        "/v1/sessions/s/ports/1/x",
        "/api/execute",
    ):
        for _ in range(2):
            answer = await gateway.ask(f"GET {target} HTTP/1.1\nhost: {host}\n")
            assert (answer.status, answer.body) == (200, b"ok")
            seen = sandbox.requests[-1]
            assert seen.path == f"/api/ports/8000{target}"
            assert (seen.get("x-wakegate-mount"), seen.get("x-forwarded-host")) == ("/", host)
            assert answer.get("x-session-id") == host.lower().partition("-")[2].partition(".")[0]
    assert len(sandbox.requests) == 14


async def test_control_surfaces_and_other_ways_into_sandboxes_are_not_below_the_domain(
    open_gateway: OpenScripted,
) -> None:
    """Every path, method and header of theirs is the app's; the gateway's own name still has them."""
    gateway, sandbox, host = await ports(open_gateway)
    for method, path, extra in (
        ("GET", "/v1/sessions", ""),
        ("POST", "/mcp", "content-length: 0\n"),
        ("DELETE", f"/v1/sessions/{host.partition('-')[2].partition('.')[0]}", ""),
        ("GET", "/metrics", "x-wakegate-runtime: my-interpreter\n"),
        ("OPTIONS", "/v1/sessions", ""),
        ("GET", "//v1/sessions", ""),
    ):
        answer = await gateway.ask(f"{method} {path} HTTP/1.1\nhost: {host}\n{extra}")
        assert (answer.status, sandbox.requests[-1].path) == (200, f"/api/ports/8000{path}")
    assert len(sandbox.requests) == 6
    assert len((await gateway.ask("GET /v1/sessions HTTP/1.1\nhost: h\n")).json["sessions"]) == 1


LONG = "x" * 57


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("0-{id}", "a port from 1 to 65535"), ("70000-{id}", "a port from 1 to 65535"), ("65536-{id}", "a port from 1"),
        ("08000-{id}", "without zeros"), ("8000", "a port, '-' and a session id"), ("8000-", "a port, '-' and"),
        ("-{id}", "a port, '-' and"), ("{id}", "a port"), ("www", "a port, '-' and"), ("a.8000-{id}", "one label"),
        (".8000-{id}", "one label"), ("8000-s_1", "a-z, 0-9 and '-'"), ("8000--s", "a-z, 0-9 and '-'"),
        ("8000-s-", "a-z, 0-9 and '-'"), (f"80000-{LONG}x", "63 characters"),
    ],
)  # fmt: skip
async def test_other_names_below_the_domain_are_404_with_the_reason(
    open_gateway: OpenScripted, label: str, reason: str
) -> None:
    """Never a control surface, on any path; also where any Host is served."""
    for address in ("127.0.0.1", "0.0.0.0"):
        gateway, sandbox, host = await ports(
            open_gateway, host=address, allowed_hosts="h" if address == "127.0.0.1" else "*"
        )
        name = f"{label.format(id=host.partition('-')[2].partition('.')[0])}.{DOMAIN}"
        for path in ("/", "/v1/sessions", "/mcp", "/healthz"):
            answer = await gateway.ask(f"GET {path} HTTP/1.1\nhost: {name}\n")
            assert (answer.status, answer.json["code"]) == (404, "PORT_HOST_NOT_FOUND")
            assert reason in answer.json["error"]
            assert answer.get("content-type") == "application/json; charset=utf-8"
        assert not sandbox.requests


async def test_name_of_no_session_is_404_with_the_reason(open_gateway: OpenScripted) -> None:
    """And claims no sandbox; ids of the longest that a label holds are looked for."""
    gateway, sandbox, _ = await ports(open_gateway)
    claims = gateway.provider.claims
    for label in ("8000-nobody", f"8-{'x' * 61}", f"65535-{LONG}"):
        answer = await gateway.ask(f"GET / HTTP/1.1\nhost: {label}.{DOMAIN}\n")
        assert (answer.status, answer.json["code"]) == (404, "SESSION_NOT_FOUND")
        assert label.partition("-")[2] in answer.json["error"]
    assert (gateway.provider.claims, sandbox.requests) == (claims, [])


@pytest.mark.parametrize(
    "host",
    [f"8000-s.{DOMAIN}:x", f"u@8000-s.{DOMAIN}", f"8000-s.{DOMAIN}:80:80", f"8000-s/.{DOMAIN}", f"*.{DOMAIN}"],
)
async def test_malformed_hosts_do_not_bypass_the_check(open_gateway: OpenScripted, host: str) -> None:
    """Also on an address where any Host is served."""
    gateway, sandbox, _ = await ports(open_gateway, host="0.0.0.0", allowed_hosts="*")
    answer = await gateway.ask(f"GET /v1/sessions HTTP/1.1\nhost: {host}\n")
    assert answer.status == 400
    assert (await gateway.ask(f"GET /v1/sessions HTTP/1.1\nhost: 8000-s.{DOMAIN}..\n")).status in (404, 421)
    assert not sandbox.requests


async def test_names_outside_the_domain_are_checked_as_before(open_gateway: OpenScripted) -> None:
    """What only looks like the domain, and the domain itself, is none of the gateway's names."""
    gateway, _, host = await ports(open_gateway)
    for name in (f"8000-s.x{DOMAIN}", f"{host}.evil.example", DOMAIN, "evil.example"):
        assert (await gateway.ask(f"GET / HTTP/1.1\nhost: {name}\n")).json["code"] == "HOST_NOT_ALLOWED"


async def test_session_header_must_agree(open_gateway: OpenScripted) -> None:
    """As on the form by path."""
    gateway, sandbox, host = await ports(open_gateway)
    assert (await gateway.ask(f"GET / HTTP/1.1\nhost: {host}\nx-session-id: other\n")).status == 400
    session = host.partition("-")[2].partition(".")[0]
    assert (await gateway.ask(f"GET / HTTP/1.1\nhost: {host}\nx-session-id: {session}\n")).status == 200
    assert len(sandbox.requests) == 1


async def test_cookies_are_the_hosts_own(open_gateway: OpenScripted) -> None:
    """Their Path stays, __Host- works both ways, and no Domain reaches the names beside; by path nothing changes."""

    async def script(call: Call) -> None:
        await call.body()
        await call.reply(fields=COOKIES)

    gateway, sandbox, host = await ports(open_gateway, script)
    sent = "cookie: __Host-b=1; a=1; _oauth2_proxy=s; __Host-_oauth2_proxy=s\n"
    for _ in range(2):
        answer = await gateway.ask(f"GET /x HTTP/1.1\nhost: {host}\n{sent}")
        assert answer.all("set-cookie") == ["a=1; HttpOnly; Path=/deep", "__Host-b=1; Secure; Path=/", "c=1", "d=1"]
        assert answer.get("clear-site-data") is None, "it would clear cookies of the whole domain"
        assert sandbox.requests[-1].get("cookie") == "a=1; __Host-b=1"
    session = host.partition("-")[2].partition(".")[0]
    mount = f"/v1/sessions/{session}/ports/8000"
    answer = await gateway.ask(f"GET {mount}/x HTTP/1.1\nhost: h\nx-wakegate-mount: /\n{sent}")
    assert answer.all("set-cookie")[0] == f"a=1; HttpOnly; Path={mount}/deep"
    assert len(answer.all("set-cookie")) == 3
    assert sandbox.requests[-1].get("cookie") == "a=1"
    assert sandbox.requests[-1].get("x-wakegate-mount") is None, "only the gateway says so"


async def test_pages_of_a_port_are_foreign_to_the_gateway_and_other_ports(open_gateway: OpenScripted) -> None:
    """To the gateway and to other ports; at home they are at home. Also below localhost, whose pages else may ask."""
    for domain in (DOMAIN, "wakegate.localhost"):
        gateway, sandbox, host = await ports(open_gateway, domain=domain)
        host = host.replace(DOMAIN, domain)
        origin = f"origin: http://{host}:8080\n"
        assert (await gateway.ask(f"POST /x HTTP/1.1\nhost: {host}:8080\n{origin}content-length: 0\n")).status == 200
        assert sandbox.requests[-1].get("origin") == f"http://127.0.0.1:{sandbox.endpoint.port}"
        for other in ("h", "localhost:8080", f"8001-{host.partition('-')[2]}:8080"):
            answer = await gateway.ask(f"GET /v1/sessions HTTP/1.1\nhost: {other}\n{origin}")
            assert (answer.status, answer.json["code"]) == (403, "ORIGIN_NOT_ALLOWED")
        assert len(sandbox.requests) == 1


async def test_websocket_reaches_the_port_and_a_wrong_name_does_not(open_gateway: OpenScripted) -> None:
    """Its handshake is read as any request's head."""
    gateway, sandbox, host = await ports(open_gateway)
    await gateway.ask(f"GET /chat?x=1 HTTP/1.1\nhost: {host}:8080\norigin: http://{host}:8080\n{HANDSHAKE}")
    seen = sandbox.requests[-1]
    assert (seen.path, seen.get("x-wakegate-mount")) == ("/api/ports/8000/chat?x=1", "/")
    answer = await gateway.ask(f"GET /chat HTTP/1.1\nhost: 0-{host.partition('-')[2]}\n{HANDSHAKE}")
    assert (answer.status, answer.json["code"]) == (404, "PORT_HOST_NOT_FOUND")
    assert len(sandbox.requests) == 1


async def test_websocket_that_is_passed_on_keeps_the_name_of_its_port(tmp_path: Path) -> None:
    """The gateway that has the session sees the host that the client named, and the page's origin beside it."""
    clock = SystemClock()
    store = MemoryStore(clock)
    owner = ScriptedSandbox()
    await owner.start()
    try:
        async with served(tmp_path, ScriptedProvider(owner.endpoint), store=store, me="b", domain=DOMAIN) as gateway:
            announced = Membership(store, clock, "a", takeover_after=60.0)
            announced.address = f"http://{owner.endpoint}"
            await announced.announce()
            session = (await gateway.gateway.lifecycle.register(KEY)).id
            record = await store.get(session)
            assert record is not None
            await store.put(replace(record, owner="a"))
            host = f"8000-{session}.{DOMAIN}"
            await gateway.ask(f"GET /chat?x=1 HTTP/1.1\nhost: {host}:8080\norigin: http://{host}:8080\n{HANDSHAKE}")
            seen = owner.requests[-1]
            assert seen.path == f"/v1/sessions/{session}/ports/8000/chat?x=1"
            assert (seen.get("host"), seen.get("origin")) == (f"{host}:8080", f"http://{host}:8080")
            assert (seen.get("x-forwarded-host"), seen.get("x-wakegate-hops")) == (f"{host}:8080", "1")
    finally:
        await owner.aclose()


async def test_trusted_proxy_may_name_the_host_and_no_page_may_leave_it(open_gateway: OpenScripted) -> None:
    """A page of a sandbox can send X-Forwarded-Host to its own host, through a proxy that does not overwrite it."""
    gateway, sandbox, host = await ports(open_gateway, trusted_proxies="127.0.0.1")
    assert (await gateway.ask(f"GET /a HTTP/1.1\nhost: h\nx-forwarded-host: {host}\n")).status == 200
    assert sandbox.requests[-1].path == "/api/ports/8000/a"
    for other in ("h", "localhost"):
        answer = await gateway.ask(f"GET /v1/sessions HTTP/1.1\nhost: {host}\nx-forwarded-host: {other}\n")
        assert (answer.status, answer.json["code"]) == (404, "PORT_HOST_NOT_FOUND")
    assert len(sandbox.requests) == 1


async def test_without_the_setting_such_names_have_no_meaning(open_gateway: OpenScripted) -> None:
    """They are names like others, and the gateway's where any is."""
    gateway, _, host = await ports(open_gateway, domain="", allowed_hosts="*")
    assert (await gateway.ask(f"GET /v1/sessions HTTP/1.1\nhost: {host}\n")).status == 200


@pytest.mark.parametrize(
    "text",
    [
        "*.example", ".example", "a..b", "a b", "-a.example", "a_b.example", "https://example", "example:80",
        "10.0.0.1", "x" * 64, ".".join(["x" * 60] * 4), "é.example",
    ],
)  # fmt: skip
def test_setting_that_is_no_domain_is_reported(text: str) -> None:
    """Before anything starts."""
    with pytest.raises(SettingsError, match="--domain"):
        AccessPolicy(domain=text)


@pytest.mark.parametrize(
    "own", [{"allowed_hosts": "gw.a.example"}, {"advertise": "http://gw-0.a.example:80"}, {"listens_on": "x.a.example"}]
)
def test_own_name_below_the_domain_is_reported(own: dict[str, Any]) -> None:
    """The gateway would not be reached under it."""
    with pytest.raises(SettingsError, match=r"a\.example is below it"):
        AccessPolicy(domain="a.example", **own)
    AccessPolicy(domain="b.example", **own)


@given(name=st.binary(max_size=80) | st.from_regex(r"[0-9]{1,5}-[a-z0-9-]{1,60}", fullmatch=True).map(str.encode))
def test_any_name_is_a_port_or_a_404(name: bytes) -> None:
    """No other error comes of any bytes, and what is found says the name again."""
    hosts = PortHosts("a.example")
    try:
        found = hosts.read(name + b".a.example")
    except PortHostError:
        return
    assert found == PortHost(*name.split(b"-", 1))
    assert 0 < int(found.port) < 65536


def test_listed_port_page_may_use_the_gateway() -> None:
    """Whoever lists such an origin means it."""
    origin = b"https://8000-s.a.localhost"
    with pytest.raises(OriginError):
        AccessPolicy(domain="a.localhost").check(b"localhost", origin, None, [])
    assert (
        AccessPolicy(domain="a.localhost", allowed_origins=origin.decode()).check(b"localhost", origin, None, [])
        == origin
    )
