"""The state folder: where it is by default, making it, and whether it can be written to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gateway.core.errors import SettingsError


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """`wakegate` in the user's data folder, as the XDG Base Directory Specification defines it."""
    base = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or "/var/lib", ".local", "share")
    return Path(base) / "wakegate"


# What gateways put into their state folder, for `foreign_names`.
_OURS = frozenset({
    "abandoned", "agents", "ballast", "cgroups", "egress", "etc", "keys", "lock", "lost+found", "owner", "packages",
    "parked", "restoring", "run", "snapshots", "trash", "workspaces",
})  # fmt: skip
_OUR_STARTS = ("wakegate.db", "audit", "worker-", ".probe-")
OWNER = "owner"  # the file that every gateway with sandboxes on this machine makes


def foreign_names(path: Path) -> list[str]:
    """What is in a folder that no gateway puts into its state folder. Raises OSError."""
    return sorted(name for name in os.listdir(path) if name not in _OURS and not name.startswith(_OUR_STARTS))


def other_use(path: Path) -> str:
    """What is wrong with a folder that is used for other things, or "". Raises OSError.

    A gateway closes its state folder to all others and `wakegate uninstall` deletes it: with `--state-dir ~` or `/tmp`
    that would be everything there is.
    """
    if not path.exists() or (path / OWNER).exists():
        return ""
    # Folders alone: people keep the gateway's own configuration beside its state.
    names = [name for name in foreign_names(path) if (path / name).is_dir()]
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"--state-dir {path}: is used for other things ({shown}); name a folder of its own, {path / 'wakegate'}"


def make_state_dir(path: Path) -> None:
    """Create the state folder with mode 0700. Raises SettingsError, also for a folder that is used for other things."""
    try:
        if problem := other_use(path):
            raise SettingsError([problem])
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingsError([f"--state-dir {path}: cannot be created: {error.strerror}"]) from error


def probe_state_dir(path: Path) -> str:
    """Write and delete a 4 KiB file in the state folder. Returns the problem, or "" if there is none. Blocks."""
    probe = path / f".probe-{os.getpid()}"
    try:
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return f"the state directory {path} cannot be written to: {error.strerror}"
    return ""
