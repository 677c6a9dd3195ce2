"""WebSockets through the gateway, with a real server as the sandbox and a real client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from gateway.core.model import Endpoint, SessionId
from gateway.runtimes.catalog import default_runtime
from gateway.testing import ScriptedProvider
from tests.support.scripted import Call, OpenScripted, ScriptedSandbox, Served, served
from tests.support.waiting import eventually

ON_UVLOOP = True
Handler = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@asynccontextmanager
async def through(folder: Path, handler: Handler = echo, **options: Any) -> AsyncIterator[tuple[Served, str]]:
    """A gateway before a WebSocket server; yields it and a session."""
    settings = options.pop("settings", {})
    async with serve(handler, "127.0.0.1", 0, compression=None, **options) as server:
        endpoint = Endpoint(host="127.0.0.1", port=next(iter(server.sockets)).getsockname()[1])
        async with served(folder, ScriptedProvider(endpoint), **settings) as gateway:
            yield gateway, await gateway.session()


def dial(gateway: Served, session: str, path: str = "/", **options: Any) -> connect:
    headers = {"x-session-id": session, **options.pop("headers", {})}
    return connect(gateway.url.replace("http", "ws") + path, additional_headers=headers, proxy=None, **options)


def open_slots(gateway: Served) -> int:
    return sum(route.in_flight for route in gateway.gateway.activator.routes.values())


async def test_messages_pass_both_ways(tmp_path: Path) -> None:
    """Text stays text and binary binary; empty ones and one of a few megabytes arrive whole."""
    async with through(tmp_path, max_size=None) as (gateway, session):
        async with dial(gateway, session, max_size=None) as client:
            for message in ("hello", b"\x00\xff", "", b"", "é", b"x" * (5 << 20)):
                await client.send(message)
                assert await client.recv() == message
        await eventually(lambda: open_slots(gateway) == 0, "the slot is given back")


async def test_handshake_carries_path_token_and_subprotocol(tmp_path: Path) -> None:
    """The sandbox sees what an HTTP request would bring it, and its choice of subprotocol reaches the client."""
    seen: list[Request] = []

    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request)
        await echo(connection)

    async with through(tmp_path, handler, subprotocols=[Subprotocol("b")]) as (gateway, session):
        path = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/a%2Fb;c?d=e"
        headers = {"authorization": "Bearer mine", "cookie": "k=v"}
        async with dial(
            gateway, session, path, headers=headers, subprotocols=[Subprotocol("a"), Subprotocol("b")]
        ) as client:
            assert client.subprotocol == "b"
            assert client.response is not None
            assert client.response.headers["x-session-id"] == session
            assert client.response.headers["x-agentcube-session-id"] == session
            assert client.response.headers["x-wakegate-start"] in ("live", "warm")
    assert seen[0].path == "/a%2Fb;c?d=e"
    assert seen[0].headers["authorization"].startswith("Bearer ey")
    assert "cookie" not in seen[0].headers  # picod's own paths get no credentials
    assert seen[0].headers["x-forwarded-for"] == "127.0.0.1"
    assert seen[0].headers["x-agentcube-session-id"] == session


async def test_handshake_without_session_makes_one(tmp_path: Path) -> None:
    """Its id comes back in the handshake."""
    async with through(tmp_path) as (gateway, _):
        url = gateway.url.replace("http", "ws") + "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/"
        async with connect(url, proxy=None) as client:
            assert client.response is not None
            session = client.response.headers["x-session-id"]
            assert client.response.headers["x-wakegate-start"] == "warm"
        assert session in gateway.gateway.activator.routes


@pytest.mark.parametrize(("code", "reason"), [(1000, "bye"), (1001, ""), (4321, "own code"), (1011, "broken")])
async def test_close_code_of_the_sandbox_reaches_the_client(tmp_path: Path, code: int, reason: str) -> None:
    """Close code and reason are forwarded to the client."""

    async def handler(connection: ServerConnection) -> None:
        await connection.close(code, reason)

    async with through(tmp_path, handler) as (gateway, session), dial(gateway, session) as client:
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, "bye"), (4321, "own code")])
async def test_close_code_of_the_client_reaches_the_sandbox(tmp_path: Path, code: int, reason: str) -> None:
    """Close code and reason are forwarded to the sandbox."""
    closed: asyncio.Queue[tuple[int | None, str | None]] = asyncio.Queue()

    async def handler(connection: ServerConnection) -> None:
        await connection.wait_closed()
        closed.put_nowait((connection.close_code, connection.close_reason))

    async with through(tmp_path, handler) as (gateway, session):
        async with dial(gateway, session) as client:
            await client.close(code, reason)
        async with asyncio.timeout(20):
            assert await closed.get() == (code, reason)


async def test_client_that_vanishes_ends_the_sandbox_side(tmp_path: Path) -> None:
    """No close frame is needed for it."""
    ended = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await connection.send("ready")
        await connection.wait_closed()
        ended.set()

    async with through(tmp_path, handler) as (gateway, session):
        client = await dial(gateway, session)
        assert await client.recv() == "ready"
        client.transport.abort()
        async with asyncio.timeout(20):
            await ended.wait()
        await eventually(lambda: open_slots(gateway) == 0, "the slot is given back")


async def test_sandbox_that_dies_closes_its_sockets_with_1014(tmp_path: Path) -> None:
    """1014, and never a normal end."""

    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.abort()

    async with through(tmp_path, handler) as (gateway, session), dial(gateway, session) as client:
        await client.send("die")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1014


async def refused(client: connect) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as error:
        await client
    return error.value


@pytest.mark.parametrize("status", [HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE])
async def test_refusal_of_the_sandbox_passes_with_its_status_and_body(tmp_path: Path, status: HTTPStatus) -> None:
    """The client learns what the sandbox said, and which session it was."""

    def refuse(connection: ServerConnection, _: Request) -> Response:
        return connection.respond(status, "not today\n")

    async with through(tmp_path, process_request=refuse) as (gateway, session):
        answer = (await refused(dial(gateway, session, f"/v1/sessions/{session}/ports/8000/"))).response
        assert (answer.status_code, answer.body) == (status, b"not today\n")
        assert answer.headers["x-session-id"] == session
        await eventually(lambda: open_slots(gateway) == 0, "the slot is given back")


async def test_401_of_picod_behind_a_port_is_answered_503(tmp_path: Path) -> None:
    """picod marks its own 401: the client hears 503, and when to try again."""

    def refuse(connection: ServerConnection, _: Request) -> Response:
        answer = connection.respond(HTTPStatus.UNAUTHORIZED, "{}")
        answer.headers["x-wakegate-refused"] = "token"
        return answer

    async with through(tmp_path, process_request=refuse) as (gateway, session):
        answer = (await refused(dial(gateway, session, f"/v1/sessions/{session}/ports/8000/"))).response
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "x-wakegate-refused" not in answer.headers


async def test_redirect_of_the_sandbox_is_passed_on_and_never_followed(
    tmp_path: Path, open_gateway: OpenScripted
) -> None:
    """Code in a sandbox must not send the gateway, with its token, to another address."""
    _, elsewhere = await open_gateway()

    def redirect(connection: ServerConnection, _: Request) -> Response:
        answer = connection.respond(HTTPStatus.FOUND, "")
        answer.headers["Location"] = f"ws://127.0.0.1:{elsewhere.endpoint.port}/secret"
        return answer

    async with through(tmp_path / "two", process_request=redirect) as (gateway, session):
        client = await gateway.connect()
        answer = await client.ask(
            f"GET / HTTP/1.1\nhost: h\nx-session-id: {session}\nconnection: upgrade\nupgrade: websocket\n"
            "sec-websocket-version: 13\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="
        )
        assert (answer.status, answer.get("location")) == (302, f"ws://127.0.0.1:{elsewhere.endpoint.port}/secret")
    assert elsewhere.dials == 0


async def test_refused_handshake_has_a_status_and_json(open_gateway: OpenScripted) -> None:
    """Unknown session, foreign runtime, malformed id, no session: a status and JSON in place of an upgrade."""

    async def garbage(call: Call) -> None:
        await call.send("HTTP/1.1 200 OK\ncontent-length: 2\n\nok")

    gateway, sandbox = await open_gateway(garbage)
    session = await gateway.session()
    other = "/v1/namespaces/default/code-interpreters/other/invocations/"
    for path, value, status, code in (
        ("/", "nobody", 404, "SESSION_NOT_FOUND"),
        (other, session, 404, "SESSION_NOT_FOUND"),
        ("/", "a*b", 400, "BAD_REQUEST"),
        ("/v1/sessions", session, 404, "NOT_FOUND"),
    ):
        answer = (await refused(dial(gateway, value, path))).response
        assert answer.status_code == status
        assert code.encode() in (answer.body or b"")
    assert sandbox.requests == []
    await gateway.ask(f"GET / HTTP/1.1\nhost: h\nx-session-id: {session}")
    assert (await refused(dial(gateway, session, other))).response.status_code == 404
    assert len(sandbox.requests) == 1
    assert (await refused(dial(gateway, session))).response.status_code == 200  # the sandbox's own refusal to upgrade


async def test_sandbox_that_is_gone_is_replaced(tmp_path: Path) -> None:
    """Nothing was sent to it: the client's handshake is with another one, and says that something was lost."""
    async with through(tmp_path) as (gateway, _), aclosing(ScriptedSandbox()) as old:
        await old.start()
        living, gateway.provider.endpoints = gateway.provider.endpoints, [old.endpoint]
        session = await gateway.session()
        gateway.provider.endpoints = living
        old.stop_listening()
        async with dial(gateway, session) as client:
            assert client.response is not None
            assert (client.response.headers["x-session-id"], client.response.headers["x-wakegate-start"]) == (
                session,
                "wake",
            )
            assert "x-wakegate-restored" in client.response.headers
            await client.send("hello")
            assert await client.recv() == "hello"
        await eventually(lambda: open_slots(gateway) == 0, "the slot is given back")


async def test_second_port_that_nobody_listens_on_costs_no_sandbox(tmp_path: Path) -> None:
    """The client is told, and the sandbox stays."""
    async with aclosing(ScriptedSandbox()) as second:
        await second.start()
        second.stop_listening()
        runtimes = [replace(default_runtime(3), target_ports=(("/tools", second.endpoint.port),))]
        async with through(tmp_path, settings={"runtimes": runtimes}) as (gateway, session):
            assert (await refused(dial(gateway, session, "/tools"))).response.status_code == 502
            assert gateway.provider.claims == 1


async def test_sandbox_that_cannot_be_reached_is_a_502(open_gateway: OpenScripted) -> None:
    """With the session header, and the slot given back."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    sandbox.stop_listening()
    answer = (await refused(dial(gateway, session))).response
    assert answer.status_code == 502
    assert answer.headers["x-session-id"] == session
    assert open_slots(gateway) == 0
    assert gateway.provider.claims == 2  # another one was tried, once


async def test_traffic_is_activity_and_an_idle_socket_is_not(tmp_path: Path) -> None:
    """An open socket does not make its session busy; each message either way counts."""
    async with through(tmp_path) as (gateway, session), dial(gateway, session) as client:
        activity = gateway.gateway.activity.of(SessionId(session), 0)
        assert activity.in_flight == 0
        before = activity.last
        await asyncio.sleep(0.01)
        await client.send("x")
        await client.recv()
        assert activity.last > before


async def test_slow_client_holds_the_sandbox_back(tmp_path: Path) -> None:
    """Of a hundred megabytes only what buffers hold is sent while the client does not read."""
    sent = [0]

    async def handler(connection: ServerConnection) -> None:
        for _ in range(1600):
            await connection.send(bytes(65536))
            sent[0] += 65536

    async with through(tmp_path, handler) as (gateway, session):
        client: ClientConnection = await dial(gateway, session, max_queue=1, compression=None)
        last = -1
        while sent[0] != last:
            last = sent[0]
            await asyncio.sleep(0.3)
        assert last < 40 << 20
        client.transport.abort()
        await eventually(lambda: open_slots(gateway) == 0, "the slot is given back")


MANY_MIB = 17 << 20


@pytest.mark.parametrize("fragments", [1, 40])
async def test_message_over_16_mib_of_a_sandbox_is_refused(tmp_path: Path, fragments: int) -> None:
    """Whole or in fragments: the client is closed with 1009 and what is wrong, and the sandbox's side is ended."""
    ended = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        piece = b"x" * (MANY_MIB // fragments)
        try:
            await connection.send([piece] * fragments if fragments > 1 else piece)
        except ConnectionClosed:
            pass
        await connection.wait_closed()
        ended.set()

    async with through(tmp_path, handler) as (gateway, session):
        async with dial(gateway, session, max_size=None) as client:
            await client.wait_closed()
            assert client.close_code == 1009
            assert client.close_reason == "the sandbox sent a message of more than 16 MiB"
        async with asyncio.timeout(20):
            await ended.wait()
        await eventually(lambda: open_slots(gateway) == 0, "the slot is given back")


async def test_message_over_16_mib_of_a_client_is_refused(tmp_path: Path) -> None:
    """With 1009; nothing of it reaches the sandbox."""
    got: list[object] = []

    async def handler(connection: ServerConnection) -> None:
        async for message in connection:
            got.append(message)

    async with through(tmp_path, handler) as (gateway, session), dial(gateway, session) as client:
        with suppress(ConnectionClosed):  # already while it is sent
            await client.send(b"x" * MANY_MIB)
        await client.wait_closed()
        assert client.close_code == 1009
    assert got == []


@pytest.mark.parametrize("kind", [str, bytes])
async def test_fragments_are_joined(tmp_path: Path, kind: type) -> None:
    """A message in many small fragments, empty ones among them, arrives as one of the same kind, with no letter cut."""
    pieces = ["é" * (n % 3) for n in range(2000)]

    async def handler(connection: ServerConnection) -> None:
        await connection.send(pieces if kind is str else [piece.encode() for piece in pieces])
        await connection.wait_closed()

    async with through(tmp_path, handler) as (gateway, session), dial(gateway, session) as client:
        whole = "".join(pieces)
        assert await client.recv() == (whole if kind is str else whole.encode())


@pytest.mark.parametrize(
    ("origin", "passed_as"),
    [
        ("http://{host}", "http://{own}"),
        ("https://{host}", "http://{own}"),
        ("HTTP://{host}", "http://{own}"),
        ("http://evil.example", "http://evil.example"),
        ("http://{name}", "http://{name}"),
    ],
)
async def test_origin_follows_host_where_it_named_it(tmp_path: Path, origin: str, passed_as: str) -> None:
    """A server that compares Origin with Host, as Tornado does, finds them equal for its own pages and for no other."""
    seen: list[Request] = []

    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request)

    async with through(tmp_path, handler, settings={"allowed_origins": "http://evil.example"}) as (gateway, session):
        host = gateway.url.removeprefix("http://")
        names = {"host": host, "name": host.partition(":")[0]}
        async with dial(gateway, session, headers={"origin": origin.format(**names)}) as client:
            await client.wait_closed()
        assert seen[0].headers["origin"] == passed_as.format(own=seen[0].headers["host"], **names)


async def test_fields_of_the_apps_handshake_reach_the_client(tmp_path: Path) -> None:
    """Its cookies and other fields of its own; what is ours to say and what belongs to one hop does not pass."""

    def add(connection: ServerConnection, request: Request, response: Response) -> None:
        for value in ("a=1; Path=/", "b=2"):
            response.headers["set-cookie"] = value
        response.headers["x-app"] = "1"
        response.headers["x-session-id"] = "forged"

    async with through(tmp_path, process_response=add) as (gateway, session):
        path = f"/v1/sessions/{session}/ports/8000/"
        async with dial(gateway, session, path) as client:
            assert client.response is not None
            fields = client.response.headers
            assert fields.get_all("set-cookie") == [f"a=1; Path={path}", f"b=2; Path={path}"]
            assert (fields["x-app"], fields.get_all("x-session-id")) == ("1", [session])
            assert len(fields.get_all("sec-websocket-accept")) == 1


async def _ended(tmp_path: Path, end: Callable[[Served, SessionId], Awaitable[object]]) -> tuple[int | None, str]:
    """How a client's socket ends when its session does and the sandbox's connections break."""
    over = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await connection.send("ready")
        await over.wait()
        connection.transport.abort()

    async with through(tmp_path, handler) as (gateway, session), dial(gateway, session) as client:
        assert await client.recv() == "ready"
        await end(gateway, SessionId(session))
        over.set()
        await client.wait_closed()
        return client.close_code, client.close_reason or ""


async def test_socket_of_a_hibernated_session_closes_with_1001(tmp_path: Path) -> None:
    """It is closed with 1001 and the advice to connect again."""
    code, reason = await _ended(
        tmp_path, lambda gateway, session: gateway.gateway.sessions.hibernator.hibernate(session)
    )
    assert (code, reason) == (1001, "the session was hibernated; connect again to wake it")


async def test_socket_of_a_deleted_session_closes_with_1000(tmp_path: Path) -> None:
    """1000 with the reason that the session's record has, as much of it as fits."""
    why = "x" * 200

    async def end(gateway: Served, session: SessionId) -> None:
        await gateway.gateway.sessions.lifecycle.terminate(session, why)

    code, reason = await _ended(tmp_path, end)
    assert code == 1000
    assert reason.startswith("the session has ended: xxx")
    assert len(reason) == 123


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://{host}.evil.example"},
        {"sec-fetch-site": "cross-site"},
    ],
)
async def test_handshake_of_a_foreign_page_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    """With 403; the sandbox sees none of it."""
    seen: list[ServerConnection] = []

    async def handler(connection: ServerConnection) -> None:
        seen.append(connection)

    async with through(tmp_path, handler) as (gateway, session):
        host = gateway.url.removeprefix("http://")
        sent = {name: value.format(host=host) for name, value in headers.items()}
        with pytest.raises(InvalidStatus) as refused:
            async with dial(gateway, session, headers=sent):
                pass
        assert refused.value.response.status_code == 403
        assert b"--allowed-" in bytes(refused.value.response.body or b"")
    assert not seen
