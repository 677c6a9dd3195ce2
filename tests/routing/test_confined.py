"""What a client's request keeps from hostile code, and what of an answer may not act on the gateway's origin."""

from __future__ import annotations

import pytest

from gateway.core.settings import Settings
from gateway.routing.access import AccessPolicy
from gateway.routing.headers import read_request
from gateway.routing.response_headers import confine_cookies
from tests.support.scripted import Call, OpenScripted, get

ON_UVLOOP = True
CREDENTIALS = (
    "cookie: _oauth2_proxy=s; app=1; __Host-x=2\nx-api-key: k\nx-auth-request-email: e\nx-forwarded-access-token: t\n"
)
FORGED = (
    "service-worker-allowed: /\nclear-site-data: *\nstrict-transport-security: max-age=1\nalt-svc: h3\nreport-to: {}\n"
    "Set-Cookie: a=1; Path=/; domain=example.test; HttpOnly\nset-cookie: __Host-b=1; Path=/; Secure\n"
)


async def forge(call: Call) -> None:
    await call.send(f"HTTP/1.1 200 OK\n{FORGED}content-length: 2\n\nok")


@pytest.mark.parametrize(
    "path",
    ["/api/execute", "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/x"],
)
async def test_code_interpreter_gets_no_credentials_and_sets_no_cookies(open_gateway: OpenScripted, path: str) -> None:
    """Of the client's fields those that picod uses reach it, and its answers are for no other page."""
    gateway, sandbox = await open_gateway(forge)
    session = await gateway.session()
    for _ in range(2):  # a first and a live request: both paths through the gateway
        answer = await gateway.ask(get(session, path, CREDENTIALS + "x-other: 1\naccept: a/b\nidempotency-key: i\n"))
        seen = sandbox.requests[-1]
        for name in ("cookie", "x-api-key", "x-auth-request-email", "x-forwarded-access-token", "x-other"):
            assert seen.get(name) is None
        assert (seen.get("accept"), seen.get("idempotency-key")) == ("a/b", "i")
        for name in ("service-worker-allowed", "clear-site-data", "strict-transport-security", "alt-svc", "report-to"):
            assert answer.get(name) is None
        assert answer.all("set-cookie") == []
        assert answer.get("x-content-type-options") == "nosniff"


async def test_port_gets_its_own_cookies_and_sets_them_for_itself(open_gateway: OpenScripted) -> None:
    """Cookies and other fields of the app pass; those by which people are known to a proxy in front do not."""
    gateway, sandbox = await open_gateway(forge)
    session = await gateway.session()
    mount = f"/v1/sessions/{session}/ports/8000"
    for _ in range(2):
        answer = await gateway.ask(get(session, mount + "/x/y", CREDENTIALS + "x-other: 1\n"))
        seen = sandbox.requests[-1]
        assert (seen.get("cookie"), seen.get("x-other")) == ("app=1", "1")
        for name in ("x-api-key", "x-auth-request-email", "x-forwarded-access-token"):
            assert seen.get(name) is None
        assert answer.all("set-cookie") == [f"a=1; HttpOnly; Path={mount}/"]
        assert answer.get("service-worker-allowed") is None


@pytest.mark.parametrize(
    ("cookie", "confined"),
    [
        (b"a=1", b"a=1; Path=/m/"), (b"a=1; path=/m/x", b"a=1; Path=/m/x"), (b"a=1;PATH = /mm", b"a=1; Path=/m/mm"),
        (b"a=1; Path=/m; Path=/", b"a=1; Path=/m/"),
        (b"a=1; Path=x", b"a=1; Path=/m/"), (b"a=1; Domain", b"a=1; Path=/m/"),
        (b"a=1; Path=/m/; Secure", b"a=1; Secure; Path=/m/"),
    ],
)  # fmt: skip
def test_cookie_stays_below_its_app(cookie: bytes, confined: bytes) -> None:
    """Whichever Path it names, also twice; the name of another app that begins alike is another one's."""
    assert confine_cookies([(b"set-cookie", cookie)], b"/m") == [(b"set-cookie", confined)]


def test_names_of_the_setting_are_stripped() -> None:
    """The list replaces the default one, in any case; it may name Cookie, and what picod would get."""
    policy = AccessPolicy(strip_headers="Cookie, x-mine,user-agent")
    fields = [(b"host", b"h"), (b"cookie", b"a"), (b"x-mine", b"1"), (b"user-agent", b"u"), (b"x-api-key", b"k")]
    request = read_request({"headers": fields, "client": None, "scheme": "http"}, policy)
    assert request.extra == [b"x-api-key: k\r\n"]
    assert not any(line.startswith(b"user-agent") for line in request.lines)


@pytest.mark.parametrize(
    "proxy",
    [
        "x-api-key", "x-auth-request-access-token", "x-amzn-oidc-accesstoken", "x-goog-iap-jwt-assertion",
        "cf-access-client-secret", "remote-user", "x-authentik-jwt", "x-pomerium-jwt-assertion", "x-vouch-idp-idtoken",
        "x-ms-token-aad-access-token", "tailscale-user-login", "x-forwarded-client-cert",
    ],
)  # fmt: skip
@pytest.mark.parametrize("underscores", [False, True])
def test_what_common_proxies_say_of_a_person_goes_no_further(proxy: str, underscores: bool) -> None:
    """By default, with their tokens, and in the spelling that CGI and WSGI take for the same."""
    name = proxy.replace("-", "_") if underscores else proxy
    fields = [(b"host", b"h"), (name.encode(), b"secret"), (b"x-mine", b"1")]
    policy = AccessPolicy(strip_headers=Settings().strip_headers)
    request = read_request({"headers": fields, "client": None, "scheme": "http"}, policy)
    assert request.extra == [b"x-mine: 1\r\n"]
    assert not any(b"secret" in line for line in request.lines)
