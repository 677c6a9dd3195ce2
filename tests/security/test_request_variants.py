"""Odd and hostile requests, by kind: what each is answered, and what of it reaches a sandbox.

Each table has relatives of a fault that a proxy had once. A request behind an odd one shows how far it was read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.scripted import SHARED, Call, Client, Message, OpenScripted, ScriptedSandbox, Served, get, scripted

ON_UVLOOP = True
UPGRADE = "connection: Upgrade\nupgrade: h2c\n"
KEY = "sec-websocket-version: 13\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\n"
WEBSOCKET = f"connection: upgrade\nupgrade: websocket\n{KEY}"
CHUNKS = "transfer-encoding: chunked\n\n3\nabc\n0\n\n"
NEXT = "GET /next HTTP/1.1\nhost: h\n{s}\n"

# A request, the statuses of what is answered on its connection, and what the sandbox saw. A `.` ends the connection.
Row = tuple[str, str, str]


def post(fields: str, version: str = "1.1") -> str:
    return f"POST /a HTTP/{version}\nhost: h\n{{s}}{fields}"


UPGRADES: dict[str, Row] = {
    "trailers": (post(f"{UPGRADE}transfer-encoding: chunked\n\n3\nabc\n0\nx-session-id: o\n\n{NEXT}"), "200 200",
                 "POST/a=abc GET/next="),
    "length-and-chunked": (post(f"{UPGRADE}content-length: 3\n{CHUNKS}{NEXT}"), "400.", ""),
    "gzip": (post(f"{UPGRADE}transfer-encoding: gzip\n\nabc{NEXT}"), "400.", ""),
    "gzip-chunked": (post(f"{UPGRADE}transfer-encoding: gzip, chunked\n\n3\nabc\n0\n\n{NEXT}"), "400.", ""),
    "identity-chunked": (post(f"{UPGRADE}transfer-encoding: identity, chunked\n\n3\nabc\n0\n\n{NEXT}"), "400.", ""),
    "chunked-identity": (post(f"{UPGRADE}transfer-encoding: chunked, identity\n\n3\nabc\n0\n\n{NEXT}"), "400.", ""),
    "bad-chunk": (post(f"{UPGRADE}transfer-encoding: chunked\n\nzz\nabc\n0\n\n{NEXT}"), "400.", ""),
    "two-encodings": (post(f"{UPGRADE}transfer-encoding: chunked\n{CHUNKS}{NEXT}"), "400.", ""),
    "http-1.0": (post(f"{UPGRADE}content-length: 3\n\nabc{NEXT}", "1.0"), "200.", "POST/a=abc"),
    "http-1.0-chunked": (post(f"{UPGRADE}{CHUNKS}", "1.0"), "400.", ""),
    "websocket-in-http-1.0": (f"GET /a HTTP/1.0\nhost: h\n{{s}}{WEBSOCKET}\n", "200.", "GET/a="),
    "head": (f"HEAD /a HTTP/1.1\nhost: h\n{{s}}{UPGRADE}\n{NEXT}", "200 200", "HEAD/a= GET/next="),
    "delete": (f"DELETE /a HTTP/1.1\nhost: h\n{{s}}{UPGRADE}content-length: 3\n\nabc{NEXT}", "200 200",
               "DELETE/a=abc GET/next="),
    "upper-case": (post(f"Connection: keep-alive, UPGRADE\nUpgrade: WebSocket\ncontent-length: 3\n\nabc{NEXT}"),
                   "200 200", "POST/a=abc GET/next="),
    "twice": (f"GET /a HTTP/1.1\nhost: h\n{{s}}{WEBSOCKET}upgrade: websocket\n\n{NEXT}",
              "200 200", "GET/a= GET/next="),
    "version": (f"GET /a HTTP/1.1\nhost: h\n{{s}}connection: upgrade\nupgrade: websocket/13\n{KEY}\n{NEXT}", "200 200",
                "GET/a= GET/next="),
    "empty": (post(f"connection: upgrade\nupgrade:\ncontent-length: 3\n\nabc{NEXT}"), "200 200",
              "POST/a=abc GET/next="),
    "no-upgrade": (post(f"connection: upgrade\ncontent-length: 3\n\nabc{NEXT}"), "200 200", "POST/a=abc GET/next="),
    "no-connection": (post(f"upgrade: h2c\ncontent-length: 3\n\nabc{NEXT}"), "200 200", "POST/a=abc GET/next="),
    "folded": (f"GET /a HTTP/1.1\nhost: h\n{{s}}connection: upgrade\nupgrade:\n websocket\n{KEY}\n", "400.", ""),
    "continue": (post(f"expect: 100-continue\n{UPGRADE}content-length: 3\n\nabc{NEXT}"), "200 200",
                 "POST/a=abc GET/next="),
    "prior-knowledge": ("PRI * HTTP/2.0\n\nSM\n\n", "400.", ""),
}  # fmt: skip

FRAMING: dict[str, Row] = {
    "identity": (post(f"transfer-encoding: identity\ncontent-length: 3\n\nabc{NEXT}"), "400.", ""),
    "identity-chunked": (post(f"transfer-encoding: identity, chunked\n\n3\nabc\n0\n\n{NEXT}"), "400.", ""),
    "any-case": (post(f"transfer-encoding: cHuNkEd\n\n3\nabc\n0\n\n{NEXT}"), "200 200", "POST/a=abc GET/next="),
    "parameter": (post(f"transfer-encoding: chunked;q=1\n\n3\nabc\n0\n\n{NEXT}"), "400.", ""),
    "comma-behind": (post(f"transfer-encoding: chunked,\n\n3\nabc\n0\n\n{NEXT}"), "400.", ""),
    "comma-before": (post(f"transfer-encoding: ,chunked\n\n3\nabc\n0\n\n{NEXT}"), "400.", ""),
    "quoted": (post(f'transfer-encoding: "chunked"\n\n3\nabc\n0\n\n{NEXT}'), "400.", ""),
    "empty": (post(f"transfer-encoding:\ncontent-length: 3\n\nabc{NEXT}"), "400.", ""),
    "underscore": (post(f"transfer_encoding: chunked\ncontent-length: 3\n\nabc{NEXT}"), "200 200",
                   "POST/a=abc GET/next="),
    "http-1.0": (post(f"{CHUNKS}{NEXT}", "1.0"), "400.", ""),
    "http-1.0-late": (post(f"transfer-encoding: chunked\n\n{'x' * 5000}", "1.0"), "400.", ""),
    "equal-lengths": (post(f"content-length: 3, 3\n\nabc{NEXT}"), "400.", ""),
    "length-with-space": (post("content-length: 3 0\n\nabc"), "400.", ""),
    "leading-zeros": (post(f"content-length: 0003\n\nabc{NEXT}"), "200 200", "POST/a=abc GET/next="),
    "extension": (post(f'transfer-encoding: chunked\n\n3;a="b;"\nabc\n0\n\n{NEXT}'), "200 200", "POST/a=abc GET/next="),
    "extension-with-cr": (post("transfer-encoding: chunked\n\n3;a\rb\nabc\n0\n\n"), "400.", ""),
    "space-behind-size": (post("transfer-encoding: chunked\n\n3 \nabc\n0\n\n"), "400.", ""),
    "body-of-get": (f"GET /a HTTP/1.1\nhost: h\n{{s}}content-length: 3\n\nabc{NEXT}", "200 200", "GET/a=abc GET/next="),
    "closed": (f"GET /a HTTP/1.1\nhost: h\n{{s}}connection: close\n\n{NEXT}", "200.", "GET/a="),
    "kept-in-http-1.0": (f"GET /a HTTP/1.0\nhost: h\n{{s}}connection: keep-alive\n\n{NEXT}", "200.", "GET/a="),
    "expect-twice": (post(f"expect: 100-continue\nexpect: 100-continue\ncontent-length: 3\n\nabc{NEXT}"), "200 200",
                     "POST/a=abc GET/next="),
    "expect-unknown": (post(f"expect: 200-ok\ncontent-length: 3\n\nabc{NEXT}"), "200 200", "POST/a=abc GET/next="),
    "expect-in-http-1.0": (post("expect: 100-continue\ncontent-length: 3\n\nabc", "1.0"), "200.", "POST/a=abc"),
    "folded-first": ("GET /a HTTP/1.1\n host: h\n{s}\n", "400.", ""),
    "folded-by-tab": ("GET /a HTTP/1.1\nhost: h\n{s}x: a\n\tb\n\n", "400.", ""),
}  # fmt: skip

TARGETS: dict[str, Row] = {
    "absolute": (f"GET http://other.example/a?q HTTP/1.1\nhost: h\n{{s}}\n{NEXT}", "200 200", "GET/a?q= GET/next="),
    "absolute-with-user": ("GET http://u:p@other:99/a HTTP/1.1\nhost: h\n{s}\n", "200", "GET/a="),
    "absolute-without-path": ("GET http://other.example HTTP/1.1\nhost: h\n{s}\n", "200", "GET/="),
    "absolute-with-query-only": ("GET http://other.example?q=1 HTTP/1.1\nhost: h\n{s}\n", "200", "GET/?q=1="),
    "absolute-without-host": ("GET http:///a HTTP/1.1\nhost: h\n{s}\n", "400.", ""),
    "script": ("GET javascript:alert(1) HTTP/1.1\nhost: h\n{s}\n", "400.", ""),
    "file": ("GET file:///etc/passwd HTTP/1.1\nhost: h\n{s}\n", "400.", ""),
    "fragment": ("GET /a#b?c HTTP/1.1\nhost: h\n{s}\n", "200", "GET/a="),
    "empty-query-and-fragment": ("GET /a?#b HTTP/1.1\nhost: h\n{s}\n", "200", "GET/a?="),
    "backslash": ("GET \\a HTTP/1.1\nhost: h\n{s}\n", "400.", ""),
    "two-slashes": ("GET //other.example/a HTTP/1.1\nhost: h\n{s}\n", "200", "GET//other.example/a="),
    "encoded-name-of-ours": ("GET /%761/sessions HTTP/1.1\nhost: h\n{s}\n", "200", "GET/%761/sessions="),
    "dots": ("GET /x/../v1/sessions HTTP/1.1\nhost: h\n{s}\n", "200", "GET/x/../v1/sessions="),
    "version-1.2": ("GET /a HTTP/1.2\nhost: h\n{s}\n", "400.", ""),
    "version-1.10": ("GET /a HTTP/1.10\nhost: h\n{s}\n", "400.", ""),
    "version-01.1": ("GET /a HTTP/01.1\nhost: h\n{s}\n", "400.", ""),
    "tab": ("GET\t/a HTTP/1.1\nhost: h\n{s}\n", "400.", ""),
    "space-behind-version": ("GET /a HTTP/1.1 \nhost: h\n{s}\n", "400.", ""),
    "lower-case-method": ("get /a HTTP/1.1\nhost: h\n{s}\n", "400.", ""),
    "two-equal-hosts": ("GET /a HTTP/1.1\nhost: h\nHOST: h\n{s}\n", "400.", ""),
    "no-host-in-http-1.0": ("GET /a HTTP/1.0\n{s}\n", "200.", "GET/a="),
    "nominated-session": ("GET /a HTTP/1.1\nhost: h\n{s}connection: x-session-id, host\n\n", "200", "GET/a="),
    "thousands-nominated": (f"GET /a HTTP/1.1\nhost: h\n{{s}}connection: {', '.join(map(str, range(9000)))}\n\n",
                            "200", "GET/a="),
}  # fmt: skip

TABLES = {"upgrade": UPGRADES, "framing": FRAMING, "target": TARGETS}

BAD_HOSTS = (
    "a/b", "a b", "a,b", "u@h", "h:-1", "h:x", "h:999999", "[::1", "[::1]x", "[fe80::1%25eth0]:80", 'a"b', "a<b>",
    "h\tx",     "h\xe9", "h?x", "h#x", "http://h", "*", "h;x", "h\\x", "h'x", "(h)",
)  # fmt: skip
GOOD_HOSTS = ("", "h", "H:8080", "h.", "h:", "_dmarc.h", "127.0.0.1:1", "[::1]:8080", "%6c")

# A field, and by what name an application behind CGI or WSGI knows it.
UNDERSCORES = (
    "x_session_id", "X_Forwarded_For", "x-forwarded_host", "x_forwarded_proto", "X_Forwarded_Prefix", "x_real_ip",
    "content_length", "transfer_encoding", "authorization_", "x_api_key", "x_wakegate_runtime", "x_request_id",
    "proxy_authorization", "x_auth_request_user",
)  # fmt: skip


async def _echo(call: Call) -> None:
    body = await call.body()
    await call.reply(f"{call.request.method}{call.request.path}={body.decode()}".encode())


async def _answer(client: Client, method: str) -> Message:
    """The next answer that is final."""
    while (head := await client.head()).status == 100:
        pass
    return await client.fill(head, bodyless=method == "HEAD")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def echoing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, ScriptedSandbox]]:
    """A gateway that serves any host."""
    async with scripted(tmp_path_factory.mktemp("echoing"), _echo, allowed_hosts="*") as opened:
        yield opened


@SHARED
@pytest.mark.parametrize("name", [f"{kind}/{name}" for kind, rows in TABLES.items() for name in rows])
async def test_request_is_read_in_one_way_or_refused(echoing: tuple[Served, ScriptedSandbox], name: str) -> None:
    """In one piece and in many: no verdict depends on how it is cut."""
    gateway, sandbox = echoing
    kind, _, row = name.partition("/")
    raw, statuses, seen = TABLES[kind][row]
    sent = raw.replace("{s}", f"x-session-id: {await gateway.session()}\n").replace("\n", "\r\n").encode("latin-1")
    paths = [each.rpartition("=")[0] for each in seen.split()]

    sandbox.requests.clear()
    client = await gateway.connect()
    await client.send(sent)
    for index, status in enumerate(statuses.removesuffix(".").split()):
        answer = await _answer(client, "HEAD" if raw.startswith("HEAD") and not index else "GET")
        assert str(answer.status) == status
        if answer.status >= 400:
            assert answer.json.keys() == {"error", "code"}
        elif not raw.startswith("HEAD"):
            assert answer.body.decode() == seen.split()[index]
    if statuses.endswith("."):
        assert await client.closed() == b""
    assert [f"{each.method}{each.path}" for each in sandbox.requests] == paths

    sandbox.requests.clear()
    client = await gateway.connect()
    with contextlib.suppress(ConnectionError):  # what is refused early is closed before its rest is sent
        for start in range(0, min(len(sent), 4000), 7):
            await client.send(sent[start : start + 7])
            await asyncio.sleep(0)
        client.writer.write(sent[4000:])
    if statuses.endswith("."):
        await client.closed()
    else:
        for path in paths:
            await _answer(client, "HEAD" if path.startswith("HEAD") else "GET")
    assert [f"{each.method}{each.path}" for each in sandbox.requests] == paths


@SHARED
@pytest.mark.parametrize("host", [*BAD_HOSTS, *GOOD_HOSTS])
async def test_host_is_a_name_and_a_port_or_refused(echoing: tuple[Served, ScriptedSandbox], host: str) -> None:
    """On every address: it goes on as X-Forwarded-Host, of which applications make links."""
    gateway, sandbox = echoing
    sandbox.requests.clear()
    answer = await gateway.ask(f"GET /a HTTP/1.1\nhost: {host}\nx-session-id: {await gateway.session()}")
    assert answer.status == (200 if host in GOOD_HOSTS else 400)
    assert len(sandbox.requests) == (host in GOOD_HOSTS)


async def test_names_with_underscores_do_not_pass_for_ours(open_gateway: OpenScripted) -> None:
    """An application behind CGI or WSGI cannot tell them from the ones with hyphens."""
    gateway, sandbox = await open_gateway(strip_headers="x-auth-request-user")
    session = await gateway.session()
    extra = "".join(f"{name}: forged\n" for name in UNDERSCORES)
    for path in (f"/v1/sessions/{session}/ports/8000/", "/"):
        await gateway.ask(f"GET {path} HTTP/1.1\nhost: h\nx-session-id: {session}\n{extra}x_of_the_app: 1")
        names = {name.replace("_", "-") for name, value in sandbox.requests[-1].fields if value == "forged"}
        assert names <= {"authorization-"}, path
        assert (sandbox.requests[-1].get("x_of_the_app") == "1") == path.startswith("/v1")


@pytest.mark.parametrize("trusted", ["", "127.0.0.0/8", "10.0.0.0/8"])
async def test_what_else_proxies_say_comes_from_trusted_ones(open_gateway: OpenScripted, trusted: str) -> None:
    """X-Real-IP and the rest of X-Forwarded-*: applications believe them as they do X-Forwarded-For."""
    gateway, sandbox = await open_gateway(trusted_proxies=trusted)
    session = await gateway.session()
    extra = "x-real-ip: 7.7.7.7\nx-forwarded-port: 1\nx-forwarded-server: s\n"
    await gateway.ask(f"GET /v1/sessions/{session}/ports/8000/ HTTP/1.1\nhost: h\n{extra}")
    told = {sandbox.requests[-1].get(name) for name in ("x-real-ip", "x-forwarded-port", "x-forwarded-server")}
    assert told == ({"7.7.7.7", "1", "s"} if trusted.startswith("127") else {None})


async def test_field_that_connection_names_goes_no_further(open_gateway: OpenScripted) -> None:
    """Also one that the gateway reads; of the forwarding fields, which are its own, none can be named away."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    named = "prefer, sec-fetch-site, origin, x-late, cookie, x-forwarded-for, forwarded, authorization, x-request-id"
    extra = "prefer: wait\nsec-fetch-site: none\norigin: http://localhost\nx-late: 1\ncookie: a=b\n"
    for fields in (f"connection: {named}\n{extra}", f"{extra}connection: {named}\n"):
        answer = await gateway.ask(f"GET /v1/sessions/{session}/ports/8000/ HTTP/1.1\nhost: h\n{fields}")
        assert answer.status == 200
        seen = sandbox.requests[-1]
        assert [seen.get(name) for name in ("prefer", "sec-fetch-site", "origin", "x-late", "cookie")] == [None] * 5
        assert seen.get("x-forwarded-for") == "127.0.0.1"
        assert seen.get("authorization")
        assert seen.get("x-request-id")


async def test_websocket_handshake_with_framing_is_no_way_past_the_bounds(open_gateway: OpenScripted) -> None:
    """Handshakes that lack what one has are refused before a sandbox hears of them, in the shape of all our errors."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    for fields in (
        "sec-websocket-version: 13\n",
        f"{KEY}sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\n",
        "sec-websocket-version: 8\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\n",
        "sec-websocket-version: 13\nsec-websocket-key: short\n",
        f"{KEY}origin: http://a\norigin: http://a\n",
        f"{KEY}sec-websocket-protocol: a b\n",
        f"{KEY}sec-websocket-extensions: {'x;' * 9000}\n",
        f"{KEY}connection: ;\n",
    ):
        answer = await gateway.ask(get(session, "/", f"connection: upgrade\nupgrade: websocket\n{fields}"))
        assert (answer.status, answer.json["code"]) == (400, "BAD_REQUEST")
        assert answer.get("sec-websocket-version") == "13"
        assert len(answer.body) < 400
    assert sandbox.requests == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/", f"accept: {'a' * 9000}\n"), (f"/{'a' * 9000}", ""), ("/", "accept: a\n" * 200), ("/?q=é", "accept: é\n")],
    ids=["value", "target", "number", "latin-1"],
)
async def test_large_head_of_a_websocket_is_taken_as_any_other(
    open_gateway: OpenScripted, path: str, fields: str
) -> None:
    """What a plain request may have a handshake may have too: it reaches the sandbox, and gets an answer."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    answer = await gateway.ask(get(session, path, f"{WEBSOCKET}{fields}").rstrip("\n"))
    assert answer.status == 200  # the sandbox speaks no WebSocket
    (seen,) = sandbox.requests
    sent = [line.removeprefix("accept: ") for line in fields.splitlines()]
    assert (seen.path, seen.get("upgrade"), seen.all("accept")) == (path.replace("é", "%E9"), "websocket", sent)


async def test_path_of_a_state_folder_is_in_no_refusal(open_gateway: OpenScripted, tmp_path: Path) -> None:
    """Facts of the host are not a client's."""
    gateway, _ = await open_gateway()
    for path in ("/v1/sessions/none/snapshots", "/%2e%2e/x", "/v1/containers/none/files"):
        answer = await gateway.ask(f"GET {path} HTTP/1.1\nhost: h")
        assert str(tmp_path).encode() not in answer.body
