"""Watchers that clients poll: how many there are of each tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from gateway.api.e2b import watching
from gateway.api.e2b.connect import ConnectError
from gateway.api.e2b.records import E2BRecord
from gateway.api.e2b.sandbox import SandboxClient
from gateway.api.e2b.watching import Watchers
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId, StartKind


class WatchedSandbox:
    """Its directory is watched at once, and never changes."""

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[tuple[SandboxReply, AsyncIterator[bytes]]]:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"event: ready\ndata: {}\n\n"
            await asyncio.Event().wait()

        yield SandboxReply(200, {}, StartKind.LIVE), chunks()


async def test_no_tenant_takes_all_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One over its own bound is refused, and another tenant is served; what is removed gives room."""
    monkeypatch.setattr(watching, "_MAX_OF_TENANT", 2)
    sandbox = SandboxClient(SessionId("s"), E2BRecord(), cast("SandboxCaller", WatchedSandbox()))
    watchers = Watchers()

    async def create(tenant: str) -> str:
        with acting_as(Identity(Role.MEMBER, tenant)):
            return str((await watchers.create(sandbox, {"path": "/home/user"}))["watcherId"])

    try:
        first, _ = await create("acme"), await create("acme")
        with pytest.raises(ConnectError, match="2 watchers exist already"):
            await create("acme")
        await create("globex")
        await watchers.remove(sandbox, {"watcherId": first})
        while len(watchers._by_id) > 2:
            await asyncio.sleep(0)
        await create("acme")
    finally:
        await watchers.aclose()
