"""Where the folders of a sandbox are shown to its own user, who may not reach them otherwise.

Workspaces lie in a folder that is closed to all but the gateway's user, and on the disk they belong to that user. The
sandbox's user gets them by a mount with other owners (MOUNT_ATTR_IDMAP): what belongs to 0 on the disk is the
sandbox's there, and what it makes belongs to 0 on the disk. So a workspace can be parked, woken by a sandbox with
another id, measured and deleted without a change of owners: 50,000 files would take 0.4 s on each wake.

The mounts are in a mount namespace of one thread of the gateway's, so they end with the gateway even if it is killed,
and nobody else sees them. A sandbox is started in that namespace, and copies the mounts into its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gateway.provider.local import mount_calls

logger = logging.getLogger(__name__)

_STAGE_BYTES = 1 << 20  # empty files and folders to mount on


@dataclass(frozen=True, slots=True)
class Folders:
    """What a sandbox's user is to see, as paths of this machine; files are allowed too.

    `writable` and what is `private` get that user as owner. So does what is `readable` where its file system can do it;
    where not, the user can read there what all users can.
    """

    writable: str
    private: tuple[str, ...]
    readable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AsUser:
    """How a program is started as user and group `uid`: behind `words`, with the descriptor `namespace` inherited.

    `maps`: the users and groups of a sandbox's user namespace where bwrap, as `uid`, may not map them itself: it may
    map its own only.
    """

    uid: int
    words: tuple[str, ...]
    namespace: int
    maps: str = ""

    def write_maps(self, pid: int) -> None:
        """Map the users and groups of the namespace that `pid` has made. Raises OSError."""
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{kind}").write_text(self.maps)


class MountStage:
    """A mount namespace with a folder `root`, in which sandboxes' folders are shown. Safe for several threads."""

    def __init__(self, root: Path) -> None:
        """`root`: an empty folder to which all users have the way. Call `open` first."""
        self.root = root
        self.namespace = -1  # a descriptor of the mount namespace
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mounts")

    def open(self) -> None:
        """Make the namespace. Blocks for some milliseconds. Raises OSError."""
        self._thread.submit(self._open).result()

    def _open(self) -> None:
        mount_calls.own_mounts()
        mount_calls.mount_tmpfs(str(self.root), mode=0o711, size=_STAGE_BYTES)
        self.namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give it up. Sandboxes that still run keep what they have."""
        self._thread.shutdown()
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1

    def as_user(self, uid: int) -> AsUser:
        """How a program is started as `uid` in this namespace."""
        words = ("nsenter", f"--mount=/proc/self/fd/{self.namespace}", f"--setuid={uid}", f"--setgid={uid}", "--")
        return AsUser(uid, words, self.namespace)

    def show(self, name: str, uid: int, folders: Folders) -> dict[str, str]:
        """Show files and folders to user `uid`: source -> path in the namespace. Blocks. Raises OSError."""
        return self._thread.submit(self._show, name, uid, folders).result()

    def hide(self, name: str) -> None:
        """Undo `show`; what sandboxes have copied stays with them. Absent is success. Blocks for a moment."""
        self._thread.submit(self._hide, name).result()

    async def showing(self, name: str, uid: int, folders: Folders) -> dict[str, str]:
        """As `show`, from an event loop. A caller that is cancelled calls `hide_soon` all the same: it comes after."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._show, name, uid, folders)

    def hide_soon(self, name: str) -> None:
        """As `hide`, without waiting."""
        with contextlib.suppress(RuntimeError):  # closed: nothing is shown any more
            self._thread.submit(self._hide, name).add_done_callback(_log_failure)

    def _show(self, name: str, uid: int, folders: Folders) -> dict[str, str]:
        folder, shown = self.root / name, dict[str, str]()
        folder.mkdir()
        os.chmod(folder, 0o711)  # noqa: S103 - to pass, not to list; a umask may have taken that
        sources = dict.fromkeys([folders.writable, *folders.private, *folders.readable])
        with _users(uid) as users:
            for number, source in enumerate(sources):
                target = folder / str(number)
                target.mkdir() if os.path.isdir(source) else target.touch()
                writable = source == folders.writable
                try:
                    mount_calls.clone_mount(source, str(target), users=users, writable=writable)
                except OSError as error:
                    if writable or source in folders.private:
                        why = f"{source} cannot be shown to another user: {error.strerror}"
                        raise OSError(error.errno, why) from error
                    mount_calls.clone_mount(source, str(target), users=None, writable=False)
                shown[source] = str(target)
        return shown

    def _hide(self, name: str) -> None:
        folder = self.root / name
        if not folder.exists():
            return
        for entry in list(os.scandir(folder)):
            with contextlib.suppress(OSError):  # nothing is mounted on it
                mount_calls.unmount(entry.path)
            os.rmdir(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        folder.rmdir()


@contextlib.contextmanager
def _users(uid: int) -> Iterator[int]:
    """A user namespace in which 0 is `uid`, as a descriptor: for mounts only, no process is in it. Raises OSError.

    By unshare(1), as a process with threads may not make one itself.
    """
    with subprocess.Popen(
        ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            holder.stdin.write(b"x")
            if not holder.stdout.read(1):  # what cat sends back, in its namespace
                detail = holder.stderr.read(200).decode(errors="replace").strip()
                raise OSError(f"a user namespace cannot be made: {detail}")
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{holder.pid}/{kind}").write_text(f"0 {uid} 1\n")
            namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            holder.kill()
    try:
        yield namespace
    finally:
        os.close(namespace)


def _log_failure(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.error("folders of a sandbox are still mounted in the gateway: %s", error)
