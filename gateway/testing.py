"""Fakes for tests: a clock set by hand, an engine without processes, an executor without picod.

They ship with the package, so that other projects can test against a gateway, and pass the contract suites of the real
parts. Imports `app` and what lies below it. Start with `scripted_gateway`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gateway.app.gateway import Engine, Gateway
from gateway.core.clock import Clock, SystemClock
from gateway.core.errors import (
    RuntimeNotFoundError,
    SandboxGoneError,
    SnapshotNotFoundError,
    UpstreamBrokenError,
    WakegateError,
)
from gateway.core.interfaces import SandboxProvider, WorkspaceKeeper
from gateway.core.model import (
    Endpoint,
    Limits,
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
    """A Clock whose time changes only by `advance`."""

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
        """Move both clocks forward. A negative value sets back the wall clock only."""
        self._now += seconds
        self._monotonic += max(seconds, 0.0)


class ScriptedProvider:
    """A SandboxProvider and WorkspaceKeeper without processes: a sandbox is a record with a given endpoint.

    `endpoints` are used in turn, and the last one repeatedly. `fail_with` makes claims raise. `end(sandbox_id, reason)`
    simulates a sandbox that ends by itself.
    """

    def __init__(self, *endpoints: Endpoint, clock: Clock | None = None) -> None:
        self.leaves_running = False
        self.endpoints = list(endpoints) or [Endpoint(uds="/nonexistent/sandbox.sock")]
        self.fail_with: WakegateError | None = None
        self.hold: asyncio.Event | None = None  # if there is one, claims wait for it
        self.cold_seconds = 0.0  # the duration of a cold claim; they run one after the other
        self._starting = asyncio.Lock()
        self.claims = 0
        self._clock = clock or SystemClock()
        self._warm: dict[RuntimeKey, int] = {}
        self._targets: dict[RuntimeKey, int] = {}
        self._sandboxes: dict[SandboxId, Sandbox] = {}
        self._events: asyncio.Queue[SandboxEvent] = asyncio.Queue()
        self.sizes: dict[SandboxId, Limits] = {}  # of those that were resized
        self.refused_size: WakegateError | None = None  # if there is one, resizes raise it
        self.contents: dict[SandboxId, str] = {}  # a text in place of each workspace's files; missing means empty
        self.parked: dict[str, tuple[str, float]] = {}  # reference -> contents, and when they were parked
        self._ended: set[SandboxId] = set()  # ended by themselves, with a workspace that can still be kept
        self._restored: dict[SandboxId, str] = {}  # sandbox -> the reference that it was restored from

    async def start(self) -> None:
        """Do nothing: there is no earlier process to clean up after."""

    async def aclose(self) -> None:
        """Drop all sandboxes; parked workspaces stay."""
        self._sandboxes.clear()

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Set the runtimes, with pools that are full immediately."""
        self._targets = {runtime.key: runtime.pool.size for runtime in runtimes}
        self._warm = dict(self._targets)

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """Create a sandbox: warm if the pool's size is above 0, since the pool never drains, else cold."""
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
        """Drop the sandbox and its contents. An absent one is not an error."""
        self._sandboxes.pop(sandbox_id, None)
        self._ended.discard(sandbox_id)
        self.contents.pop(sandbox_id, None)

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the pool's size, which takes effect immediately."""
        if runtime not in self._targets:
            raise RuntimeNotFoundError(f"{runtime} is not served")
        self._targets[runtime] = self._warm[runtime] = warm

    async def resize_sandbox(self, sandbox_id: SandboxId, limits: Limits) -> None:
        """Note the limits in `sizes`."""
        if self.refused_size is not None:
            raise self.refused_size
        if sandbox_id not in self._sandboxes:
            raise SandboxGoneError(f"sandbox {sandbox_id} has ended")
        self.sizes[sandbox_id] = limits

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """A pool that always has its target size."""
        if runtime not in self._targets:
            raise RuntimeNotFoundError(f"{runtime} is not served")
        claimed = sum(1 for each in self._sandboxes.values() if each.runtime == runtime)
        return PoolStatus(runtime, self._targets[runtime], self._warm[runtime], 0, claimed, 0)

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox, or None if it was released or has ended."""
        return self._sandboxes.get(sandbox_id)

    async def list(self) -> Sequence[Sandbox]:
        """The bound sandboxes; warm ones are numbers only."""
        return list(self._sandboxes.values())

    async def watch(self) -> AsyncIterator[SandboxEvent]:
        """Yield an event for each call of `end`."""
        while True:
            yield await self._events.get()

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """End the sandbox and park its contents, also those of one that ended with `keeps`."""
        if self._sandboxes.pop(sandbox_id, None) is not None or sandbox_id in self._ended:
            self._ended.discard(sandbox_id)
            self.parked[session_id] = (self.contents.pop(sandbox_id, ""), self._clock.now())
        return session_id if session_id in self.parked else None

    async def park(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Keep the workspace although the sandbox ends: here the same as `keep`."""
        return await self.keep(sandbox_id, session_id)

    async def checkpoint(self, sandbox_id: SandboxId, session_id: SessionId, *, last: str | None = None) -> str | None:
        """None: this keeper parks, and does not copy."""
        return None

    async def restore(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> None:
        """Move the contents into the sandbox, which consumes the reference."""
        if sandbox_id not in self._sandboxes:
            raise SandboxGoneError(f"sandbox {sandbox_id} ended before its workspace was restored")
        await self.check(reference)
        self.contents[sandbox_id], _ = self.parked.pop(reference)
        self._restored[sandbox_id] = reference

    async def check(self, reference: str) -> None:
        """Raise SnapshotNotFoundError unless the reference is parked."""
        if reference not in self.parked:
            raise SnapshotNotFoundError(f"nothing is parked as {reference}")

    async def rollback(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Park the contents again if `restore` moved them; otherwise return the reference unchanged."""
        if reference in self.parked or self._restored.get(sandbox_id) != reference:
            return reference
        return await self.keep(sandbox_id, session_id)

    async def delete(self, reference: str) -> None:
        """Delete a parked workspace. An absent one is not an error."""
        self.parked.pop(reference, None)

    async def retain_abandoned(self) -> None:
        """Do nothing: `keep` finds sandboxes that have ended."""

    async def delete_orphans(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete parked workspaces that are old enough and that no record names."""
        limit = self._clock.now() - older_than
        orphans = {reference for reference, (_, at) in self.parked.items() if at <= limit}
        async for reference in known():
            orphans.discard(reference)
        for reference in orphans:
            await self.delete(reference)
        return len(orphans)

    def end(self, sandbox_id: SandboxId, reason: str, *, keeps: bool = False) -> None:
        """Simulate a sandbox that ends by itself; with `keeps` its workspace can still be parked."""
        sandbox = self._sandboxes.pop(sandbox_id)
        if keeps:
            self._ended.add(sandbox_id)
        self._events.put_nowait(SandboxEvent(sandbox_id, sandbox.session_id, reason))


class MemorylessExecutor:
    """An Executor on a ScriptedProvider's `contents`. Its sandboxes have no in-memory state and are never busy."""

    def __init__(self, provider: ScriptedProvider | None = None) -> None:
        self._provider = provider

    async def export(self, sandbox: Sandbox, session_id: SessionId) -> AsyncGenerator[bytes, None]:
        """Yield the contents in two pieces. Raises UpstreamBrokenError if the sandbox ends in between."""
        content = "" if self._provider is None else self._provider.contents.get(sandbox.id, "")
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            await asyncio.sleep(0.01)
            if self._provider is not None and await self._provider.find(sandbox.id) is None:
                raise UpstreamBrokenError(f"sandbox {sandbox.id} went away")
            yield half.encode()

    async def fingerprint(self, sandbox: Sandbox, session_id: SessionId) -> str:
        """The contents themselves."""
        return "" if self._provider is None else self._provider.contents.get(sandbox.id, "")

    async def restore(self, sandbox: Sandbox, session_id: SessionId, chunks: AsyncIterator[bytes]) -> None:
        """Replace the contents. Raises UpstreamBrokenError if the sandbox has ended."""
        content = b"".join([chunk async for chunk in chunks])
        await asyncio.sleep(0.01)
        if self._provider is not None:
            if await self._provider.find(sandbox.id) is None:
                raise UpstreamBrokenError(f"sandbox {sandbox.id} went away")
            self._provider.contents[sandbox.id] = content.decode()

    async def suspend(self, sandbox: Sandbox, session_id: SessionId) -> SuspendReport:
        """Report that there was nothing to save."""
        return SuspendReport()

    async def resume(self, sandbox: Sandbox, session_id: SessionId) -> None:
        """Do nothing: there is no saved state."""

    async def busy(self, sandbox: Sandbox, session_id: SessionId) -> bool:
        """False: no background work is ever running."""
        return False


class EngineLike(SandboxProvider, WorkspaceKeeper, Protocol):
    """An engine that also keeps workspaces, as a ScriptedProvider and a LocalProvider do."""


def scripted_gateway(state_dir: Path, provider: EngineLike, **changes: Any) -> Gateway:
    """A gateway with a real store, keys and data path on the given provider, on a free port of 127.0.0.1.

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
    engine = Engine(provider=provider, keeper=provider, executor=MemorylessExecutor(), keys=keys)
    return Gateway(settings, engine, runtimes=runtimes, store=store, clock=clock, shared=bool(me), me=me)
