"""WebSockets through the gateway, with a real server as the sandbox and a real client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
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
    assert seen[0].headers["cookie"] == "k=v"
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
    """With its reason."""

    async def handler(connection: ServerConnection) -> None:
        await connection.close(code, reason)

    async with through(tmp_path, handler) as (gateway, session), dial(gateway, session) as client:
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, "bye"), (4321, "own code")])
async def test_close_code_of_the_client_reaches_the_sandbox(tmp_path: Path, code: int, reason: str) -> None:
    """With its reason."""
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


async def test_sandbox_that_dies_is_told_as_bad_gateway(tmp_path: Path) -> None:
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
        answer = (await refused(dial(gateway, session))).response
        assert (answer.status_code, answer.body) == (status, b"not today\n")
        assert answer.headers["x-session-id"] == session
        await eventually(lambda: open_slots(gateway) == 0, "the slot is given back")


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


async def test_gateway_refuses_in_its_own_words(open_gateway: OpenScripted) -> None:
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


async def test_traffic_is_activity_and_silence_is_not(tmp_path: Path) -> None:
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
