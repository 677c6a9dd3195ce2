"""Which web pages may read answers: a browser's questions ahead, and what it needs to hand an answer to its page."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.cors import _preflight_fields, is_preflight
from tests.support.scripted import Call, Message, OpenScripted, get

ON_UVLOOP = True
APP = "https://app.example"
ORIGIN = f"origin: {APP}\n"
ASKS = "access-control-request-method: PUT\naccess-control-request-headers: content-type,x-session-id\n"
PATHS = [
    "/api/execute", "/v1/sessions", "/v1/sessions/s/ports/8000/x", "/v1/code-interpreter", "/v1/containers", "/mcp",
    "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/x", "/v1/namespaces/x", "/v1/tool_calls",
    "/none",
]  # fmt: skip
FORGED = (
    "access-control-allow-origin: *\nAccess-Control-Allow-Credentials: true\naccess-control-expose-headers: x-a\n"
    "access-control-max-age: 9\nvary: accept\n"
)


async def forge(call: Call) -> None:
    await call.body()
    await call.reply(fields=FORGED)


def assert_readable(answer: Message, origin: str = APP) -> None:
    """One origin, said once; no credentials; caches are told; what programs look at is exposed."""
    assert answer.get("access-control-allow-origin") == origin
    assert answer.get("access-control-allow-credentials") is None
    assert [value for value in answer.all("vary") if "origin" in value.lower()] == ["origin"]
    exposed = (answer.get("access-control-expose-headers") or "").split(", ")
    named = {name for name, _ in answer.fields if name.startswith(("x-wakegate", "x-session", "x-agentcube", "mcp-"))}
    assert named <= set(exposed)
    assert {"x-request-id", "content-disposition", "retry-after"} <= set(exposed)


def assert_silent(answer: Message) -> None:
    assert not [name for name, _ in answer.fields if name.startswith("access-control-")]


@pytest.mark.parametrize("path", PATHS)
async def test_preflight_of_a_listed_origin_is_answered_by_the_gateway(open_gateway: OpenScripted, path: str) -> None:
    """On every path, named session or not; no sandbox is asked, and none is claimed."""
    gateway, sandbox = await open_gateway(allowed_origins=f"{APP},http://other:8080")
    claims = gateway.provider.claims
    for origin in (APP, "http://other:8080"):
        answer = await gateway.ask(f"OPTIONS {path} HTTP/1.1\nhost: h\norigin: {origin}\n{ASKS}")
        assert (answer.status, answer.body, answer.get("content-length")) == (204, b"", None)
        assert answer.get("access-control-allow-origin") == origin
        assert answer.get("access-control-allow-methods") == "PUT"
        assert answer.get("access-control-allow-headers") == "content-type, x-session-id"
        assert answer.get("access-control-allow-credentials") is None
        assert "origin" in (answer.get("vary") or "")
        assert int(answer.get("access-control-max-age") or 0) > 0
        assert answer.get("x-request-id")
    assert (gateway.provider.claims, sandbox.requests) == (claims, [])


async def test_preflight_on_a_live_session_does_not_reach_it(open_gateway: OpenScripted) -> None:
    """The connection goes on; a preflight's answer has no body, as 204 has none."""
    gateway, sandbox = await open_gateway(allowed_origins=APP)
    session = await gateway.session()
    client = await gateway.connect()
    assert (await client.ask(get(session))).status == 200
    for _ in range(2):
        assert (await client.ask(get(session, "/", ORIGIN + ASKS, "OPTIONS"))).status == 204
    assert (await client.ask(get(session))).status == 200
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://app.example", "https://app.example:444", "x"]
)
@pytest.mark.parametrize("path", ["/api/execute", "/v1/sessions", "/mcp", "/v1/containers", "/v1/code-interpreter"])
async def test_other_origins_are_refused_with_their_preflights(
    open_gateway: OpenScripted, origin: str, path: str
) -> None:
    """403, and nothing that would let the page read even that."""
    gateway, sandbox = await open_gateway(allowed_origins=APP)
    session = await gateway.session()
    named = f"x-session-id: {session}\n" if path == "/api/execute" else ""
    for head in (f"OPTIONS {path} HTTP/1.1\n{ASKS}", f"GET {path} HTTP/1.1\n", f"POST {path} HTTP/1.1\n"):
        answer = await gateway.ask(f"{head}host: h\norigin: {origin}\n{named}")
        assert answer.status == 403
        assert "ORIGIN_NOT_ALLOWED" in str(answer.json).upper() or "--allowed-origins" in str(answer.json)
        assert_silent(answer)
    assert not sandbox.requests


async def test_answer_of_a_sandbox_is_readable_without_its_own_cors_fields(open_gateway: OpenScripted) -> None:
    """Whole and streamed, first and live; for the gateway's own pages and programs nothing changes."""
    gateway, sandbox = await open_gateway(forge, allowed_origins=APP)
    session = await gateway.session()
    for _ in range(3):
        answer = await gateway.ask(get(session, "/", ORIGIN))
        assert (answer.status, answer.body) == (200, b"ok")
        assert_readable(answer)
        assert "accept" in answer.all("vary")
    assert len(sandbox.requests) == 3
    for own in ("", "origin: http://h\n"):
        answer = await gateway.ask(get(session, "/", own))
        assert answer.get("access-control-allow-origin") == "*", "the sandbox's, as it came"

    async def stream(call: Call) -> None:
        await call.send(f"HTTP/1.1 200 OK\n{FORGED}transfer-encoding: chunked\n\n2\nab\n")
        await asyncio.sleep(0.3)
        await call.send("0\n\n")

    sandbox.script = stream
    answer = await gateway.ask(get(session, "/", ORIGIN))
    assert answer.body == b"ab"
    assert_readable(answer)
    sandbox.script = lambda call: call.reply(fields="Vary: Accept, Origin\n")
    assert (await gateway.ask(get(session, "/", ORIGIN))).all("vary") == ["Accept, Origin"]


@pytest.mark.parametrize(
    ("request_line", "extra", "status"),
    [
        ("GET /v1/sessions", "", 200), ("GET /v1/sessions/none", "", 404), ("PUT /v1/sessions", "", 405),
        ("GET /none", "", 404), ("GET /v1/code-interpreter/sessions/none", "", 404),
        ("GET /v1/containers/none", "", 404), ("GET /mcp", "", 405),
        ("POST /mcp", "content-length: 0\n", 400), ("GET /healthz", "", 200), ("GET /v1/namespaces/x", "", 404),
        ("GET /a", "x-session-id: nobody\n", 404), ("GET /a", "x-session-id: -\n", 400),
        ("GET /a", "x-session-id: a\nx-agentcube-session-id: b\n", 400), ("GET /v1/sessions/-/ports/0/", "", 400),
        ("GET /v1/sessions/none/ports/8000/", "", 404), ("GET /v1/sessions/none/ports/8000", "", 301),
        ("GET /a", "host: h\n", 400),
    ],
)  # fmt: skip
async def test_answers_of_the_gateway_are_readable(
    open_gateway: OpenScripted, request_line: str, extra: str, status: int
) -> None:
    """Errors too, on every surface: a page has to see why."""
    gateway, _ = await open_gateway(allowed_origins=APP)
    answer = await gateway.ask(f"{request_line} HTTP/1.1\nhost: h\n{ORIGIN}{extra}")
    assert answer.status == status
    assert_readable(answer)
    answer = await gateway.ask(f"{request_line} HTTP/1.1\nhost: h\n{extra}")
    assert answer.status == status
    assert_silent(answer)


async def test_errors_that_sandboxes_cause_are_readable(open_gateway: OpenScripted) -> None:
    """A sandbox that breaks off in place of an answer."""

    async def break_off(call: Call) -> None:
        call.abort()

    gateway, _ = await open_gateway(break_off, allowed_origins=APP)
    answer = await gateway.ask(get(await gateway.session(), "/", ORIGIN))
    assert answer.status == 502
    assert_readable(answer)


async def test_pages_of_this_machine_may_read_where_they_are_listed_only(open_gateway: OpenScripted) -> None:
    """Any program here may ask without a browser, so their requests pass; what they read is for the setting to say."""
    for setting, readable in (("", False), ("http://localhost:3000", True)):
        gateway, _ = await open_gateway(allowed_origins=setting)
        answer = await gateway.ask("GET /v1/sessions HTTP/1.1\nhost: h\norigin: http://localhost:3000\n")
        assert answer.status == 200
        if readable:
            assert_readable(answer, "http://localhost:3000")
        else:
            assert_silent(answer)


async def test_options_that_are_no_preflight_reach_their_target(open_gateway: OpenScripted) -> None:
    """Without a method that is asked for, without an Origin, or from the gateway's own page: no preflight of others."""
    gateway, sandbox = await open_gateway(allowed_origins=APP)
    session = await gateway.session()
    for extra in ("", ORIGIN, ASKS, "origin: http://h\n" + ASKS, "origin: http://localhost:1\n" + ASKS):
        assert (await gateway.ask(get(session, "/", extra, "OPTIONS"))).status == 200
    assert [seen.method for seen in sandbox.requests] == ["OPTIONS"] * 5
    assert (await gateway.ask(f"OPTIONS /v1/sessions HTTP/1.1\nhost: h\n{ORIGIN}")).status == 405


@pytest.mark.parametrize(
    ("method", "headers", "methods", "names"),
    [
        ("PROPFIND", "X-A, x-b", "PROPFIND", "X-A, x-b"),
        ("G T", "x-a", None, "x-a"), ("x" * 33, "x-a", None, "x-a"), ("", "", None, None),
        ("GET", "x-a,,x-b", "GET", None), ("GET", "x a", "GET", None), ("GET", "*\xe9", "GET", None),
        ("GET", ",".join(["a"] * 64), "GET", ", ".join(["a"] * 64)), ("GET", ",".join(["a"] * 65), "GET", None),
        ("GET", "a" * 2049, "GET", None),
    ],
)  # fmt: skip
def test_preflight_grants_what_is_well_formed_and_few(
    method: str, headers: str, methods: str | None, names: str | None
) -> None:
    """The rest is left out, and the browser refuses it to its page."""
    asked = [
        (b"access-control-request-method", method.encode("latin-1")),
        (b"access-control-request-headers", headers.encode("latin-1")),
    ]
    assert is_preflight("OPTIONS", asked)
    granted = {name.decode(): value.decode("latin-1") for name, value in _preflight_fields(APP.encode(), asked)}
    assert granted.get("access-control-allow-methods") == methods
    assert granted.get("access-control-allow-headers") == names


@given(method=st.binary(max_size=40), names=st.binary(max_size=200))
def test_any_bytes_make_fields_of_one_line(method: bytes, names: bytes) -> None:
    """Nothing of what is echoed can end a line or a list."""
    asked = [(b"access-control-request-method", method), (b"access-control-request-headers", names)]
    for _, value in _preflight_fields(b"https://a", asked):
        assert not set(value) & set(b'\r\n\0;"')


class Browser:
    """What a browser does with `fetch(..., {mode: "cors"})`, as far as it is about who may read."""

    SIMPLE = ("accept", "accept-language", "content-language")
    SAFE = frozenset((
        "cache-control", "content-language", "content-length", "content-type", "expires", "last-modified", "pragma",
    ))  # fmt: skip

    def __init__(self, client: httpx.AsyncClient, origin: str) -> None:
        self.client, self.origin = client, origin

    async def fetch(self, method: str, path: str, headers: dict[str, str], body: str = "") -> dict[str, str] | None:
        """The status and the fields that the page gets to see; None: the browser tells it of a network error."""
        own = {"origin": self.origin, "sec-fetch-mode": "cors", "sec-fetch-site": "cross-site"}
        unsafe = sorted(name for name in headers if name not in self.SIMPLE)
        if unsafe or method not in ("GET", "HEAD", "POST"):
            asks = {"access-control-request-method": method, "access-control-request-headers": ",".join(unsafe)}
            may = await self.client.options(path, headers={**own, **asks})
            allowed = [each.strip().lower() for each in may.headers.get("access-control-allow-headers", "").split(",")]
            if not (may.is_success and self._names_us(may)) or not set(unsafe) <= set(allowed):
                return None
            if method not in ("GET", "HEAD", "POST", may.headers.get("access-control-allow-methods")):
                return None
        answer = await self.client.request(method, path, headers={**own, **headers}, content=body)
        if not self._names_us(answer):
            return None
        exposed = {each.strip() for each in answer.headers.get("access-control-expose-headers", "").split(",")}
        seen = {name: value for name, value in answer.headers.items() if name in self.SAFE | exposed}
        return {"status": str(answer.status_code), "body": answer.text, **seen}

    def _names_us(self, answer: httpx.Response) -> bool:
        return answer.headers.get_list("access-control-allow-origin") == [self.origin]


async def test_page_of_a_listed_origin_works_with_sessions(open_gateway: OpenScripted) -> None:
    """Makes one, uses it, reads its id and how it started, ends it; another site's page can do none of it."""
    gateway, sandbox = await open_gateway(forge, allowed_origins=APP)
    json = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=gateway.url, headers={"host": "h"}, trust_env=False) as client:
        page = Browser(client, APP)
        made = await page.fetch("POST", "/v1/sessions", json, '{"runtime": "my-interpreter"}')
        assert made is not None
        assert made["status"] == "201"
        session = {"x-session-id": httpx.Response(201, text=made["body"]).json()["id"]}
        ran = await page.fetch("POST", "/api/execute", {**json, **session}, "{}")
        assert ran is not None
        assert (ran["status"], ran["x-session-id"]) == ("200", session["x-session-id"])
        assert ran["x-wakegate-start"] in ("live", "warm")
        assert await Browser(client, "https://evil.example").fetch("POST", "/api/execute", {**json, **session}) is None
        assert await Browser(client, "http://localhost:3000").fetch("GET", "/v1/sessions", {}) is None
        assert len(sandbox.requests) == 1
        ended = await page.fetch("DELETE", f"/v1/sessions/{session['x-session-id']}", {})
        assert ended is not None
        assert ended["status"] == "204"
        gone = await page.fetch("POST", "/api/execute", {**json, **session}, "{}")
        assert gone is not None
        assert gone["status"] == "404"
