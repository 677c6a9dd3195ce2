"""A workspace could not be kept or restored."""

from __future__ import annotations

from gateway.core.errors.base import WakegateError
from gateway.core.units import readable_size


class SnapshotError(WakegateError):
    """A workspace could not be kept or restored.

    `reason` goes into the record of a session that keeps its sandbox because of this error.
    """

    code = "SNAPSHOT_FAILED"

    @property
    def reason(self) -> str:
        """Why the session was not hibernated, as its API representation shows it."""
        return f"cannot hibernate: {self}"


class SnapshotNotFoundError(SnapshotError):
    """The store has no such snapshot."""

    code = "SNAPSHOT_NOT_FOUND"


class SnapshotCorruptError(SnapshotError):
    """The stored bytes differ from those that were written: truncated, longer, or modified."""

    code = "SNAPSHOT_CORRUPT"


class SnapshotKeyError(SnapshotError):
    """The snapshot is encrypted with a key that this gateway does not have."""

    code = "SNAPSHOT_KEY_MISSING"


class SnapshotTooLargeError(SnapshotError):
    """The snapshot exceeds the size limit; nothing was kept.

    `limit` and `size` are bytes as stored, that is, compressed. `size` counts what had arrived when the limit was
    passed; the full size is unknown, because the rest is not read.
    """

    status = 413
    code = "SNAPSHOT_TOO_LARGE"

    def __init__(self, limit: int, size: int) -> None:
        super().__init__(
            f"the snapshot is over the limit of {limit} bytes ({readable_size(limit)}, compressed); delete files in the"
            " workspace, or have the operator raise snapshot_max_size"
        )
        self.limit = limit
        self.size = size

    @property
    def reason(self) -> str:
        """As for any SnapshotError, with the fix that a user can apply."""
        return (
            f"cannot hibernate and keeps its sandbox until its maximum duration: a snapshot of its files exceeds the"
            f" limit of {readable_size(self.limit)}; delete some of them"
        )


class SnapshotUnsupportedError(SnapshotError):
    """The executor in the sandbox does not support snapshots: it is not Wakegate's picod, or an older one."""

    status = 501
    code = "SNAPSHOT_UNSUPPORTED"


class SnapshotStoreFullError(SnapshotError):
    """What keeps workspaces, a snapshot store or the state directory's disk, is full; nothing was kept."""

    status = 507
    code = "SNAPSHOT_STORE_FULL"


class SnapshotStoreUnavailableError(SnapshotError):
    """What keeps workspaces does not answer, or lacks something for a moment; nothing was kept."""

    status = 503
    code = "SNAPSHOT_STORE_UNAVAILABLE"
    retry_after = 1.0
