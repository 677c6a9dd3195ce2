"""A gateway without a server, whose claims can be held back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.core.model import Invocations, RuntimeKey, SessionId
from gateway.routing.activator import Activator
from gateway.routing.reservation import Reservation
from gateway.routing.target import Target
from gateway.runtimes.catalog import default_runtime
from gateway.testing import ManualClock, ScriptedProvider, scripted_gateway
from tests.support.scripted import KEY

_NO_LIMITS = Invocations()


class HeldGateway:
    """A gateway's parts without a server."""

    def __init__(self, folder: Path, invocations: Invocations, **settings: Any) -> None:
        self.provider = ScriptedProvider()
        self.clock = ManualClock()
        self.gateway = scripted_gateway(
            folder,
            self.provider,
            clock=self.clock,
            runtimes=[replace(default_runtime(1), invocations=invocations)],
            **settings,
        )
        self.activator: Activator = self.gateway.activator

    async def session(self) -> SessionId:
        return (await self.gateway.lifecycle.create(KEY)).session.id

    def reserve(self, session_id: SessionId | None, runtime: RuntimeKey | None = None) -> asyncio.Task[Reservation]:
        return asyncio.create_task(self.activator.reserve(Target(session_id, runtime, b"/")))

    async def lost(self) -> SessionId:
        """A session whose next request has to wait for a claim that does not come."""
        opened = await self.gateway.lifecycle.create(KEY)
        self.provider.end(opened.sandbox.id, "gone")
        self.provider.hold = asyncio.Event()
        return opened.session.id

    def go(self) -> None:
        assert self.provider.hold is not None
        self.provider.hold.set()


@asynccontextmanager
async def world(folder: Path, invocations: Invocations = _NO_LIMITS, **settings: Any) -> AsyncIterator[HeldGateway]:
    made = HeldGateway(folder, invocations, **settings)
    await made.gateway.store.start()
    await made.provider.apply(made.gateway.catalog.all())
    yield made
    await made.gateway.store.aclose()
