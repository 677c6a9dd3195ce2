"""Who keeps the workspaces of sessions without a sandbox, and where snapshots of them are stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol, runtime_checkable

from gateway.core.model import SandboxId, SessionId, SnapshotRef, StoredSnapshot


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
