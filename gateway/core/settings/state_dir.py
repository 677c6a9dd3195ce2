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


def make_state_dir(path: Path) -> None:
    """Create the state folder with mode 0700. Raises SettingsError."""
    try:
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
