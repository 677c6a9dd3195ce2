"""The gateway's own requests to a sandbox, against one that is played by a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import SessionNotFoundError, UpstreamBrokenError, UpstreamTimeoutError
from gateway.core.model import Endpoint, SessionId, StartKind
from gateway.routing.sandbox_client import Caller
from gateway.testing import ManualClock, ScriptedProvider
from tests.support.scripted import Call, OpenScripted, ScriptedSandbox, Served, served
from tests.support.waiting import eventually

ON_UVLOOP = True


def caller_of(gateway: Served) -> Caller:
    return Caller(gateway.gateway.activator, ManualClock())


def idle(gateway: Served, session: SessionId) -> bool:
    return gateway.gateway.activator.routes[session].in_flight == 0


async def test_caller_sends_what_it_was_given_and_reads_the_answer(open_gateway: OpenScripted) -> None:
    """With the session's token and header; the connection is used again and the slot given back."""

    async def script(call: Call) -> None:
        body = await call.body()
        await call.reply(body[::-1], "201 Created", "X-Odd: yes\n")

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    caller = caller_of(gateway)
    for _ in range(2):
        reply = await caller.call(session, "POST", "/api/x?y=1", headers={"content-type": "a/b"}, body=b"abc")
        assert (reply.status, reply.body, reply.headers["x-odd"], reply.start) == (201, b"cba", "yes", StartKind.LIVE)
    request = sandbox.requests[-1]
    assert (request.method, request.path, request.get("content-type")) == ("POST", "/api/x?y=1", "a/b")
    assert (request.get("authorization") or "").startswith("Bearer ")
    assert request.get("x-agentcube-session-id") == session
    assert sandbox.dials == 1
    assert idle(gateway, session)


async def test_caller_streams_a_body_up_and_an_answer_down(open_gateway: OpenScripted) -> None:
    """Chunked both ways; an answer that comes before the whole body ends the upload."""

    async def script(call: Call) -> None:
        if call.request.path == "/full":
            await call.reply(b"disk full", "507 Insufficient Storage", "connection: close\n")
            return
        await call.reply(await call.body())

    async def pieces(count: int) -> AsyncIterator[bytes]:
        for index in range(count):
            yield b"%d," % index
            await asyncio.sleep(0)

    gateway, _ = await open_gateway(script)
    session = await gateway.session()
    caller = caller_of(gateway)
    assert (await caller.call(session, "PUT", "/f", body=pieces(3))).body == b"0,1,2,"
    refused = await caller.call(session, "PUT", "/full", body=pieces(1_000_000))
    assert (refused.status, refused.body) == (507, b"disk full")
    assert idle(gateway, session)


async def test_caller_that_gives_up_lets_the_sandbox_see_it(open_gateway: OpenScripted) -> None:
    """A timeout, a cancellation and an answer that is too long cut the connection and give the slot back."""

    async def script(call: Call) -> None:
        if call.request.path == "/long":
            await call.reply(b"x" * 100_000)
        await call.body()
        await asyncio.Event().wait()

    gateway, sandbox = await open_gateway(script)
    session = await gateway.session()
    caller = caller_of(gateway)
    with pytest.raises(UpstreamTimeoutError):
        await caller.call(session, "GET", "/silent", timeout=0.05)
    with pytest.raises(UpstreamBrokenError, match="larger than 1000"):
        await caller.call(session, "GET", "/long", limit=1000)
    task = asyncio.create_task(caller.call(session, "GET", "/silent"))
    await eventually(lambda: len(sandbox.requests) == 3, "the request arrives")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert idle(gateway, session)
    assert not gateway.gateway.activator.routes[session].pool.idle


async def test_caller_replaces_a_sandbox_that_is_gone_and_counts_slots_right(tmp_path: Path, short_path: Path) -> None:
    """Nothing was sent to the one that is gone; afterwards no slot is taken, on either."""
    sandbox = ScriptedSandbox()
    await sandbox.start()
    gone = Endpoint(uds=str(short_path / "gone.sock"))
    try:
        async with served(tmp_path, ScriptedProvider(gone, sandbox.endpoint)) as gateway:
            session = await gateway.session()
            reply = await caller_of(gateway).call(session, "GET", "/x")
            found = (reply.body, reply.start, idle(gateway, session))
            busy = gateway.gateway.activity.busy(session)  # it counts both sandboxes' requests
            gateway.gateway.activity.forget(session)
    finally:
        await sandbox.aclose()
    body, start, is_idle = found
    assert (body, is_idle) == (b"ok", True)
    assert start is not StartKind.LIVE
    assert not busy


async def test_caller_unknown_session_is_not_found(open_gateway: OpenScripted) -> None:
    """It raises the same error as the data path."""
    gateway, _ = await open_gateway()
    with pytest.raises(SessionNotFoundError):
        await caller_of(gateway).ready(SessionId("nope"))
