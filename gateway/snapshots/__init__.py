"""Where snapshots are kept: a folder or any object store, encrypted if the operator gives keys.

What a snapshot means is the business of picod (which makes and takes them) and of the lifecycle; here it is a stream
of bytes that must come back as it went in, or not at all. Imports `core` only. Start with `make_snapshot_store` below.
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
    """The store a URL names: `file:///path` or a plain path, or `s3://`, `gs://`, `az://` with bucket and prefix.

    `max_size` counts bytes as stored; None: no limit. With `keys`, all that is put is encrypted and only what is
    encrypted is given back. Credentials of object stores come from where their own tools look (AWS_*, GOOGLE_*,
    AZURE_* variables, instance roles). Raises SettingsError.
    """
    parts = urlsplit(url)
    store: SnapshotStore
    if parts.scheme in ("", "file"):
        path = unquote(parts.path) if parts.scheme else url
        if parts.netloc or path in ("", "/"):
            raise SettingsError([f"snapshot store {url}: name a folder, as in file:///var/lib/wakegate/snapshots"])
        store = FolderStore(Path(path), max_size=max_size)
    else:
        from gateway.snapshots.objects import ObjectStore  # 4 MB that a folder does not need

        store = ObjectStore(url, max_size=max_size)
    return UnsealedStore(store) if keys is None else SealedStore(store, keys)
