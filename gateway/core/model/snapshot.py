"""Kept workspaces: a snapshot's name, and what of a session's memory is in it."""

from __future__ import annotations

from dataclasses import dataclass


class SnapshotRef(str):
    """A snapshot's key and the digest it is verified with: `KEY#SIZE-SHA256`, size in bytes.

    A str, so that records and keepers pass it on without parsing it.
    """

    __slots__ = ()

    @classmethod
    def of(cls, key: str, size: int, sha256: str) -> SnapshotRef:
        """Build the reference from key, size in bytes and SHA-256 in hex."""
        return cls(f"{key}#{size}-{sha256}")

    @property
    def key(self) -> str:
        """Its name in the store, equal to `StoredSnapshot.key`."""
        return self.rpartition("#")[0]

    @property
    def size(self) -> int:
        """Size in bytes as stored, that is, compressed and perhaps encrypted."""
        return int(self.rpartition("#")[2].partition("-")[0])

    @property
    def sha256(self) -> str:
        """The digest of the bytes as stored, in hex."""
        return self.rpartition("-")[2]


def is_snapshot(reference: str | None) -> bool:
    """Whether a reference is a SnapshotRef. A parked workspace's reference is the session's id, which has no `#`."""
    return reference is not None and "#" in reference


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """An object in a snapshot store, complete or partial, as the orphan sweep lists it."""

    key: str
    size: int
    at: float  # when it was last written
    partial: bool = False  # of a put that is still running or has died; never restored


@dataclass(frozen=True, slots=True)
class Unsaved:
    """A variable of a code context that could not be saved for hibernation, e.g. an open socket."""

    context: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SuspendReport:
    """The result of saving in-memory state into the workspace: how many variables, and which could not be saved."""

    saved: int = 0
    unsaved: tuple[Unsaved, ...] = ()
