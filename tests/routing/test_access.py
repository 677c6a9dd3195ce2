"""Which browsers' requests are refused: by the page that sent them, and by the name under which they came."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.addresses import host_name
from gateway.core.errors import SettingsError
from gateway.routing.access import AccessPolicy, HostError, OriginError
from tests.support.scripted import OpenScripted, get

ON_UVLOOP = True
SETTINGS: dict[str, Any] = {
    "allowed_origins": "https://app.example, http://other:8080/",
    "allowed_hosts": "gate.example",
}
BAD_HOSTS = [
    "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example",
    "localhost:80:80", "[::1", "[::2]", "[::1]x", "10.0.0.1", "0.0.0.0", "", "localhost:x", "notlocalhost",
]  # fmt: skip
GOOD_HOSTS = [
    "localhost", "LOCALHOST:8080", "localhost.", "localhost.:8080", "a.b.localhost:1", "127.0.0.1:80", "127.9.8.7",
    "[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]", "gate.example", "Gate.Example.:443",
]  # fmt: skip


def check(
    policy: AccessPolicy, host: str | None, origin: str | None = None, site: str | None = None, referer: str = ""
) -> None:
    headers = [(b"referer", referer.encode())] if referer else []
    policy.check(
        None if host is None else host.encode(),
        None if origin is None else origin.encode(),
        None if site is None else site.encode(),
        headers,
    )


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_unlisted_host_is_refused_on_loopback_only(host: str) -> None:
    """On other addresses probes and balancers use names that the gateway cannot know, until some are listed."""
    with pytest.raises(HostError, match="--allowed-hosts"):
        check(AccessPolicy(**SETTINGS), host)
    check(AccessPolicy(listens_on="0.0.0.0"), host)
    with pytest.raises(HostError):
        check(AccessPolicy(listens_on="0.0.0.0", allowed_hosts="gate.example"), host + "x")


@pytest.mark.parametrize("host", [*GOOD_HOSTS, None])
def test_own_names_are_served(host: str | None) -> None:
    """In any case, with or without a port and a final dot; and HTTP/1.0 without a Host."""
    policy = AccessPolicy(**SETTINGS)
    for _ in range(2):
        check(policy, host)


def test_listening_and_advertised_addresses_are_own_names() -> None:
    """So are peers served that know this gateway by the URL that it advertises."""
    policy = AccessPolicy(listens_on="::1", advertise="http://gw-0.gateways:8080/x")
    for host in ("[::1]:8080", "gw-0.gateways:8080", "localhost"):
        check(policy, host)
    check(AccessPolicy(allowed_hosts="*"), "anything")


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "http://evil.example", "http://localhost.evil.example", "http://app.example", "https://app.example:444",
        "https://app.example.evil", "https://app.example https://app.example", "localhost", "file://", "http://h@evil",
        "http://127.0.0.1@evil.example", "http://[::1", "http://h:8081", "https://\xe9",
    ],
)  # fmt: skip
def test_foreign_origin_is_refused_on_every_address(origin: str) -> None:
    """Whatever looks like an allowed one, and what is no origin at all."""
    for address in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(OriginError, match="--allowed-origins"):
            check(
                AccessPolicy(listens_on=address, allowed_hosts="h", allowed_origins="https://app.example"),
                "h",
                origin,
            )


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("h", "http://h"), ("h", "https://h"), ("h:80", "http://h"), ("h:8080", "HTTP://H:8080"), ("h", "https://app.example"),
        ("h", "https://app.example:443"), ("h", "HTTPS://APP.example"), ("h", "http://other:8080"), ("h", "http://localhost:3000"),
        ("h", "http://127.0.0.1"), ("h", "http://[::1]:5"), ("h", "http://x.localhost"),
    ],
)  # fmt: skip
def test_own_and_listed_pages_are_served(host: str, origin: str) -> None:
    """Also where the browser says that the fetch crosses sites."""
    check(AccessPolicy(**{**SETTINGS, "allowed_hosts": "h"}), host, origin, "cross-site")


@pytest.mark.parametrize(
    ("site", "referer", "served"),
    [
        ("none", "", True), ("same-origin", "", True), ("cross-site", "", False), ("same-site", "", False),
        ("Cross-Site", "", False), ("odd", "", False), ("cross-site", "https://evil.example/x", False),
        ("cross-site", "https://app.example/x?y", True), ("same-site", "http://localhost:3000/", True),
        ("same-site", "https://app.example@evil.example/", False),
    ],
)  # fmt: skip
def test_fetch_without_an_origin_is_decided_by_its_site(site: str, referer: str, served: bool) -> None:
    """Links, images and forms of other sites are refused, a typed address is not."""
    policy = AccessPolicy(**SETTINGS)
    if served:
        check(policy, "localhost", None, site, referer)
    else:
        with pytest.raises(OriginError):
            check(policy, "localhost", None, site, referer)


@given(host=st.binary(max_size=40), origin=st.binary(max_size=60), site=st.none() | st.binary(max_size=12))
def test_any_bytes_are_decided_about(host: bytes, origin: bytes, site: bytes | None) -> None:
    """No other error than the two refusals comes of any input."""
    host_name(host)
    for each in (origin, None):
        try:
            AccessPolicy(**SETTINGS).check(host, each, site, [(b"referer", origin)])
        except (HostError, OriginError):
            pass


@pytest.mark.parametrize("text", ["app.example", "https://", "https://a/b", "*", "null"])
def test_setting_that_is_no_origin_is_reported(text: str) -> None:
    """A mistake would otherwise refuse what it was to allow."""
    with pytest.raises(SettingsError, match="--allowed-origins"):
        AccessPolicy(allowed_origins=text)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/api/execute", "error"), ("/v1/sessions", "error"), ("/healthz", "error"),
        ("/v1/code-interpreter", "message"),
        ("/v1/containers", "openai"), ("/mcp", "jsonrpc"), ("/v1/sessions/s/ports/8000/", "error"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "extra", ["host: h\norigin: http://evil.example\n", "host: evil.example\n", "host: h\nsec-fetch-site: cross-site\n"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
async def test_refusal_has_the_shape_of_its_surface(
    open_gateway: OpenScripted, path: str, shape: str, extra: str, method: str
) -> None:
    """On every path and method; nothing reaches the sandbox, and the answer names the setting."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    reached = len(sandbox.requests)
    named = f"x-session-id: {session}\n" if path.startswith("/api") else ""
    answer = await gateway.ask(f"{method} {path} HTTP/1.1\n{named}{extra}", b"")
    assert answer.status == (421 if "host: evil" in extra else 403)
    assert "--allowed-" in str(answer.json)
    assert answer.get("x-request-id")
    match shape:
        case "error":
            assert answer.json["code"] in ("HOST_NOT_ALLOWED", "ORIGIN_NOT_ALLOWED")
        case "message":
            assert answer.json.keys() == {"message"}
        case "openai":
            assert answer.json["error"]["code"] in ("host_not_allowed", "origin_not_allowed")
        case _:
            assert answer.json["jsonrpc"] == "2.0"
    assert len(sandbox.requests) == reached


async def test_requests_of_the_fast_path_are_checked_too(open_gateway: OpenScripted) -> None:
    """The fast path asks the same policy, request by request on one connection; HTTP/1.0 and HEAD as well."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    assert (await gateway.ask(get(session))).status == 200
    client = await gateway.connect()
    for extra, status in (("", 200), ("origin: http://evil.example\n", 403), ("origin: http://h\n", 200), ("", 200)):
        await client.send(get(session, "/", extra) + "\n")
        assert (await client.fill(await client.head())).status == status
    assert len(sandbox.requests) == 4
    for head in (
        f"HEAD / HTTP/1.1\nhost: evil\nx-session-id: {session}\n",
        f"GET / HTTP/1.0\nhost: evil\nx-session-id: {session}\n",
    ):
        await client.send(head + "\n") if "HEAD" in head else None
        if "HEAD" in head:
            assert (await client.head()).status == 421
        else:
            assert (await gateway.ask(head)).status == 421
    two = await gateway.ask(get(session, "/", "origin: http://h\norigin: http://h\n"))
    assert two.status == 400
    assert len(sandbox.requests) == 4


async def test_handshake_under_a_foreign_name_is_refused(open_gateway: OpenScripted) -> None:
    """A page whose name was made to lead here has an Origin that equals its Host."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    asked = "connection: upgrade\nupgrade: websocket\nsec-websocket-version: 13\n"
    asked += "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\n"
    names = "host: evil.example\norigin: http://evil.example\n"
    answer = await gateway.ask(f"GET / HTTP/1.1\nx-session-id: {session}\n{names}{asked}")
    assert (answer.status, answer.json["code"]) == (421, "HOST_NOT_ALLOWED")
    assert not sandbox.requests
