"""The WorkspaceKeeper that copies workspaces into a SnapshotStore, for any engine.

It streams between a sandbox's executor and the store. interfaces.WorkspaceKeeper and
docs/adr/0003-snapshots-and-parking.md describe the order of steps. The local engine can also park the workspace of a
sandbox that has already ended; so with both, records contain references of both kinds, which `is_snapshot` tells apart.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from pathlib import Path
from typing import Protocol, runtime_checkable

from gateway.core.clock import Clock
from gateway.core.errors import (
    SandboxGoneError,
    SettingsError,
    SnapshotNotFoundError,
    UpstreamBrokenError,
    UpstreamConnectError,
)
from gateway.core.interfaces import Executor, SnapshotStore, WorkspaceKeeper
from gateway.core.model import Sandbox, SandboxId, SessionId, SnapshotRef, is_snapshot
from gateway.core.settings import Settings
from gateway.snapshots import make_snapshot_store
from gateway.snapshots.keys import SnapshotKeys
from gateway.snapshots.pace import DEFAULT_PACE, PaceLimits, paced

logger = logging.getLogger(__name__)

_MAX_COPIED = 100_000  # sandboxes whose last checkpoint is remembered; one that was forgotten is copied again
PARTIAL_AGE_S = 3600.0  # since the last write; a running put writes at least every few minutes (`pace`)


class Finder(Protocol):
    """Finds sandboxes that can export their workspace, as a SandboxProvider does."""

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox, or None if it does not exist or has ended."""
        ...


@runtime_checkable
class DiskWatcher(Protocol):
    """An engine that ends sandboxes for what they write."""

    def restoring(self, sandbox_id: SandboxId) -> AbstractAsyncContextManager[None]:
        """Within, what is written to the sandbox's workspace is not its code's doing."""
        ...


class SnapshotKeeper:
    """A WorkspaceKeeper over a store, a provider and an executor."""

    leaves_running = True

    def __init__(
        self,
        store: SnapshotStore,
        provider: Finder,
        executor: Executor,
        clock: Clock,
        *,
        parking: WorkspaceKeeper | None = None,
        pace: PaceLimits = DEFAULT_PACE,
    ) -> None:
        """`parking`: the engine's own keeper, for workspaces of sandboxes that ended before they were kept."""
        self._store = store
        self._provider = provider
        self._executor = executor
        self._clock = clock
        self._parking = parking
        self._restoring: Callable[[SandboxId], AbstractAsyncContextManager[None]]
        self._restoring = provider.restoring if isinstance(provider, DiskWatcher) else lambda _: nullcontext()
        self._pace = pace
        # The last checkpoint of each sandbox: fingerprint and reference. A sandbox that lies about its fingerprint
        # harms its own session only.
        self._copied: OrderedDict[SandboxId, tuple[str, str]] = OrderedDict()

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Copy the workspace, or park it if the sandbox has ended. A running sandbox keeps running."""
        sandbox = await self._provider.find(sandbox_id)
        if sandbox is not None:
            try:
                return await self._copy(sandbox, session_id)
            except UpstreamConnectError as error:
                if not error.no_listener:
                    raise
        return None if self._parking is None else await self._parking.keep(sandbox_id, session_id)

    async def park(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Have the engine park the workspace, without a copy into the store."""
        return None if self._parking is None else await self._parking.park(sandbox_id, session_id)

    async def checkpoint(self, sandbox_id: SandboxId, session_id: SessionId, *, last: str | None = None) -> str | None:
        """Copy the workspace of a running sandbox. None if it has ended: that workspace is left to `keep`.

        Most sessions that are in use change no file for long: a fingerprint is much cheaper than a copy.
        """
        sandbox = await self._provider.find(sandbox_id)
        if sandbox is None:
            return None
        # Before the copy: what is written meanwhile makes the next checkpoint copy again.
        fingerprint = await self._executor.fingerprint(sandbox, session_id)
        if fingerprint and last is not None and self._copied.get(sandbox_id) == (fingerprint, last):
            self._copied.move_to_end(sandbox_id)
            return last
        reference = await self._copy(sandbox, session_id)
        self._copied[sandbox_id] = (fingerprint, reference)
        self._copied.move_to_end(sandbox_id)
        while len(self._copied) > _MAX_COPIED:
            self._copied.popitem(last=False)
        return reference

    async def restore(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Restore a snapshot or a parked workspace. A snapshot stays, in case this sandbox is lost."""
        if not is_snapshot(reference):
            return await self._parked(reference).restore(reference, sandbox_id, session_id)
        sandbox = await self._provider.find(sandbox_id)
        if sandbox is None:
            raise SandboxGoneError(f"sandbox {sandbox_id} ended before its workspace was restored")
        async with aclosing(self._store.get(SnapshotRef(reference))) as chunks, self._restoring(sandbox_id):
            # The store yields the last piece only after it has verified the whole, and picod discards an incomplete
            # stream, so a damaged snapshot cannot become a workspace.
            try:
                await self._executor.restore(sandbox, session_id, chunks)
            except (UpstreamConnectError, UpstreamBrokenError) as error:
                # A pod that fails under a claim is the common case on a node that goes; only then is another tried.
                if await self._provider.find(sandbox_id) is not None:
                    raise
                raise SandboxGoneError(
                    f"sandbox {sandbox_id} ended while its workspace was restored: {error}"
                ) from error
        return reference

    async def check(self, reference: str) -> None:
        """Read the first piece of the snapshot, which contains the name of its key."""
        if not is_snapshot(reference):
            await self._parked(reference).check(reference)
            return
        async with aclosing(self._store.get(SnapshotRef(reference))) as chunks:
            await anext(chunks, b"")

    async def rollback(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Return a snapshot's reference unchanged, since a restore only copied it; have a parked workspace put back."""
        if is_snapshot(reference) or self._parking is None:
            return reference
        return await self._parking.rollback(reference, sandbox_id, session_id)

    async def delete(self, reference: str) -> None:
        """Delete a snapshot from the store, or a parked workspace from the engine's folder."""
        if is_snapshot(reference):
            await self._store.delete(SnapshotRef(reference).key)
        elif self._parking is not None:
            await self._parking.delete(reference)

    async def retain_abandoned(self) -> None:
        """Pass on to the engine's keeper; a snapshot store has nothing that belongs to a sandbox."""
        if self._parking is not None:
            await self._parking.retain_abandoned()

    async def delete_orphans(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete orphans of both kinds. Partial snapshots cannot be restored, so they are deleted after an hour."""
        now = self._clock.now()
        ages = {False: older_than, True: min(older_than, PARTIAL_AGE_S)}
        orphans = {found.key async for found in self._store.list() if found.at <= now - ages[found.partial]}
        if orphans:
            async for reference in known():
                orphans.discard(SnapshotRef(reference).key)
        for key in orphans:
            await self._store.delete(key)
        if orphans:
            logger.warning("deleted %d orphaned snapshots", len(orphans))
        parked = 0 if self._parking is None else await self._parking.delete_orphans(known, older_than)
        return len(orphans) + parked

    async def _copy(self, sandbox: Sandbox, session_id: SessionId) -> str:
        async with (
            aclosing(self._executor.export(sandbox, session_id)) as chunks,
            aclosing(paced(chunks, sandbox.id, self._pace)) as in_time,
        ):
            return await self._store.put(session_id, in_time)

    def _parked(self, reference: str) -> WorkspaceKeeper:
        if self._parking is None:
            raise SnapshotNotFoundError(
                f"workspace {reference} was parked by another engine and is not a snapshot; wake its session there"
            )
        return self._parking


def make_keeper(settings: Settings, provider: Finder, executor: Executor, clock: Clock) -> WorkspaceKeeper:
    """Create the keeper that the settings ask for: the engine's own parking, or a SnapshotKeeper.

    If `snapshots` is not set and the engine cannot park, snapshots go to the state folder. Raises SettingsError with
    every problem of the URL and the key file.
    """
    parking = provider if isinstance(provider, WorkspaceKeeper) else None
    sealed = settings.snapshot_key_file != Path()
    if not settings.snapshots and parking is not None:
        if sealed:
            folder = settings.state_dir / "snapshots"
            problem = (
                f"--snapshot-key-file: parked workspaces are not encrypted; set --snapshots too, to file://{folder}"
            )
            raise SettingsError([problem])
        return parking
    store = _open_store(settings, "", settings.snapshot_max_size or None)
    return SnapshotKeeper(store, provider, executor, clock, parking=parking)


def make_code_store(settings: Settings) -> SnapshotStore:
    """The store of the files of agents: beside the snapshots, where the sweep of those does not look.

    Raises SettingsError as make_keeper does.
    """
    return _open_store(settings, "/agents", None)


def _open_store(settings: Settings, below: str, max_size: int | None) -> SnapshotStore:
    problems: list[str] = []
    keys = None
    try:
        keys = SnapshotKeys.read(settings.snapshot_key_file) if settings.snapshot_key_file != Path() else None
    except SettingsError as error:
        problems += error.problems
    try:
        url = (settings.snapshots or str(settings.state_dir / "snapshots")).rstrip("/") + below
        store = make_snapshot_store(url, max_size=max_size, keys=keys)
    except SettingsError as error:
        raise SettingsError([*problems, *error.problems]) from error
    if problems:
        raise SettingsError(problems)
    return store
