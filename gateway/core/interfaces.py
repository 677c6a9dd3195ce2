"""The Protocols through which routing, autoscaler, api and sessions reach stores, engines and sandboxes.

Stores, providers, keepers and snapshot stores each have one contract suite under tests/contract. It runs against every
implementation, including the fakes that ship in gateway/testing.py.

One module, although it is long: these are all the seams of the gateway, and the Protocols refer to each other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from gateway.core.documents import DocumentStore
from gateway.core.model import (
    Lease,
    Limits,
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
from gateway.core.questions import PeerQuestions
from gateway.core.quota import QuotaLedger
from gateway.core.tasks import TaskStore
from gateway.core.usage import SandboxLoad, SandboxUsage, UsageStore


class SessionStore(Protocol):
    """Session records, leases and the history of claims."""

    @property
    def documents(self) -> DocumentStore:
        """The small named records that are kept beside sessions. Open while the store is."""
        ...

    @property
    def usage(self) -> UsageStore:
        """What tenants have used, kept beside sessions. Open while the store is."""
        ...

    @property
    def quotas(self) -> QuotaLedger:
        """What the sessions of each tenant hold. Open while the store is."""
        ...

    @property
    def tasks(self) -> TaskStore:
        """Background work and its results, kept beside sessions. Open while the store is."""
        ...

    @property
    def questions(self) -> PeerQuestions:
        """What the gateways that share the store ask each other. Open while the store is."""
        ...

    async def start(self) -> None:
        """Open the store. Raises StoreUnavailableError with the reason."""
        ...

    async def aclose(self) -> None:
        """Finish pending writes and close."""
        ...

    async def ping(self) -> None:
        """Make a write that changes no record. Raises StoreUnavailableError if it fails.

        A read would not do: a store that cannot be written to (full disk, a replica, over its memory limit) can serve
        no session.
        """
        ...

    async def warnings(self) -> Sequence[str]:
        """Settings of the store's server that can lose records, one sentence each. Raises StoreUnavailableError."""
        ...

    async def get(self, session_id: SessionId) -> Session | None:
        """The record as last written, or None if there is none."""
        ...

    async def versions(self, session_ids: Sequence[SessionId]) -> Mapping[SessionId, int]:
        """The versions of the records that exist, of any number, without reading the records themselves."""
        ...

    async def put(self, session: Session, *, lease: Lease | None = None) -> Session:
        """Durably write the record if the stored version equals `session.version` (0: it must not exist yet).

        Returns the record with its new version. With `lease`, also refuses when that lease is no longer the newest.
        Raises StaleWriteError, FencedOutError.
        """
        ...

    async def delete(self, session_id: SessionId) -> None:
        """Delete a record. An absent one is not an error."""
        ...

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time. Unknown ids are ignored.

        Versions stay: if touches changed them, every second of use would make a concurrent `put` stale.
        """
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

    def by_age(
        self,
        *,
        tenant: str | None = None,
        ended: bool = True,
        newest_first: bool = True,
        after: tuple[float, SessionId] | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by time of creation, then id, at most `limit`. Indexed, never a scan.

        `tenant` None: of all tenants. `ended` False: without those that have ended. `after` is the position
        (created_at, id) of the last record of the page before, which need not exist any more.
        """
        ...

    async def search(
        self,
        parts: Sequence[str],
        *,
        tenant: str | None,
        ended: bool,
        after: tuple[float, SessionId] | None,
        limit: int,
    ) -> Sequence[tuple[tuple[float, SessionId], Session | None]]:
        """The next `limit` places of the list `by_age`, newest first; fewer at its end.

        A record comes with its place where all the parts are in its texts, A to Z in either case. It may also come
        where they are not, for example in the name of a field, so the caller looks again. Others are not even decoded,
        which is most of what reading them costs: 3 us a record instead of 33.
        """
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
        """Take the lease if it is free, expired, or already `holder`'s. None: another holder has it.

        The fence grows with every change of holder, and never repeats for a name.
        """
        ...

    async def renew_lease(self, lease: Lease, ttl: float) -> Lease | None:
        """Extend the lease. None: another holder took it."""
        ...

    async def release_lease(self, lease: Lease) -> None:
        """Release the lease if it is still the caller's; otherwise do nothing."""
        ...

    async def lease(self, name: str) -> Lease | None:
        """The current lease, which may have expired (compare `expires_at`). None: released, or deleted since.

        `expires_at` is in the caller's clock, even where the store's server decides when the lease ends.
        """
        ...

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        ...

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) with claims > 0, oldest first; `bucket` is 1 or 60 seconds."""
        ...


class SandboxProvider(Protocol):
    """Starts sandboxes, binds them to sessions and keeps warm pools filled."""

    async def start(self) -> None:
        """Clean up what an earlier process left behind, and start filling the pools."""
        ...

    async def aclose(self) -> None:
        """End the sandboxes that this gateway owns."""
        ...

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Replace the set of runtimes that are served; each warm pool starts at its spec's size."""
        ...

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """Bind a sandbox to the session: a warm one if there is one, else a cold one; `Sandbox.start` says which.

        A sandbox is bound at most once, so that no session sees what another left. Raises SandboxStartError,
        RuntimeNotFoundError.
        """
        ...

    async def release(self, sandbox_id: SandboxId) -> None:
        """Delete the sandbox and its files; it is never reused. An absent one is not an error."""
        ...

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the wanted number of warm sandboxes. Raises RuntimeNotFoundError."""
        ...

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool's current state. Raises RuntimeNotFoundError."""
        ...

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox, or None if it does not exist or has ended. Answered from memory, without I/O."""
        ...

    async def list(self) -> Sequence[Sandbox]:
        """All sandboxes that exist, including warm ones (their session_id is None)."""
        ...

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Yield an event for each sandbox that ends without being released, as it happens."""
        ...


@runtime_checkable
class EngineMeter(Protocol):
    """What an engine can measure of its sandboxes, for usage metering. Not every engine can."""

    async def usage(self, sandboxes: Sequence[SandboxId]) -> Mapping[SandboxId, SandboxUsage]:
        """What each uses, or used before it ended a moment ago. Unknown ones are left out."""
        ...

    async def parked_bytes(self, reference: str) -> int:
        """The size of a parked workspace; 0 if it is not here, or not measured yet."""
        ...


@runtime_checkable
class SandboxResizer(Protocol):
    """An engine that can change how much of the machine a running sandbox may use."""

    async def resize_sandbox(self, sandbox_id: SandboxId, limits: Limits) -> None:
        """Give a sandbox the CPUs, memory and processes of `limits`: all of them, or nothing changes.

        Raises ResizeError with what stands against it, SandboxGoneError.
        """
        ...


@runtime_checkable
class MachineBookings(Protocol):
    """An engine that books what sandboxes request of its machine."""

    def booked(self) -> Mapping[str, float]:
        """What is booked now, by resource: cpu in cores, memory in bytes, gpu."""
        ...

    def bookable(self) -> Mapping[str, float]:
        """All that may be booked."""
        ...


@runtime_checkable
class LoadReader(Protocol):
    """An engine that can tell what one sandbox uses at the moment, without counting it as read by the meter."""

    async def load(self, sandbox_id: SandboxId) -> SandboxLoad | None:
        """What it uses; None: there is no such sandbox."""
        ...


@runtime_checkable
class LossCounter(Protocol):
    """An engine that shows in a pool's status which sandboxes were lost.

    It cannot know by itself: where several gateways share an engine, each is notified of every end, and only the
    session's record says whether another gateway has ended the sandbox on purpose.
    """

    def count_loss(self, event: SandboxEvent) -> None:
        """The sandbox of this event ended while a session needed it."""
        ...


@runtime_checkable
class WorkspaceKeeper(Protocol):
    """Keeps the workspace of a session that has no sandbox (docs/adr/0003-snapshots-and-parking.md).

    There are two kinds. The local engine parks a workspace by renaming its folder: `keep` ends the sandbox, and
    `restore` consumes the parked folder. gateway/snapshots copies the workspace into a store: `keep` leaves the sandbox
    running, and a snapshot can be restored any number of times.

    The order of steps that loses nothing with either kind. Hibernation: `keep`, write the reference into the record,
    release the sandbox. Wake: claim a sandbox, write `waking` into the record, which still names the reference,
    `restore`, write `active` and the reference that `restore` returned.
    """

    @property
    def leaves_running(self) -> bool:
        """Whether `keep` leaves the sandbox running, so that cancelling it changes nothing."""
        ...

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Store the sandbox's workspace durably as it is now, whether it runs or just ended. Returns a reference.

        None: neither sandbox nor workspace exists. Earlier references stay valid in every case. After a failure or a
        cancellation nothing is lost, and the call may be repeated.
        Raises SnapshotError, UpstreamConnectError, UpstreamBrokenError, UpstreamTimeoutError.
        """
        ...

    async def park(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Like `keep`, at once and without a copy: the sandbox ends, and only this gateway reaches what is kept.

        None: the engine cannot do that, or nothing is left. Raises SnapshotError.
        """
        ...

    async def checkpoint(self, sandbox_id: SandboxId, session_id: SessionId, *, last: str | None = None) -> str | None:
        """Like `keep`, for a sandbox that must keep running. None: it has ended, or this keeper cannot copy.

        `last` is the reference in the session's record. It is returned if the workspace is known to be unchanged since
        it was copied as that.
        """
        ...

    async def restore(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Put a kept workspace into a fresh sandbox. Returns the reference if it can be restored again, else None.

        After a failure the sandbox must not be used; `rollback` returns the reference that is still valid.
        Raises SnapshotError, SandboxStartError, UpstreamConnectError, UpstreamBrokenError, UpstreamTimeoutError.
        """
        ...

    async def check(self, reference: str) -> None:
        """Check that a `restore` can start: the workspace exists and its key is known. Only its head is read.

        Raises SnapshotNotFoundError, SnapshotKeyError, SnapshotStoreUnavailableError.
        """
        ...

    async def rollback(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Undo a `restore` that failed, or whose outcome is unknown. Returns the reference to try next; None: lost.

        A reference that belongs to another keeper (a snapshot of another store, a workspace parked elsewhere) is
        returned unchanged: only its own keeper can tell that it is lost. Call this only while no request has reached
        the sandbox since `restore`. The caller then releases the sandbox.
        """
        ...

    async def delete(self, reference: str) -> None:
        """Delete a kept workspace that no record names. An absent one is not an error. Raises SnapshotError."""
        ...

    async def retain_abandoned(self) -> None:
        """Set aside workspaces that an earlier gateway's sandboxes left and no record names; `keep` still finds them.

        Called after a start, once the records have been corrected. `delete_orphans` removes them later. Deleting them
        here was rejected: the records may be what is missing, if the store came back empty or is the wrong one.
        """
        ...

    async def delete_orphans(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete what was kept or set aside at least `older_than` seconds ago and no record names. Returns how many.

        `known` yields the references that records of live sessions name. It is read after the kept workspaces are
        listed: in the other order, a workspace kept in between would be listed but not known, and deleted.
        `older_than` must cover the time from `keep` to the write of the record, and the time an operator may need to
        restore lost records. Raises SnapshotError, and what `known` raises.
        """
        ...


class Executor(Protocol):
    """The requests that the gateway itself sends to picod in a sandbox. Errors as for `WorkspaceKeeper.keep`."""

    def export(self, sandbox: Sandbox, session_id: SessionId) -> AsyncGenerator[bytes, None]:
        """The workspace as a stream, complete once it ends without an error."""
        ...

    async def fingerprint(self, sandbox: Sandbox, session_id: SessionId) -> str:
        """A text that stays the same while the workspace is unchanged; "" if the sandbox cannot tell."""
        ...

    async def restore(self, sandbox: Sandbox, session_id: SessionId, chunks: AsyncIterator[bytes]) -> None:
        """Replace the workspace by a stream that `export` produced. After an error the workspace is empty."""
        ...

    async def suspend(self, sandbox: Sandbox, session_id: SessionId) -> SuspendReport:
        """Have picod write its in-memory state into the workspace. Changes nothing else and may be repeated."""
        ...

    async def resume(self, sandbox: Sandbox, session_id: SessionId) -> None:
        """Tell picod that the workspace was restored, so that it loads the state `suspend` wrote."""
        ...

    async def busy(self, sandbox: Sandbox, session_id: SessionId) -> bool:
        """Whether the sandbox does work that no open request waits for, such as a background process."""
        ...


class SandboxCaller(Protocol):
    """Requests that the gateway itself sends to a session's sandbox; they wake it like a client's request.

    All raise SessionNotFoundError, the errors of the activator when no sandbox is ready in time (nothing was sent
    then), and UpstreamBrokenError when the connection breaks after something was sent. `path` is a percent-encoded
    request target.
    """

    def acknowledge(self, session_id: SessionId, restored: str) -> None:
        """Record that a client received `restored` (from a Readiness or SandboxReply), so that it is not sent again.

        Needed only by surfaces that report it in a body: a delivered x-wakegate-restored header counts by itself.
        """
        ...

    async def ready(self, session_id: SessionId) -> Readiness:
        """Make sure that the session has a live sandbox. Free if it has one already."""
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
        """Send a request and read the whole response, at most `limit` bytes.

        Raises UpstreamTimeoutError after `timeout` seconds, and UpstreamBrokenError for a longer response; in both
        cases the connection is closed, and picod ends what the request started.
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
        """Send a request and stream the response: its head, and its body as it arrives.

        Leaving the context early closes the connection, and picod ends what the request started.
        """
        ...


class RuntimeCatalog(Protocol):
    """The runtimes that are served: fixed from files, or watched in a cluster."""

    def get(self, key: RuntimeKey) -> Runtime | None:
        """The runtime with that key, or None if it is not served."""
        ...

    def all(self) -> Sequence[Runtime]:
        """All served runtimes, sorted by key. An agent with revisions has an entry for each that is served."""
        ...

    def choose(self, key: RuntimeKey) -> Runtime | None:
        """The runtime for a new session that asks for `key`: of an agent with revisions, one of them.

        Raises ConflictError for an agent that is stopped.
        """
        ...


class SnapshotStore(Protocol):
    """Stores snapshots as byte streams. A put is atomic and leaves the session's earlier snapshots alone."""

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        """Store the stream durably under a new key. After a failure or a cancellation nothing is stored.

        Raises SnapshotTooLargeError, SnapshotStoreFullError, SnapshotStoreUnavailableError, and what `chunks` raises.
        """
        ...

    def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        """The stored stream, verified once it ends without an error.

        Pieces are yielded before the whole is verified, except the last one, so a reader must discard its work if this
        raises. Raises SnapshotNotFoundError, SnapshotCorruptError, SnapshotKeyError, SnapshotStoreUnavailableError.
        """
        ...

    async def delete(self, key: str) -> None:
        """Delete a snapshot by its `SnapshotRef.key`. An absent one is not an error.

        Raises SnapshotStoreUnavailableError.
        """
        ...

    def list(self) -> AsyncIterator[StoredSnapshot]:
        """All stored objects, in no particular order, including partial ones of a put that is running or has died.

        `StoredSnapshot.at` tells the two apart: a running put has written recently.
        """
        ...
