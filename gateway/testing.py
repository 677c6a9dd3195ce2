"""Fakes that ship with the package, for tests here and elsewhere."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gateway.app import Gateway
from gateway.core.clock import Clock, SystemClock
from gateway.core.errors import (
    RuntimeNotFoundError,
    SandboxStartError,
    SnapshotNotFoundError,
    UpstreamBrokenError,
    WakegateError,
)
from gateway.core.interfaces import SandboxProvider, WorkspaceKeeper
from gateway.core.model import (
    Endpoint,
    PoolStatus,
    Runtime,
    RuntimeKey,
    Sandbox,
    SandboxEvent,
    SandboxId,
    SessionId,
    StartKind,
    SuspendReport,
)
from gateway.core.settings import Settings
from gateway.runtimes.catalog import default_runtime
from gateway.sandbox.signing_keys import KeyRing
from gateway.store.sqlite import SqliteStore


class ManualClock:
    """A Clock that stands still until it is told to advance."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._monotonic = 0.0

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass. Negative: the wall clock was set back; the monotonic one never is."""
        self._now += seconds
        self._monotonic += max(seconds, 0.0)


class ScriptedProvider:
    """A SandboxProvider whose sandboxes are records only: each has the endpoint that the script gives.

    `endpoints` are handed out in turn, the last one again and again. `warm` claims come from the pool, further ones are
    cold. `fail_with` makes claims raise. `end(sandbox_id, reason)` lets a sandbox end on its own.
    """

    def __init__(self, *endpoints: Endpoint, clock: Clock | None = None) -> None:
        self.leaves_running = False
        self.endpoints = list(endpoints) or [Endpoint(uds="/nonexistent/sandbox.sock")]
        self.fail_with: WakegateError | None = None
        self.hold: asyncio.Event | None = None  # claims wait for it when set
        self.cold_seconds = 0.0  # what a cold claim takes; they come one after the other
        self._starting = asyncio.Lock()
        self.claims = 0
        self._clock = clock or SystemClock()
        self._warm: dict[RuntimeKey, int] = {}
        self._targets: dict[RuntimeKey, int] = {}
        self._sandboxes: dict[SandboxId, Sandbox] = {}
        self._events: asyncio.Queue[SandboxEvent] = asyncio.Queue()
        self.contents: dict[SandboxId, str] = {}  # what stands for the files in each workspace; missing means empty
        self.parked: dict[str, tuple[str, float]] = {}  # by reference: contents, and when they were parked
        self._ended: set[SandboxId] = set()
        self._restored: dict[SandboxId, str] = {}  # sandboxes whose contents came from what was parked

    async def start(self) -> None:
        """Nothing to clear."""

    async def aclose(self) -> None:
        """All sandboxes end."""
        self._sandboxes.clear()

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Pools are full at once."""
        self._targets = {runtime.key: runtime.pool.size for runtime in runtimes}
        self._warm = dict(self._targets)

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """A warm record while there are any; the pool fills again at once."""
        if runtime not in self._targets:
            raise RuntimeNotFoundError(f"{runtime} is not served")
        if self.hold is not None:
            await self.hold.wait()
        if self.cold_seconds and not self._warm[runtime]:
            async with self._starting:
                await asyncio.sleep(self.cold_seconds)
        if self.fail_with is not None:
            raise self.fail_with
        self.claims += 1
        endpoint = self.endpoints.pop(0) if len(self.endpoints) > 1 else self.endpoints[0]
        start = StartKind.WARM if self._warm[runtime] else StartKind.COLD
        sandbox_id = SandboxId(f"sb-{uuid.uuid4().hex[:12]}")
        sandbox = Sandbox(sandbox_id, runtime, endpoint, start, self._clock.now(), session_id)
        self._sandboxes[sandbox_id] = sandbox
        return sandbox

    async def release(self, sandbox_id: SandboxId) -> None:
        """Forget it; absent is success."""
        self._sandboxes.pop(sandbox_id, None)
        self._ended.discard(sandbox_id)
        self.contents.pop(sandbox_id, None)

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """The pool has that size at once."""
        if runtime not in self._targets:
            raise RuntimeNotFoundError(f"{runtime} is not served")
        self._targets[runtime] = self._warm[runtime] = warm

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool as scripted."""
        if runtime not in self._targets:
            raise RuntimeNotFoundError(f"{runtime} is not served")
        claimed = sum(1 for each in self._sandboxes.values() if each.runtime == runtime)
        return PoolStatus(runtime, self._targets[runtime], self._warm[runtime], 0, claimed, 0)

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """From memory."""
        return self._sandboxes.get(sandbox_id)

    async def list(self) -> Sequence[Sandbox]:
        """The bound ones; warm ones are only counted."""
        return list(self._sandboxes.values())

    async def watch(self) -> AsyncIterator[SandboxEvent]:
        """What `end` was told."""
        while True:
            yield await self._events.get()

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """End the sandbox and keep its contents, also if it ended with `keeps`."""
        if self._sandboxes.pop(sandbox_id, None) is not None or sandbox_id in self._ended:
            self._ended.discard(sandbox_id)
            self.parked[session_id] = (self.contents.pop(sandbox_id, ""), self._clock.now())
        return session_id if session_id in self.parked else None

    async def park(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """What `keep` does."""
        return await self.keep(sandbox_id, session_id)

    async def checkpoint(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """It parks, and so does not copy."""
        return None

    async def restore(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> None:
        """Give the contents to the sandbox; the reference is used up."""
        if sandbox_id not in self._sandboxes:
            raise SandboxStartError(f"sandbox {sandbox_id} ended before its workspace was restored")
        await self.check(reference)
        self.contents[sandbox_id], _ = self.parked.pop(reference)
        self._restored[sandbox_id] = reference

    async def check(self, reference: str) -> None:
        """Whether it is parked. Raises SnapshotNotFoundError."""
        if reference not in self.parked:
            raise SnapshotNotFoundError(f"nothing is parked as {reference}")

    async def rollback(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Whichever of the two has the contents; if neither has, the reference stays what it was."""
        if reference in self.parked or self._restored.get(sandbox_id) != reference:
            return reference
        return await self.keep(sandbox_id, session_id)

    async def delete(self, reference: str) -> None:
        """Forget it; absent is success."""
        self.parked.pop(reference, None)

    async def retain_abandoned(self) -> None:
        """What ended stays as it is: `keep` finds it."""

    async def delete_orphans(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Forget what was parked and no record names."""
        limit = self._clock.now() - older_than
        orphans = {reference for reference, (_, at) in self.parked.items() if at <= limit}
        async for reference in known():
            orphans.discard(reference)
        for reference in orphans:
            await self.delete(reference)
        return len(orphans)

    def end(self, sandbox_id: SandboxId, reason: str, *, keeps: bool = False) -> None:
        """A sandbox ends on its own; with `keeps` its workspace can still be parked."""
        sandbox = self._sandboxes.pop(sandbox_id)
        if keeps:
            self._ended.add(sandbox_id)
        self._events.put_nowait(SandboxEvent(sandbox_id, sandbox.session_id, reason))


class MemorylessExecutor:
    """An Executor over a scripted provider's `contents`; nothing is in any sandbox's memory."""

    def __init__(self, provider: ScriptedProvider | None = None) -> None:
        self._provider = provider

    async def export(self, sandbox: Sandbox, session_id: SessionId) -> AsyncGenerator[bytes, None]:
        """The contents. Raises UpstreamBrokenError when the sandbox ends before all was given."""
        content = "" if self._provider is None else self._provider.contents.get(sandbox.id, "")
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            await asyncio.sleep(0.01)
            if self._provider is not None and await self._provider.find(sandbox.id) is None:
                raise UpstreamBrokenError(f"sandbox {sandbox.id} went away")
            yield half.encode()

    async def restore(self, sandbox: Sandbox, session_id: SessionId, chunks: AsyncIterator[bytes]) -> None:
        """Make what comes the contents."""
        content = b"".join([chunk async for chunk in chunks])
        await asyncio.sleep(0.01)
        if self._provider is not None:
            if await self._provider.find(sandbox.id) is None:
                raise UpstreamBrokenError(f"sandbox {sandbox.id} went away")
            self._provider.contents[sandbox.id] = content.decode()

    async def suspend(self, sandbox: Sandbox, session_id: SessionId) -> SuspendReport:
        """Nothing to save."""
        return SuspendReport()

    async def resume(self, sandbox: Sandbox, session_id: SessionId) -> None:
        """Nothing to take up."""

    async def busy(self, sandbox: Sandbox, session_id: SessionId) -> bool:
        """Nothing runs."""
        return False


class EngineLike(SandboxProvider, WorkspaceKeeper, Protocol):
    """What a test gateway runs on: makes sandboxes and keeps workspaces."""


def scripted_gateway(state_dir: Path, provider: EngineLike, **changes: Any) -> Gateway:
    """A gateway with real store, keys and data path over the given provider, on a free port of 127.0.0.1.

    `changes` are settings, and `runtimes`, `store` or `clock`; with `me` it is one of several over that store.
    Serve it with `gateway.serving.server.serving`.
    """
    clock: Clock = changes.pop("clock", None) or SystemClock()
    runtimes = changes.pop("runtimes", None) or [default_runtime(3)]
    store = changes.pop("store", None) or SqliteStore(state_dir / "wakegate.db", clock)
    me = changes.pop("me", "")
    settings = Settings(**{"port": 0, "state_dir": state_dir, "allowed_hosts": "a,b,gateway,h,x", **changes})
    keys = KeyRing(state_dir / "keys", settings.token_algorithm)
    keys.open()
    return Gateway(
        settings,
        runtimes=runtimes,
        store=store,
        provider=provider,
        keeper=provider,
        executor=MemorylessExecutor(),
        keys=keys,
        clock=clock,
        shared=bool(me),
        me=me,
    )
