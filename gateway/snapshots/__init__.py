"""Snapshot stores: a folder or an object store, encrypted if the operator provides keys; and the keeper that uses them.

A snapshot's content is picod's business. Here it is a stream of bytes that is returned exactly as it was stored, or not
at all. Imports `core` only. Start with `make_snapshot_store` below, then `keeper`.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from gateway.core.errors import SettingsError
from gateway.core.interfaces import SnapshotStore
from gateway.snapshots.folder import FolderStore
from gateway.snapshots.keys import SnapshotKeys
from gateway.snapshots.sealed import SealedStore, UnsealedStore

__all__ = ["FolderStore", "SealedStore", "SnapshotKeys", "make_snapshot_store"]


def make_snapshot_store(url: str, *, max_size: int | None = None, keys: SnapshotKeys | None = None) -> SnapshotStore:
    """Create the store that a URL names: `file:///path` or a plain path; `s3://`, `gs://`, `az://` + bucket and prefix.

    `max_size` limits the bytes as stored; None: no limit. With `keys`, snapshots are encrypted, and unencrypted ones
    are rejected. Credentials of object stores come from their usual sources (AWS_*, GOOGLE_*, AZURE_* variables,
    instance roles). Raises SettingsError.
    """
    parts = urlsplit(url)
    store: SnapshotStore
    if parts.scheme in ("", "file"):
        path = unquote(parts.path) if parts.scheme else url
        if parts.netloc or path in ("", "/"):
            raise SettingsError([f"snapshot store {url}: name a folder, as in file:///var/lib/wakegate/snapshots"])
        store = FolderStore(Path(path), max_size=max_size)
    else:
        from gateway.snapshots.objects import ObjectStore  # obstore takes 4 MB of memory, which a folder does not need

        store = ObjectStore(url, max_size=max_size)
    return UnsealedStore(store) if keys is None else SealedStore(store, keys)
