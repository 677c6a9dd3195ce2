"""Where sessions are recorded and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Records:
    """The store of records, and what gateways that share one know of each other."""

    state_dir: Path = setting(
        Path(), "folder for records, keys and workspaces (default: the user's data folder)", kind="path"
    )
    store: str = setting(
        "",
        "session store: sqlite:///PATH or redis://... (default: sqlite in the state folder)",
        kind="text",
        metavar="URL",
    )
    store_prefix: str = setting(
        "wakegate", "prefix of all keys in Redis; gateways with the same prefix share sessions", kind="text"
    )
    advertise: str = setting(
        "",
        "URL at which other gateways on the same Redis reach this one (default: where it listens)",
        kind="text",
        metavar="URL",
    )
    takeover_after: float = setting(
        8.0,
        "time without a heartbeat after which other gateways on the same Redis consider a gateway dead",
        kind="duration",
        low=0.2,
    )
    sweep_interval: float = setting(
        5.0, "interval between sweeps for idle and expired sessions", kind="duration", low=0.01
    )
    terminated_retention: float = setting(
        3600.0, "how long the record of a terminated session is kept", kind="duration", low=0
    )


@dataclass(frozen=True)
class Hibernation:
    """Workspaces of sessions that have no sandbox, and copies of those that have one."""

    snapshots: str = setting(
        "", "where hibernated sessions are kept: file:///FOLDER, s3://BUCKET/PREFIX, gs://..., az://..."
        " (default: parked by the local engine, without a copy)", kind="text", metavar="URL",
    )  # fmt: skip
    checkpoint_interval: float = setting(
        300.0,
        "how often active sessions are copied in a cluster, where a node can be lost, if files changed since; a"
        " runtime's checkpointInterval comes first, on every engine; 0: never",
        kind="duration",
        low=0,
    )
    snapshot_max_size: int = setting(
        4 << 30,
        "largest snapshot, compressed; a session that exceeds it is not hibernated; 0: no limit",
        kind="size",
        low=0,
    )
    snapshot_key_file: Path = setting(
        Path(), "file of snapshot encryption keys: lines of NAME:BASE64 of 32 bytes; the first key encrypts",
        kind="path", metavar="FILE",
    )  # fmt: skip
    hibernated_retention: float = setting(
        604800.0, "how long a hibernated session is kept before it is terminated", kind="duration", low=1
    )
