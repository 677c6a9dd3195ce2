"""The sandbox's whole file system as a tree for requests, for clients that name absolute paths such as /tmp/x.

A client of the session can reach all of this with a command anyway, as the same user. The exceptions are /proc and
/sys: `/proc/self` would be picod's own there, with its descriptors and its memory, not the command's.
"""

from __future__ import annotations

import errno
import os

from picod.filesystem.paths import EscapeError, Place, Workspace

_REFUSED = ("/proc", "/sys")


class SystemTree(Workspace):
    """Resolves absolute paths from the sandbox's root. A relative one begins at the root as well."""

    def __init__(self) -> None:
        super().__init__("/")
        # In a local sandbox /sys is a folder of the root itself, with nothing but the numbers of processors.
        root = os.fstat(self.fd).st_dev
        found = {status.st_dev for path in _REFUSED if (status := _status(path)) is not None}
        self._refused = found - {root}

    def resolve(self, path: str, *, make_parents: bool = False, follow: bool = True) -> Place:
        """As for the workspace. Raises EscapeError for what is in /proc or /sys, by whatever name or link."""
        place = super().resolve(path, make_parents=make_parents, follow=follow)
        try:
            devices = {os.fstat(place.dir_fd).st_dev}
            try:
                devices.add(place.stat().st_dev)  # a mount point: its directory is on another file system
            except FileNotFoundError:
                pass
            if devices & self._refused:
                raise EscapeError(f"access denied: '{path}' is in /proc or /sys; read it with a command")
        except BaseException:
            place.close()
            raise
        return place


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return None
