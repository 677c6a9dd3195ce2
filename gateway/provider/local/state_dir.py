"""The provider's folders: one owner, sockets in a place short enough to bind, workspaces, and a bin for dead ones.

STATE/lock          held by the one gateway that owns STATE; says who
STATE/owner         a random name, made once: marks processes and control groups as STATE's
STATE/run/          sockets (0700); a private folder in the temporary directory when STATE's path is too long
STATE/etc/          the made-up files of /etc that sandboxes see
STATE/workspaces/   one folder per sandbox (0700)
STATE/parked/       workspaces of sessions that sleep, by session; moved by renaming, never copied
STATE/trash/        workspaces waiting for their deletion; renamed here, so a crash leaves none half-deleted
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from gateway.core.errors import SettingsError
from gateway.core.model import SandboxId, SessionId
from gateway.provider.local import bwrap, safe_delete

SOCKET_PATH_MAX = 107  # bytes: sun_path holds 108 with its final zero


class Folders:
    """Opened by `open`, which takes the lock; `close` gives it back. All methods are plain blocking calls."""

    def __init__(self, state: Path, lock: int) -> None:
        self._lock = lock
        self.state = state
        self.workspaces, self.trash, self.etc = state / "workspaces", state / "trash", state / "etc"
        self.parked = state / "parked"
        for folder in (self.workspaces, self.parked, self.trash, self.etc):
            _private(folder)
        self.owner = owner_name(state)
        self.run = _run_folder(state, self.owner)
        for name, text in bwrap.ETC_MADE_UP.items():
            (self.etc / name).write_text(text)

    @classmethod
    def open(cls, state: Path) -> Folders:
        """Own `state`, making it if need be. Raises SettingsError when it cannot be used or has an owner already."""
        try:
            _private(state)
            state = state.resolve()
            lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError([f"state directory {state}: {error.strerror}; name another with --state-dir"]) from None
        try:
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
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Give up ownership."""
        if self.run.parent != self.state:
            os.rmdir(self.run)
        os.close(self._lock)

    def socket_path(self, sandbox: SandboxId) -> str:
        """Where the sandbox's picod is dialled; nothing of this folder is visible in any sandbox."""
        return str(self.run / f"{sandbox}.sock")

    def make_workspace(self, sandbox: SandboxId) -> Path:
        """A new, empty folder."""
        folder = self.workspaces / sandbox
        folder.mkdir(mode=0o700)
        return folder

    def discard(self, workspace: Path) -> None:
        """Move a workspace out of the way at once (a rename); `empty_trash` deletes it. Absent is success.

        Whoever wants to keep what is in a workspace takes the folder before calling this.
        """
        try:
            os.chmod(workspace, 0o700)
            os.rename(workspace, self.trash / f"{workspace.name}.{secrets.token_hex(4)}")
        except FileNotFoundError:
            pass

    def park(self, workspace: Path | None, session: SessionId) -> bool:
        """Keep a workspace under its session's name. If part of it is there already, the two parts are joined.

        None: there is none to be moved; it may have been before, by one who could not tell any more. Returns whether
        something is parked now.
        """
        target = self.parked / session
        if workspace is None:
            return target.exists()
        os.chmod(workspace, 0o700)
        if target.exists():
            safe_delete.move_children(workspace, target)
            workspace.rmdir()
        else:
            os.rename(workspace, target)
        return True

    def parked_before(self, limit: float) -> set[str]:
        """Names of what was parked at `limit` (epoch seconds) or before."""
        # A rename sets the time of the folder's change (ctime); that of its content (mtime) is the user's to set.
        return {entry.name for entry in os.scandir(self.parked) if entry.stat(follow_symlinks=False).st_ctime <= limit}

    def restore(self, session: SessionId, workspace: Path) -> None:
        """Move what was parked into the workspace of a new sandbox, whose folder is bound and so cannot be replaced.

        Raises FileNotFoundError when nothing is parked. Broken off half-way, `park` joins the parts again.
        """
        source = self.parked / session
        safe_delete.move_children(source, workspace)
        source.rmdir()

    def delete_orphans(self) -> dict[SandboxId, Path]:
        """Workspaces that an earlier life left."""
        return {SandboxId(folder.name): folder for folder in self.workspaces.iterdir()}

    def empty_trash(self) -> None:
        """Delete what was discarded; runs in a thread of its own. Raises OSError for what cannot be deleted."""
        safe_delete.delete_children(str(self.trash))

    def earlier_groups(self) -> list[str]:
        """What `note_groups` was given in the earlier life."""
        try:
            return (self.state / "cgroups").read_text().splitlines()
        except FileNotFoundError:
            return []

    def note_groups(self, bases: Iterable[str]) -> None:
        """Write down where control groups are about to be made."""
        (self.state / "cgroups").write_text("\n".join(bases))

    def clear_sockets(self) -> None:
        """Remove sockets of an earlier life. Only when nothing of it runs any more."""
        for entry in os.scandir(self.run):
            os.unlink(entry.path)


def _private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folder, 0o700)


def owner_name(state: Path) -> str:
    """The name of whoever owns the state folder: made at the first asking, the same ever after."""
    path = state / "owner"
    try:
        name = path.read_text().strip()
    except FileNotFoundError:
        name = ""
    if not (len(name) == 16 and name.isalnum()):
        name = secrets.token_hex(8)
        path.write_text(name)
    return name


def _run_folder(state: Path, owner: str) -> Path:
    folder = state / "run"
    longest = folder / "sb-0123456789abcdef.sock"
    if len(os.fsencode(longest)) <= SOCKET_PATH_MAX:
        _private(folder)
        return folder
    # Its name is the same in each life, so that a later one clears what this one leaves.
    folder = Path(tempfile.gettempdir()) / f"wakegate-{owner}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if not (stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o077 == 0):
            problem = f"{folder} (for sockets, as {state} is too long a path) belongs to somebody else; remove it"
            raise SettingsError([problem]) from None
    return folder
