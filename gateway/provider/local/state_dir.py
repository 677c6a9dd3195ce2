"""The state directory: one owner at a time, sockets on paths short enough to bind, workspaces, and a trash folder.

STATE/lock          held by the one gateway that owns STATE; names its process
STATE/ballast       room on a full disk for records and deletions (disk_quota.py)
STATE/owner         a random name, made once: tags processes and control groups as STATE's
STATE/run/          sockets (0700); a private folder in the temporary directory when STATE's path is too long
STATE/etc/          synthetic files of /etc that sandboxes see
STATE/workspaces/   one folder per sandbox (0700)
STATE/parked/       workspaces of hibernated sessions, by session; moved by renaming, never copied
STATE/restoring/    one empty file per sandbox into whose workspace a parked one was, or is being, moved
STATE/abandoned/    workspaces that a dead gateway's sandboxes left and no record names, by sandbox
STATE/trash/        workspaces to be deleted; renamed here first, so that a crash leaves none half-deleted
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from gateway.core.errors import SettingsError
from gateway.core.model import SandboxId, SessionId
from gateway.provider.local import bwrap, safe_delete

logger = logging.getLogger(__name__)

MAX_SOCKET_PATH_BYTES = 107  # bytes: sun_path holds 108 with its final zero


class StateDir:
    """Opened by `open`, which takes the lock; `close` releases it. All methods block."""

    def __init__(self, state: Path, lock: int) -> None:
        self._lock = lock
        self._to_discard: set[Path] = set()  # what `discard` could not move
        self.path = state
        self.workspaces, self.trash, self.etc = state / "workspaces", state / "trash", state / "etc"
        self.parked, self.restoring, self.abandoned = state / "parked", state / "restoring", state / "abandoned"
        for folder in (self.workspaces, self.parked, self.restoring, self.abandoned, self.trash, self.etc):
            _private(folder)
        self.owner = owner_name(state)
        self.run = _run_folder(state, self.owner)
        for name, text in bwrap.ETC_SYNTHETIC.items():
            (self.etc / name).write_text(text)

    @classmethod
    def open(cls, state: Path) -> StateDir:
        """Take ownership of `state`, creating it if absent. Raises SettingsError when it is unusable or owned."""
        try:
            _private(state)
            state = state.resolve()
            lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError([f"state directory {state}: {error.strerror}; name another with --state-dir"]) from None
        try:
            # The kernel drops it with the process; a file with a pid would be a stale lock after a kill -9.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
            os.close(lock)
            problem = (
                f"state directory {state} is in use by {holder}; end that gateway or name another with --state-dir"
            )
            raise SettingsError([problem]) from None
        try:
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()}".encode())
            return cls(state, lock)
        except OSError as error:
            os.close(lock)
            where = error.filename or state
            raise SettingsError([f"state directory {state}: {where}: {error.strerror}"]) from None
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Release ownership, so that another gateway can open it."""
        if self.run.parent != self.path:
            os.rmdir(self.run)
        os.close(self._lock)

    def socket_path(self, sandbox: SandboxId) -> str:
        """The unix socket of the sandbox's picod, outside of what any sandbox sees."""
        return str(self.run / f"{sandbox}.sock")

    def make_workspace(self, sandbox: SandboxId) -> Path:
        """Make the sandbox's workspace, empty and private (0700). Raises FileExistsError."""
        folder = self.workspaces / sandbox
        folder.mkdir(mode=0o700)
        return folder

    def discard(self, workspace: Path) -> None:
        """Move a workspace out of the way at once (a rename); TrashCollector deletes it. Absent is success.

        A disk without a free block may refuse even that. The workspace then stays where it is until `discard_again`
        succeeds: nobody waits for it, and an error would keep its session or sandbox from ending.
        """
        try:
            self._discard(workspace)
        except OSError as error:
            logger.warning("workspace %s cannot be moved into the trash yet: %s", workspace, error)
            self._to_discard.add(workspace)

    def discard_again(self) -> bool:
        """Try again what `discard` could not do. Returns whether nothing is left to try."""
        for workspace in list(self._to_discard):
            try:
                self._discard(workspace)
            except OSError:
                return False  # the others would fail as well
        return True

    def _discard(self, workspace: Path) -> None:
        try:
            os.chmod(workspace, 0o700)  # a moved folder gets a new "..", so it must be writable; code may have shut it
            os.rename(workspace, self.trash / f"{workspace.name}.{secrets.token_hex(4)}")
        except FileNotFoundError:
            pass
        (self.restoring / workspace.name).unlink(missing_ok=True)
        self._to_discard.discard(workspace)

    def park(self, workspace: Path | None, session: SessionId) -> bool:
        """Keep a workspace under its session's name. If part of it is there already, the two parts are joined.

        None: there is none to move. Nor is there where an earlier call moved it and was interrupted, or failed after
        that. Returns whether anything is parked.
        """
        target = self.parked / session
        if target in self._to_discard:
            self._discard(target)  # of an ended session of that name: never to be joined with another one's
        if workspace is None or not workspace.exists():
            return target.exists()
        os.chmod(workspace, 0o700)
        if target.exists():
            safe_delete.move_children(workspace, target)
            workspace.rmdir()
        else:
            os.rename(workspace, target)
        (self.restoring / workspace.name).unlink(missing_ok=True)
        return True

    def parked_before(self, limit: float) -> set[str]:
        """Names of what was parked at `limit` (epoch seconds) or before."""
        return _renamed_before(self.parked, limit)

    def restore(self, session: SessionId, workspace: Path) -> None:
        """Move what was parked into the workspace of a new sandbox, whose folder is bound and so cannot be replaced.

        Raises FileNotFoundError when nothing is parked. After an interruption half-way, `park` joins the parts again.
        """
        source = self.parked / session
        os.stat(source)  # before the mark: without a parked workspace there is nothing to roll back
        (self.restoring / workspace.name).touch()
        safe_delete.move_children(source, workspace)
        source.rmdir()  # last: as long as it is there, or the mark is, the parked workspace is found

    def has_part_of(self, session: SessionId, sandbox: SandboxId) -> bool:
        """Whether a parked workspace is there, or `restore` has moved it, or some of it, to that sandbox."""
        return (self.parked / session).exists() or (self.restoring / sandbox).exists()

    def orphans(self) -> dict[SandboxId, Path]:
        """Workspaces of sandboxes of an earlier run, by sandbox."""
        found = {
            SandboxId(folder.name): folder
            for parent in (self.abandoned, self.workspaces)
            for folder in parent.iterdir()
        }
        for mark in self.restoring.iterdir():
            if mark.name not in found:  # the gateway died between the end of `park` or `discard` and this
                mark.unlink()
        return found

    def abandon(self, workspace: Path) -> Path | None:
        """Keep the workspace of an ended sandbox that no record names, or delete an empty one. Returns where it is."""
        target = self.abandoned / workspace.name
        if workspace == target:
            return target
        os.chmod(workspace, 0o700)
        try:
            workspace.rmdir()  # the test for emptiness too, without a listing that something could slip in behind
        except OSError:
            os.rename(workspace, target)
            return target
        (self.restoring / workspace.name).unlink(missing_ok=True)
        return None

    def abandoned_before(self, limit: float) -> set[SandboxId]:
        """Sandboxes whose workspaces were abandoned at `limit` (epoch seconds) or before."""
        return {SandboxId(name) for name in _renamed_before(self.abandoned, limit)}

    def earlier_groups(self) -> list[str]:
        """The control groups that `record_groups` was given in the earlier run."""
        try:
            return (self.path / "cgroups").read_text().splitlines()
        except FileNotFoundError:
            return []

    def record_groups(self, bases: Iterable[str]) -> None:
        """Record where control groups are about to be made, for the clean-up of a later run."""
        (self.path / "cgroups").write_text("\n".join(bases))

    def clear_sockets(self) -> None:
        """Remove the sockets of an earlier run, all of whose processes have ended."""
        for entry in os.scandir(self.run):
            os.unlink(entry.path)


def _renamed_before(folder: Path, limit: float) -> set[str]:
    # A rename sets an entry's ctime; its mtime is the user's to set.
    return {entry.name for entry in os.scandir(folder) if entry.stat(follow_symlinks=False).st_ctime <= limit}


def _private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folder, 0o700)


def owner_name(state: Path) -> str:
    """The name of the state directory's owner: random, made at the first call and stored."""
    path = state / "owner"
    try:
        name = path.read_bytes()[:64].decode("ascii", "replace").strip()
    except FileNotFoundError:
        name = ""
    if not (len(name) == 16 and name.isascii() and name.isalnum()):
        name = secrets.token_hex(8)
        path.write_text(name)
    return name


def _run_folder(state: Path, owner: str) -> Path:
    folder = state / "run"
    longest = folder / "sb-0123456789abcdef.sock"
    if len(os.fsencode(longest)) <= MAX_SOCKET_PATH_BYTES:
        _private(folder)
        return folder
    # Its name is the same in each run, so that a later one removes what a crash leaves.
    folder = Path(tempfile.gettempdir()) / f"wakegate-{owner}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if not (stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o077 == 0):
            problem = f"{folder} (for sockets, as {state} is too long a path) belongs to another user; remove it"
            raise SettingsError([problem]) from None
    return folder
