"""The sessions of one gateway on a manual clock, a real sqlite store and scripted sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.core.interfaces import Executor
from gateway.core.model import HibernationMode, SandboxId, Session, SessionId
from gateway.identity.tenants import TenantDirectory
from gateway.runtimes.catalog import StaticCatalog, default_runtime
from gateway.sessions.build import SessionSettings, make_sessions
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock, MemorylessExecutor, ScriptedProvider


class World:
    """Everything around one gateway's sessions."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.store = SqliteStore(folder / "wakegate.db", self.clock)
        self.provider = ScriptedProvider(clock=self.clock)
        self.runtime = replace(default_runtime(1), hibernation=HibernationMode.OFF)
        self.tenants = TenantDirectory(self.store.documents)
        self.unbound: list[tuple[SessionId, SandboxId | None]] = []
        self.restart()

    def restart(self, executor: Executor | None = None, **limits: Any) -> None:
        """A new lifecycle over the same store and provider, as after a restart."""
        sessions = make_sessions(
            store=self.store,
            provider=self.provider,
            keeper=self.provider,
            executor=executor or MemorylessExecutor(),
            catalog=StaticCatalog([self.runtime]),
            clock=self.clock,
            holder="test",
            tenants=self.tenants,
            settings=SessionSettings(hibernated_retention=1000.0, terminated_retention=100.0, **limits),
        )
        self.activity, self.records, self.bindings = sessions.activity, sessions.records, sessions.bindings
        self.lifecycle, self.opener, self.hibernator = sessions.lifecycle, sessions.opener, sessions.hibernator
        self.recovery, self.admission, self.idleness = sessions.recovery, sessions.admission, sessions.idleness
        self.sweeper, self.durations = sessions.sweeper, sessions.durations
        self.checkpointer, self.resizing = sessions.checkpointer, sessions.resizing
        self.bindings.on_unbound(lambda session, sandbox: self.unbound.append((session, sandbox)))

    async def record(self, session_id: SessionId) -> Session:
        found = await self.store.get(session_id)
        assert found is not None
        return found

    async def sandboxes(self) -> set[SandboxId]:
        return {sandbox.id for sandbox in await self.provider.list()}


@asynccontextmanager
async def hibernating(folder: Path, mode: HibernationMode) -> AsyncIterator[World]:
    """A world whose sessions hibernate in this mode, with its store open and its runtime served."""
    made = World(folder)
    made.runtime = replace(made.runtime, hibernation=mode)
    made.restart()
    await made.store.start()
    await made.provider.apply([made.runtime])
    yield made
    await made.store.aclose()
