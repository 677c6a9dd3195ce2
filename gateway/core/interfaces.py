"""The seams. The core (routing, autoscaler, api, lifecycle) sees the world through these Protocols only.

Each has one contract suite under tests/contract that runs over every implementation, the shipped fakes of
gateway/testing.py included.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from gateway.core.documents import DocumentStore
from gateway.core.model import (
    Lease,
    PoolStatus,
    Readiness,
    Runtime,
    RuntimeKey,
    Sandbox,
    SandboxEvent,
    SandboxId,
    SandboxReply,
    Session,
    SessionId,
    SessionState,
    SnapshotRef,
    StoredSnapshot,
    SuspendReport,
)


class SessionStore(Protocol):
    """Session records, leases and the history of claims."""

    @property
    def documents(self) -> DocumentStore:
        """The small named records that are kept beside sessions. Open while the store is."""
        ...

    async def start(self) -> None:
        """Open it. Raises StoreUnavailableError with the reason."""
        ...

    async def aclose(self) -> None:
        """Write out what is buffered and close."""
        ...

    async def ping(self) -> None:
        """Write something without a meaning. Raises StoreUnavailableError when that does not work: a store that can
        only be read (full disk, a replica, over its memory limit) serves no session.
        """
        ...

    async def warnings(self) -> Sequence[str]:
        """What about the store's own settings may lose records, one sentence each. Raises StoreUnavailableError."""
        ...

    async def get(self, session_id: SessionId) -> Session | None:
        """The record, or None."""
        ...

    async def put(self, session: Session, *, lease: Lease | None = None) -> Session:
        """Durably write the record if the stored version equals `session.version` (0: it must not exist yet).

        Returns the record with its new version. With `lease`, also refuses when that lease is no longer the newest.
        Raises StaleWriteError, FencedOutError.
        """
        ...

    async def delete(self, session_id: SessionId) -> None:
        """Forget a record; absent is success."""
        ...

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time. No version change; unknown ids are ignored."""
        ...

    def sessions(
        self,
        *,
        state: SessionState | None = None,
        runtime: RuntimeKey | None = None,
        after: SessionId | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by id, strictly after `after`, at most `limit`."""
        ...

    def idle(self, now: float) -> AsyncIterator[Session]:
        """Active sessions with idle_at <= now, soonest first. Indexed, never a scan."""
        ...

    def expired(self, now: float) -> AsyncIterator[Session]:
        """Sessions that are not terminated with expires_at <= now, soonest first. Indexed, never a scan."""
        ...

    def terminated(self, before: float) -> AsyncIterator[Session]:
        """Terminated sessions with last_active_at <= before, oldest first; their records may be deleted."""
        ...

    async def acquire_lease(self, name: str, holder: str, ttl: float) -> Lease | None:
        """Take the lease if it is free, expired, or already `holder`'s. None: somebody else has it.

        The fence grows by one on every change of hands, and for one name never repeats.
        """
        ...

    async def renew_lease(self, lease: Lease, ttl: float) -> Lease | None:
        """Extend it. None: it was lost."""
        ...

    async def release_lease(self, lease: Lease) -> None:
        """Give it back if it is still ours; anything else is success."""
        ...

    async def lease(self, name: str) -> Lease | None:
        """The lease as it stands; one that has ended shows by its `expires_at`. None: free, or forgotten.

        `expires_at` is by the caller's clock, whoever took the lease and by whichever clock it ends.
        """
        ...

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        ...

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) with claims > 0, oldest first; `bucket` is 1 or 60 seconds."""
        ...


class SandboxProvider(Protocol):
    """Makes sandboxes and keeps warm ones ready."""

    async def start(self) -> None:
        """Clear what an earlier life left behind, and begin to fill pools."""
        ...

    async def aclose(self) -> None:
        """End what this gateway owns."""
        ...

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """The runtimes to serve from now on; a warm pool begins at its spec's size."""
        ...

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """Bind a sandbox to the session: a warm one at once, else a cold one; `Sandbox.start` says which.

        A sandbox is bound at most once in its life. Raises SandboxStartError, RuntimeNotFoundError.
        """
        ...

    async def release(self, sandbox_id: SandboxId) -> None:
        """Delete it with all it holds. Absent is success. Never handed to another session."""
        ...

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the wanted number of warm sandboxes. Raises RuntimeNotFoundError."""
        ...

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool now. Raises RuntimeNotFoundError."""
        ...

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox if it exists and has not ended, from memory."""
        ...

    async def list(self) -> Sequence[Sandbox]:
        """All sandboxes that exist, warm ones included (their session_id is None)."""
        ...

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Sandboxes that ended on their own, as it happens."""
        ...


@runtime_checkable
class WorkspaceKeeper(Protocol):
    """Keeps what a session is while it has no sandbox (docs/adr/0003-snapshots-and-parking.md).

    The local engine parks a workspace by renaming its folder, which ends the sandbox and uses the parked folder up
    when it is given back. gateway/snapshots copies it into a store, which does neither. The order of steps that loses
    nothing with either: `keep`, then the record names the reference, then the sandbox is released; and for a wake:
    a sandbox is claimed, the record says `waking` and still names the reference, `restore`, then the record says
    `active` and names what `restore` returned.
    """

    @property
    def leaves_running(self) -> bool:
        """`keep` leaves the sandbox running: it may be cancelled, and then nothing has happened."""
        ...

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Keep the sandbox's workspace durably as it is now, whether it runs or just ended. Returns a reference.

        None: sandbox and workspace are gone; an earlier reference stays as good as it was. If it fails or is cancelled
        nothing was lost, and to call it again is right. No earlier reference is touched.
        Raises SnapshotError, UpstreamConnectError, UpstreamBrokenError, UpstreamTimeoutError.
        """
        ...

    async def checkpoint(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Like `keep`, of a sandbox that goes on. None: it is gone, or this keeper cannot copy."""
        ...

    async def restore(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Put a kept workspace into a fresh sandbox. Returns the reference if it is good for another time, else None.

        If it fails the sandbox is not to be used; `rollback` tells what the session is then.
        Raises SnapshotError, SandboxStartError, UpstreamConnectError, UpstreamBrokenError, UpstreamTimeoutError.
        """
        ...

    async def check(self, reference: str) -> None:
        """Raise what `restore` would raise before it changes anything, as far as the beginning of what is kept shows.

        Raises SnapshotNotFoundError, SnapshotKeyError, SnapshotStoreUnavailableError.
        """
        ...

    async def rollback(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Undo a `restore` that failed, or whose outcome is unknown. Returns the reference to try next; None: gone.

        What this keeper has no part of (a snapshot of another store, a workspace parked elsewhere) keeps its reference:
        only whoever has it may decide that it is gone. To be called only when no request has reached the sandbox since.
        The caller then releases the sandbox.
        """
        ...

    async def delete(self, reference: str) -> None:
        """Delete a kept workspace, which no record names any more; absent is success. Raises SnapshotError."""
        ...

    async def retain_abandoned(self) -> None:
        """Set aside what sandboxes of an earlier gateway left and no record names, until `delete_orphans` takes it.

        Called once records are true after a start. Not deleted at once: the records may be what is missing, when the
        store came back empty or is another one by mistake; `keep` still finds it by its sandbox.
        """
        ...

    async def delete_orphans(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete what was kept or set aside at least `older_than` seconds ago and no record names. Returns how many.

        `known` gives the references that records of sessions name which have not ended. It is asked after what there is
        was listed, so nothing that a record named all the time is deleted. `older_than` must cover the time from `keep`
        to the record, and the time in which an operator may bring lost records back. Raises SnapshotError, and what
        `known` raises.
        """
        ...


class Executor(Protocol):
    """What the gateway itself asks of picod in a sandbox. Errors as in `keep` and `restore`."""

    def export(self, sandbox: Sandbox, session_id: SessionId) -> AsyncGenerator[bytes, None]:
        """The workspace as a stream. Whoever reads to its end without an error has all of it."""
        ...

    async def restore(self, sandbox: Sandbox, session_id: SessionId, chunks: AsyncIterator[bytes]) -> None:
        """Make what `export` gave the workspace, in place of what is there. After an error the workspace is empty."""
        ...

    async def suspend(self, sandbox: Sandbox, session_id: SessionId) -> SuspendReport:
        """Have what is in memory written into the workspace. Changes nothing else; may be called again."""
        ...

    async def resume(self, sandbox: Sandbox, session_id: SessionId) -> None:
        """Tell that a kept workspace has come, with what `suspend` wrote in it."""
        ...

    async def busy(self, sandbox: Sandbox, session_id: SessionId) -> bool:
        """Whether something runs there that no request waits for."""
        ...


class SandboxCaller(Protocol):
    """Requests of the gateway's own to a session's sandbox, which they wake like any other request.

    All raise SessionNotFoundError, the errors of a sandbox that cannot be had in time (nothing was sent then), and
    UpstreamBrokenError when it goes away after something was sent. `path` is a percent-encoded request target.
    """

    def acknowledge(self, session_id: SessionId, restored: str) -> None:
        """An answer that said `restored` (of a Readiness or SandboxReply) was delivered: it is not said again.

        Needed only where that was not the header x-wakegate-restored: answers with the header count by themselves.
        """
        ...

    async def ready(self, session_id: SessionId) -> Readiness:
        """See to it that the session has a live sandbox. Costs nothing if it has one already."""
        ...

    async def call(
        self,
        session_id: SessionId,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
        timeout: float = 60.0,
        limit: int = 64 << 20,
    ) -> SandboxReply:
        """Send, and read the whole answer, at most `limit` bytes.

        Raises UpstreamTimeoutError after `timeout` seconds, and UpstreamBrokenError for an answer that is too long; in
        both cases the sandbox sees a client that left and ends what it ran.
        """
        ...

    def stream(
        self,
        session_id: SessionId,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
    ) -> AbstractAsyncContextManager[tuple[SandboxReply, AsyncIterator[bytes]]]:
        """Send, and hand out the answer's head and its body as it comes. Leaving early ends what was run."""
        ...


class RuntimeCatalog(Protocol):
    """The runtimes that are served: fixed from files, or watched in a cluster."""

    def get(self, key: RuntimeKey) -> Runtime | None:
        """The runtime of that key, or None where it is not served."""
        ...

    def all(self) -> Sequence[Runtime]:
        """Every runtime that is served, sorted by key."""
        ...


class SnapshotStore(Protocol):
    """Keeps snapshots as streams of bytes. A put is atomic and never touches an earlier snapshot of the session."""

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        """Keep the stream durably. If it fails, or this is cancelled, nothing is kept and nothing was changed.

        Raises SnapshotTooLargeError, SnapshotStoreFullError, SnapshotStoreUnavailableError, and what `chunks` raises.
        """
        ...

    def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        """The stream again. Whoever reads to the end without an error has what was put, and nothing else.

        Pieces come before the whole was checked; the last one does not. So what was made of them counts only after
        the end. Raises SnapshotNotFoundError, SnapshotCorruptError, SnapshotKeyError, SnapshotStoreUnavailableError.
        """
        ...

    async def delete(self, key: str) -> None:
        """Forget a snapshot, by its `SnapshotRef.key`; absent is success. Raises SnapshotStoreUnavailableError."""
        ...

    def list(self) -> AsyncIterator[StoredSnapshot]:
        """All there is, in no order. A put that is under way, or died, may show; its time tells which."""
        ...
