"""A keeper over real picods: what its fault tests are made of."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.clock import SystemClock
from gateway.core.interfaces import SnapshotStore
from gateway.core.model import (
    Endpoint,
    Runtime,
    RuntimeKey,
    Sandbox,
    SandboxId,
    SessionId,
    SnapshotRef,
    StartKind,
    StoredSnapshot,
)
from gateway.runtimes.catalog import StaticCatalog
from gateway.sandbox.picod_client import PicodExecutor
from gateway.snapshots import FolderStore
from gateway.snapshots.keeper import SnapshotKeeper
from gateway.testing import ScriptedProvider
from tests.support.picod import Executor

KEY = RuntimeKey("default", "kept")
OPEN = Runtime(KEY, auth=False)
SESSION = SessionId("5b0e1b63-7a2f-4f0f-9c45-000000000001")
Chunks = AsyncIterator[bytes]


class NoTokens:
    """For picods that ask for none."""

    def issue(self, sandbox_id: SandboxId, session_id: SessionId) -> tuple[bytes, float]:
        raise AssertionError("no token is needed")


def executor_of(runtime: Runtime = OPEN, **limits: float) -> PicodExecutor:
    return PicodExecutor(StaticCatalog([runtime]), NoTokens(), **{"idle_timeout": 30.0, **limits})


def sandbox_at(endpoint: Endpoint, name: str = "sb-1") -> Sandbox:
    return Sandbox(SandboxId(name), KEY, endpoint, StartKind.WARM, 0.0, SESSION)


class Between:
    """A SnapshotStore around another, with a say in each stream: the seam where faults are put."""

    def __init__(self, inner: SnapshotStore) -> None:
        self.inner = inner
        self.on_put: Callable[[Chunks], Chunks] | None = None
        self.on_get: Callable[[Chunks], Chunks] | None = None

    async def put(self, session_id: SessionId, chunks: Chunks) -> SnapshotRef:
        return await self.inner.put(session_id, chunks if self.on_put is None else self.on_put(chunks))

    async def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.inner.get(ref)) as stream:
            async for piece in stream if self.on_get is None else self.on_get(stream):
                yield piece

    async def delete(self, key: str) -> None:
        await self.inner.delete(key)

    def list(self) -> AsyncIterator[StoredSnapshot]:
        return self.inner.list()


@dataclass
class World:
    """A keeper whose sandboxes are the given picods, claimed in turn, and its folder."""

    folder: Path
    picods: tuple[Executor, ...]
    max_size: int | None = None
    store: Between = field(init=False)
    provider: ScriptedProvider = field(init=False)
    keeper: SnapshotKeeper = field(init=False)

    def __post_init__(self) -> None:
        self.store = Between(FolderStore(self.folder / "snapshots", max_size=self.max_size))
        self.provider = ScriptedProvider(*(Endpoint(uds=str(picod.uds)) for picod in self.picods))
        self.keeper = SnapshotKeeper(self.store, self.provider, executor_of(), SystemClock())

    async def claim(self) -> Sandbox:
        """The next picod; the last one again and again."""
        await self.provider.apply([OPEN])
        return await self.provider.claim(KEY, SESSION)

    async def keep(self, sandbox: Sandbox) -> SnapshotRef:
        reference = await self.keeper.keep(sandbox.id, SESSION)
        assert reference is not None
        return SnapshotRef(reference)

    def kept(self) -> list[str]:
        """Names in the folder, halves included."""
        folder = self.folder / "snapshots"
        return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []

    def file(self, ref: SnapshotRef) -> Path:
        return self.folder / "snapshots" / ref.key
