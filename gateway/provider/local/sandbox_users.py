"""A user of its own, outside, for each sandbox, where root runs the gateway.

What the kernel counts for a user (inotify instances, pipe buffers, keys, processes), signals and files are then each
sandbox's alone. user_ids.py has the ids, mount_stage.py shows the folders; here both are opened and tried with a real
sandbox before the first one starts. docs/adr/0014-users-of-sandboxes.md has the reasons.
"""

from __future__ import annotations

import os
import platform
import resource
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from gateway.core.model import Limits
from gateway.provider.local import bwrap, rlimits, user_ids
from gateway.provider.local.isolation import IsolationReport, run_in_sandbox
from gateway.provider.local.mount_stage import AsUser, Folders, MountStage
from gateway.provider.local.user_ids import IdRange, UserIds

AUTO, SHARED = "auto", "shared"  # values of --sandbox-uids beside a range
_RUN = Path("/run/wakegate")  # locks of ids, and the folder on which each gateway mounts its stage
_PROGRAMS = ("nsenter", "prlimit", "unshare")


class SandboxIds(NamedTuple):
    """The users of one sandbox outside. `picod`: its own, where that is not user code's."""

    code: int
    picod: int | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A sandbox's folders as its user gets them, and how its programs are started as that user."""

    paths: Mapping[str, str]  # path on this machine -> path for the sandbox's user
    bwrap: Path
    as_user: AsUser


class SandboxUsers:
    """Opened by `open_users`. Used from one event loop."""

    def __init__(self, ids: UserIds, stage: MountStage, program: Path) -> None:
        self._ids, self._stage = ids, stage
        self._program, self._program_folder = program, program_folder(program)
        self.picod_shares = ""
        """Why picod has the user of the code that it runs; empty: it has one of its own."""

    @property
    def range(self) -> IdRange:
        """The ids that sandboxes may get."""
        return self._ids.range

    def take(self) -> SandboxIds:
        """Free ids. Raises OSError when none are left."""
        code = self._ids.take()
        if self.picod_shares:
            return SandboxIds(code)
        try:
            return SandboxIds(code, self._ids.take())
        except OSError:
            self._ids.give_back(code)
            raise

    def give_back(self, ids: SandboxIds) -> None:
        """No process has these ids any more."""
        if ids.picod is not None:
            self._ids.give_back(ids.picod)
        self._ids.give_back(ids.code)

    async def show(self, name: str, ids: SandboxIds, folders: Folders) -> Shown:
        """Show a sandbox's folders to its user until `hide`, which is called in any case. Raises OSError."""
        return self._shown(ids, await self._stage.showing(name, ids.code, self._with_program(folders)))

    def hide(self, name: str) -> None:
        """The sandbox has its folders, or has ended."""
        self._stage.hide_soon(name)

    def close(self) -> None:
        """Give up ids and mounts, when no sandbox runs any more. Blocks for a moment."""
        self._stage.close()
        self._ids.close()

    def probe(self, report: IsolationReport, state: Path, keys: Path) -> None:
        """Run a sandbox as another user, with a workspace in the folder `state`. Blocks. Raises OSError."""
        name, ids = f"probe-{secrets.token_hex(4)}", self.take()
        workspace = state / name
        workspace.mkdir(mode=0o700)
        try:
            paths = self._stage.show(name, ids.code, self._with_program(Folders(str(workspace), (str(keys),), ())))
            shown = self._shown(ids, paths)
            config = bwrap.BwrapConfig(
                bwrap.inspect_host(),
                {bwrap.KEYS_FOLDER: str(keys)},
                str(workspace),
                {"PATH": "/usr/bin:/bin"},
                Limits(),
                report.disable_userns,
                apart=ids.picod is not None,
                shown=shown.paths,
            )
            command = ["/bin/sh", "-c", f"ls {bwrap.KEYS_FOLDER} > {bwrap.WORKSPACE}/probe"]
            as_user = replace(shown.as_user, words=(*shown.as_user.words, *rlimits.command({resource.RLIMIT_CORE: 0})))
            detail = run_in_sandbox(shown.bwrap, config, command, syscalls=report.syscalls, as_user=as_user)
            if detail is not None:
                raise OSError(detail)
            owner = os.stat(workspace / "probe").st_uid
            if owner != os.geteuid():
                raise OSError(f"a file of user {ids.code} belongs to user {owner} on the disk, not to {os.geteuid()}")
        finally:
            self._stage.hide(name)
            shutil.rmtree(workspace, ignore_errors=True)
        self.give_back(ids)

    def _with_program(self, folders: Folders) -> Folders:
        return Folders(folders.writable, folders.private, (*folders.readable, str(self._program_folder)))

    def _shown(self, ids: SandboxIds, paths: Mapping[str, str]) -> Shown:
        program = Path(paths[str(self._program_folder)], self._program.relative_to(self._program_folder))
        as_user = self._stage.as_user(ids.code)
        if ids.picod is not None:
            # picod is root there, without root's rights: a namespace without a root can have no terminals (devpts).
            as_user = replace(as_user, maps=f"0 {ids.picod} 1\n{bwrap.USER_ID} {ids.code} 1\n")
        return Shown(paths, program, as_user)


def program_folder(program: Path) -> Path:
    """What has to be shown for a program to run: of a wheel's, whose libraries lie beside its package, all packages."""
    packages = [folder for folder in program.parents if folder.name in ("site-packages", "dist-packages")]
    return packages[0] if packages else program.parent


def open_users(setting: str, report: IsolationReport, state: Path, keys: Path, owner: str) -> SandboxUsers:
    """Users for sandboxes as `setting` says: AUTO, or a range. Blocks for some 50 ms.

    `state`: a private folder on the file system of the workspaces; `keys`: of the public keys; `owner`: of the state
    directory. Raises OSError with the reason why sandboxes share the gateway's user.
    """
    if report.bwrap is None:
        raise OSError("there is no isolation")
    if os.geteuid() != 0:
        raise OSError("only root may give them others")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        raise OSError(f"there is no {' and no '.join(missing)} (util-linux)")
    ours = user_ids.ids_of_namespace()
    if setting == AUTO:
        wanted = user_ids.automatic_range(ours, user_ids.ids_taken())
        if wanted is None:
            raise OSError("no range of ids is free for certain; name one with --sandbox-uids")
    else:
        wanted = user_ids.parse_range(setting)
        if not any(each.first <= wanted.first and wanted.last <= each.last for each in ours):
            raise OSError(f"user ids {wanted} do not all exist in this container")
    _open_folder(_RUN)
    locks, root = _RUN / "uids", _RUN / "stage"
    locks.mkdir(mode=0o700, exist_ok=True)
    root.mkdir(mode=0o711, exist_ok=True)
    stage = MountStage(root)
    users = SandboxUsers(UserIds(wanted, locks, owner), stage, report.bwrap)
    try:
        stage.open()
        _try_both(users, report, state, keys)
    except BaseException:
        users.close()
        raise
    return users


def _try_both(users: SandboxUsers, report: IsolationReport, state: Path, keys: Path) -> None:
    """With a user of picod's own or, where that fails, with one for both. Raises OSError."""
    users.picod_shares = _why_shared(report)
    if not users.picod_shares:
        try:
            users.probe(report, state, keys)
            return
        except OSError as error:
            users.picod_shares = str(error)
    users.probe(report, state, keys)


def _why_shared(report: IsolationReport) -> str:
    """Why picod cannot have a user of its own in sandboxes here; empty: nothing is known against it."""
    if platform.machine() not in ("x86_64", "aarch64"):
        return "the numbers of system calls are not known for this machine"
    if not report.namespace_limits:
        return "nested user namespaces could not be turned off"
    try:
        dumpable = Path("/proc/sys/fs/suid_dumpable").read_text().strip()
    except OSError:
        dumpable = "0"
    return "fs.suid_dumpable is 1: processes could be traced while they change users" if dumpable == "1" else ""


def _open_folder(folder: Path) -> None:
    """Make the folder, which all users may pass and only root may change. Raises OSError."""
    folder.mkdir(mode=0o711, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise OSError(f"{folder} is not a folder that only root can write to; remove it")
    os.chmod(folder, 0o711)  # noqa: S103 - to pass, not to list; a umask may have taken that
