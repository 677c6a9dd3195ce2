"""Ids of MCP sessions: first calls and the end of one client, in every order in which they may overtake each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from gateway.api.mcp.sessions import MCPSessions
from gateway.api.tools.service import ToolService
from gateway.core.errors import SessionNotFoundError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SessionId, SessionState
from gateway.identity.shared_secret import SharedSecret
from gateway.runtimes.catalog import StaticCatalog
from tests.support.session_world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.store.start()
    yield made
    await made.store.aclose()


@pytest.fixture
def sessions(world: World) -> MCPSessions:
    catalog = StaticCatalog([world.runtime])
    no_calls = cast("SandboxCaller", None)  # no tool runs here
    service = ToolService(world.lifecycle, catalog, no_calls, world.clock, picture_max_side=100)
    made = MCPSessions(service, world.lifecycle, catalog, world.clock)
    made.open(SharedSecret(b"secret"))
    return made


def around(
    monkeypatch: pytest.MonkeyPatch, world: World, step: str, meanwhile: Callable[[], Awaitable[object]], *, after: bool
) -> None:
    """Let `meanwhile` happen once, just before or after the lifecycle does `step` for the first time."""
    real = getattr(world.lifecycle, step)

    async def replaced(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(world.lifecycle, step, real)
        if not after:
            await meanwhile()
        answer = await real(*arguments, **named)
        if after:
            await meanwhile()
        return answer

    monkeypatch.setattr(world.lifecycle, step, replaced)


async def refused(sessions: MCPSessions, session: SessionId) -> None:
    """Neither a list of tools, nor a call, nor a further end finds it."""
    for ask in (sessions.tools, sessions.ensure, sessions.end):
        with pytest.raises(SessionNotFoundError):
            await ask(session)


@pytest.mark.parametrize(
    ("ask", "step"),
    [("tools", "get"), ("tools", "exists"), *(("ensure", each) for each in ("get", "exists", "register"))],
)
async def test_first_call_that_another_one_overtakes_is_served(
    monkeypatch: pytest.MonkeyPatch, world: World, sessions: MCPSessions, ask: str, step: str
) -> None:
    """Whenever the other writes the record, both are served, by the session of their id."""
    session = sessions.reserve(world.runtime)
    around(monkeypatch, world, step, lambda: sessions.ensure(session), after=False)
    await getattr(sessions, ask)(session)
    await sessions.ensure(session)
    assert (await world.record(session)).state is not SessionState.TERMINATED


async def test_ended_id_is_not_found_whether_it_was_used_or_not(world: World, sessions: MCPSessions) -> None:
    """An end without a call stores nothing; after a call it ends the session."""
    used, unused = sessions.reserve(world.runtime), sessions.reserve(world.runtime)
    await sessions.ensure(used)
    for session in (used, unused):
        await sessions.end(session)
        await refused(sessions, session)
    assert (await world.record(used)).state is SessionState.TERMINATED
    assert await world.store.get(unused) is None


async def test_first_call_that_the_end_overtakes_leaves_no_session(
    monkeypatch: pytest.MonkeyPatch, world: World, sessions: MCPSessions
) -> None:
    """The end found no record; the call, which then writes it, is refused and ends it."""
    session = sessions.reserve(world.runtime)
    around(monkeypatch, world, "register", lambda: sessions.end(session), after=False)
    with pytest.raises(SessionNotFoundError):
        await sessions.ensure(session)
    assert (await world.record(session)).state is SessionState.TERMINATED
    await refused(sessions, session)


async def test_end_that_a_first_call_overtakes_ends_its_session(
    monkeypatch: pytest.MonkeyPatch, world: World, sessions: MCPSessions
) -> None:
    """The call wrote the record after the end had looked for it."""
    session = sessions.reserve(world.runtime)
    around(monkeypatch, world, "exists", lambda: sessions.ensure(session), after=True)
    await sessions.end(session)
    assert (await world.record(session)).state is SessionState.TERMINATED
    await refused(sessions, session)
