"""How much of the disk folders take that hostile code wrote: any depth, any mode, deleted and still open."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.provider.local import process_tree

_DU_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """What a folder holds: bytes on the disk, and inodes."""

    bytes: int = 0
    files: int = 0


def reader(bwrap: Path | None, *, uid: int) -> tuple[str, ...]:
    """What to start du(1) with so that it reads folders of mode 0300 too, in which code can write but du not look.

    Root reads everything. An ordinary user has that right over its own files in a user namespace of its own.
    """
    if uid == 0 or bwrap is None:
        return ()
    namespaces = ("--unshare-user", "--uid", "0", "--gid", "0", "--cap-add", "CAP_DAC_READ_SEARCH")
    return (str(bwrap), *namespaces, "--ro-bind", "/", "/", "--die-with-parent", "--")


def sizes(folders: Sequence[Path], reader: Sequence[str] = ()) -> dict[Path, Size]:
    """What each folder holds. By du(1), which handles trees of any depth that hostile code makes. Raises OSError."""
    if not folders:
        return {}
    used, files = _du(reader, "-skx", folders), _du(reader, "-sx", folders, "--inodes")
    return {folder: Size(used[folder] << 10, files.get(folder, 0)) for folder in used}


def _du(reader: Sequence[str], flags: str, folders: Sequence[Path], *more: str) -> dict[Path, int]:
    # A program of its own rather than os.walk: it descends by descriptor, so no path grows too long, and it does not
    # hold the interpreter's lock while it walks a million files. Niced, as requests come first.
    command = ["nice", "-n", "10", *reader, "du", flags, *more, "--", *map(str, folders)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_DU_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"du took longer than {_DU_TIMEOUT_S:g} s") from error
    if done.returncode and not done.stdout and any(folder.exists() for folder in folders):
        raise OSError(f"du: {done.stderr.decode(errors='replace').strip()}")  # not of a sandbox that ended meanwhile
    found = {}
    for line in done.stdout.decode(errors="surrogateescape").splitlines():
        count, _, folder = line.partition("\t")
        found[Path(folder)] = int(count)
    return found


def shrink(folder: int, limit: int) -> None:
    """Delete files below the open directory `folder`, the largest first, until `limit` bytes or less are left. Blocks.

    By find(1), which does not follow links and takes trees of any depth. Its steps are coarse: it deletes all files
    over a half of the limit, then those over an eighth, and so on. What is in folders that the gateway's user may not
    read stays. Raises OSError.
    """
    path = f"/proc/self/fd/{folder}/."  # with the dot: neither program follows a link that it is given
    for least in (limit // 2, limit // 8, limit // 64, limit // 1024, 0):
        command = ["find", path, "-xdev", "-type", "f", "-size", f"+{least >> 10}k", "-delete"]
        try:
            subprocess.run(command, pass_fds=(folder,), capture_output=True, timeout=_DU_TIMEOUT_S, check=False)
            done = subprocess.run(
                ["du", "-skx", path], pass_fds=(folder,), capture_output=True, timeout=_DU_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"find or du took longer than {_DU_TIMEOUT_S:g} s") from error
        if int(done.stdout.split()[0]) << 10 <= limit:
            return


def unlinked(workspace: Path, pid: int) -> Size:
    """Files that were deleted and are still open in processes below `pid`: du does not see them."""
    try:
        device = os.stat(workspace).st_dev
    except FileNotFoundError:
        return Size()  # it ended meanwhile
    found: dict[int, int] = {}
    for each in process_tree.descendants(pid):
        for status in process_tree.open_files(each):
            if status.st_dev == device and not status.st_nlink and stat.S_ISREG(status.st_mode):
                found[status.st_ino] = status.st_blocks * 512  # by inode: several processes may hold one file open
    return Size(sum(found.values()), len(found))
