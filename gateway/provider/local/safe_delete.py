"""Deletion of what hostile code wrote: any depth, any name, any mode, and never through a symlink.

A workspace is deleted in two steps: a rename into the trash folder, which is quick however much it holds
(StateDir.discard), and later its deletion in a thread, one round at a time (TrashCollector).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

RETRY_S = 5.0  # until a disk that refused a rename is asked again
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def delete_children(parent: str) -> None:
    """Empty the folder `parent`, to which no other user has access.

    Each folder found inside is first moved up to `parent` under a new name and emptied there. So nothing is ever more
    than two levels down: no recursion, one descriptor, and no path too long, however deep the tree was.
    Raises OSError for what cannot be deleted (an immutable file, say), after deleting all the rest.
    """
    top = os.open(parent, os.O_RDONLY | _FOLDER)
    problem: OSError | None = None
    try:
        stuck: set[bytes] = set()
        counter = 0
        # Until a listing has nothing new: _delete_one moves folders up into `top` while it is being emptied.
        while names := [name for name in map(os.fsencode, os.listdir(top)) if name not in stuck]:
            for name in names:
                try:
                    counter = _delete_one(top, name, counter)
                except OSError as error:
                    stuck.add(name)
                    problem = error
    finally:
        os.close(top)
    if problem is not None:
        raise problem


def _delete_one(top: int, name: bytes, counter: int) -> int:
    """Delete the entry `name` of `top`; its folders move up into `top`. Returns the counter of names used."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return counter
    folder = _open_writable(top, name)
    problem: OSError | None = None
    try:
        for child in map(os.fsencode, os.listdir(folder)):
            try:
                if stat.S_ISDIR(os.stat(child, dir_fd=folder, follow_symlinks=False).st_mode):
                    os.close(_open_writable(folder, child))  # moving a folder rewrites its "..": it must be writable
                    counter = _move_up(top, folder, child, counter)
                else:
                    os.unlink(child, dir_fd=folder)
            except OSError as error:
                problem = error
    finally:
        os.close(folder)
    if problem is not None:
        raise problem
    os.rmdir(name, dir_fd=top)
    return counter


def _move_up(top: int, folder: int, child: bytes, counter: int) -> int:
    while True:
        counter += 1
        name = b".wakegate-%d" % counter
        try:
            os.stat(name, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(child, name, src_dir_fd=folder, dst_dir_fd=top)
            return counter


def _open_writable(parent: int, name: bytes) -> int:
    """Open a folder for reading after a chmod to 0700: its owner may have made it unreadable."""
    # O_PATH needs no right to read the folder, and pins it: a chmod by name would follow a link put in its place.
    # fchmod(2) refuses such a descriptor, its path below /proc does not.
    handle = os.open(name, os.O_PATH | _FOLDER, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)
        return os.open(".", os.O_RDONLY | _FOLDER, dir_fd=handle)
    finally:
        os.close(handle)


def move_children(source: os.PathLike[str], target: os.PathLike[str]) -> None:
    """Move every entry of one folder into another on the same filesystem, each by one rename.

    Modes and times of the entries stay. Raises OSError; what was moved until then is in `target`, the rest in `source`.
    """
    os.chmod(source, 0o700)
    old = os.open(source, os.O_RDONLY | _FOLDER)
    try:
        new = os.open(target, os.O_RDONLY | _FOLDER)
        try:
            for name in map(os.fsencode, os.listdir(old)):
                mode = os.stat(name, dir_fd=old, follow_symlinks=False).st_mode
                shut = stat.S_ISDIR(mode) and not mode & stat.S_IWUSR
                if shut:  # moving a folder rewrites its "..": it must be writable for that moment
                    os.chmod(name, stat.S_IMODE(mode) | stat.S_IWUSR, dir_fd=old)
                os.rename(name, name, src_dir_fd=old, dst_dir_fd=new)
                if shut:
                    os.chmod(name, stat.S_IMODE(mode), dir_fd=new)
        finally:
            os.close(new)
    finally:
        os.close(old)


class TrashCollector:
    """Empties a trash folder when asked. What cannot be deleted is logged and tried again in the next round."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Ask for a round. Cheap: requests made during a round are served by one more."""
        self._requested.set()

    async def run(self, trash: Path, discard_again: Callable[[], bool]) -> None:
        """Empty `trash` after each request, until cancelled.

        `discard_again` moves there what could not be moved before; while it returns False it is called every RETRY_S.
        """
        waits = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if waits else None):
                    await self._requested.wait()
            self._requested.clear()
            waits = not discard_again()
            await asyncio.to_thread(empty_trash, trash)


def empty_trash(trash: Path) -> None:
    """Delete all that was discarded. Blocks."""
    try:
        delete_children(str(trash))
    except OSError as error:
        logger.warning("a workspace could not be deleted: %s", error)
