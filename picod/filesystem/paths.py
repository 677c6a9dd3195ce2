"""Resolves paths of requests inside the workspace, to an open directory descriptor and a name.

Code in the sandbox can replace a directory with a symlink between any two system calls. So a path is resolved once, to
an open descriptor of the directory that holds the last name (a Place), and all work is done relative to that descriptor
with O_NOFOLLOW. A string that was checked is never resolved a second time.

Rules: `/x` means `x` in the workspace. `.` and `..` of the request are removed as text first, as in AgentCube, and a
relative path that then still begins with `..` is refused. Symlinks are followed while they stay inside; absolute ones
only if they lead into the workspace. Everything else is an EscapeError.

There are two implementations with the same result: openat2(2) with RESOLVE_BENEATH for plain paths on kernels that have
it, and a walk over the components for the rest (absolute symlinks, directories to create, old kernels). The walk alone
would be enough; openat2 saves three system calls per component.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from types import TracebackType
from typing import Self

from picod.filesystem import syscalls

_MAX_PATH_BYTES = 4096  # PATH_MAX: no command could name a longer one
_MAX_LINKS = 40  # the kernel's own limit
_MAX_STEPS = 8192  # each `..` of a symlink starts again from the root, so a link of many `a/..` costs many steps
_DIRECTORY = os.O_DIRECTORY | os.O_PATH | os.O_CLOEXEC


class PathError(ValueError):
    """The path is invalid: not UTF-8, a NUL byte, too long. The message is for the client."""


class EscapeError(PathError):
    """The path leads out of the workspace."""


class Place:
    """A name in an open directory of the workspace. Close it, or use it as a context manager.

    `name` is `.` if the place is the workspace itself. It is not a symlink when it is resolved, unless the caller
    allows it, and `open` does not follow one that was put there since. `path` is the cleaned path, for messages.
    """

    __slots__ = ("dir_fd", "name", "path")

    def __init__(self, dir_fd: int, name: str, path: str) -> None:
        self.dir_fd = dir_fd
        self.name = name
        self.path = path

    def open(self, flags: int, mode: int = 0o777) -> int:
        """Open the file. Raises OSError, ELOOP if it has become a symlink since."""
        return os.open(self.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY, mode, dir_fd=self.dir_fd)

    def stat(self) -> os.stat_result:
        """The status of the file, or of the symlink itself. Raises OSError."""
        return os.stat(self.name, dir_fd=self.dir_fd, follow_symlinks=False)

    def close(self) -> None:
        """Close the directory. A second call does nothing."""
        if self.dir_fd >= 0:
            os.close(self.dir_fd)
            self.dir_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Workspace:
    """The session's folder, held open. All paths of requests go through `resolve`."""

    def __init__(self, root: str, *, use_openat2: bool = True) -> None:
        self.root = os.path.realpath(root)
        self.fd = os.open(self.root, _DIRECTORY)
        self._roots = {self.root.rstrip("/"), os.path.abspath(root).rstrip("/")}
        self._use_openat2 = use_openat2

    def close(self) -> None:
        """Close the descriptor of the workspace folder."""
        os.close(self.fd)

    def resolve(self, path: str, *, make_parents: bool = False, follow: bool = True) -> Place:
        """The place that a path names; the last name need not exist. Without `follow` it may be a symlink.

        Raises PathError, EscapeError, and OSError for a parent that is missing (unless `make_parents`), is not a
        directory or may not be entered.
        """
        parts = clean(path)
        shown = "/".join(parts) or "."
        found = self._resolve_plain(parts, follow) if self._use_openat2 else None
        dir_fd, name = found or self._walk(path, parts, make_parents, follow)
        return Place(dir_fd, name, shown)

    def open_directory(self, path: str, *, make: bool = False) -> int:
        """An O_PATH descriptor of a directory; with `make`, it and its parents are created if missing.

        Raises what `resolve` raises, and NotADirectoryError, FileNotFoundError.
        """
        for _ in range(_MAX_LINKS):
            with self.resolve(path, make_parents=make) as place:
                try:
                    return place.open(_DIRECTORY)
                except FileNotFoundError:
                    if not make:
                        raise
                    _make_directory(place.name, place.dir_fd)
                except NotADirectoryError:
                    if not stat.S_ISLNK(place.stat().st_mode):
                        raise
                    # It was replaced with a symlink meanwhile: resolve that one.
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _resolve_plain(self, parts: list[str], follow: bool) -> tuple[int, str] | None:
        if not parts:
            return os.open(".", _DIRECTORY, dir_fd=self.fd), "."
        # The parent alone: the last name may be missing or a link, and the caller decides what that means.
        parent = "/".join(parts[:-1]) or "."
        try:
            dir_fd = syscalls.openat2(
                self.fd, parent.encode(), _DIRECTORY, syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
            )
        except OSError as error:
            # Any error leads to the walk, which finds the reason, or a way that openat2 does not allow (absolute links
            # into the workspace).
            if error.errno in (errno.ENOSYS, errno.EPERM):  # EPERM: from a seccomp filter that predates the call
                self._use_openat2 = False
            return None
        try:
            linked = stat.S_ISLNK(os.stat(parts[-1], dir_fd=dir_fd, follow_symlinks=False).st_mode)
        except OSError:
            linked = False  # missing or not accessible: opening it gives the reason
        if linked and follow:
            os.close(dir_fd)
            return None
        return dir_fd, parts[-1]

    def _walk(self, path: str, parts: list[str], make_parents: bool, follow: bool) -> tuple[int, str]:
        walk = _Walk(self.fd, parts)
        try:
            while walk.pending:
                name = walk.next_name()
                if name == "..":  # from the target of a symlink; those of the request were removed as text
                    walk.go_up(path)
                    continue
                try:
                    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=walk.fd)
                except FileNotFoundError:
                    if not walk.pending:
                        return walk.fd, name
                    if not make_parents:
                        raise
                    _make_directory(name, walk.fd)
                    walk.pending.appendleft(name)
                    continue
                kind = stat.S_IFMT(os.fstat(found).st_mode)
                if kind == stat.S_IFLNK and (walk.pending or follow):
                    self._follow(path, walk, found)
                elif kind == stat.S_IFDIR and walk.pending:
                    walk.enter(name, found)
                else:
                    os.close(found)
                    if walk.pending:
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                    return walk.fd, name
            return walk.fd, "."  # a link to a directory's `.`, or to the root
        except BaseException:
            os.close(walk.fd)
            raise

    def _follow(self, path: str, walk: _Walk, link_fd: int) -> None:
        try:
            target = os.readlink("", dir_fd=link_fd)
        finally:
            os.close(link_fd)
        if target.startswith("/"):
            target = self._below_root(path, target)
            walk.restart()
        walk.add_link(target)

    def _below_root(self, path: str, target: str) -> str:
        for root in self._roots:
            if target == root or target.startswith(root + "/"):
                return target[len(root) :]
        raise _escape_by_link(path, target)


class _Walk:
    """The state of a walk over a path: `fd`, an open directory, and the names that are `pending` below it."""

    def __init__(self, root_fd: int, parts: list[str]) -> None:
        self.fd = os.open(".", _DIRECTORY, dir_fd=root_fd)
        self.pending = deque(parts)
        self._root_fd = root_fd
        self._names: list[str] = []  # of the directories from the root to `fd`
        self._links = self._steps = 0

    def next_name(self) -> str:
        """Remove and return the next name. Raises OSError ELOOP after too many steps or links."""
        self._steps += 1
        if self._steps > _MAX_STEPS or self._links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return self.pending.popleft()

    def enter(self, name: str, fd: int) -> None:
        """Go down into an open directory; the walk owns its descriptor from now on."""
        self.fd = _replace(self.fd, fd)
        self._names.append(name)

    def go_up(self, path: str) -> None:
        """Go to the parent, again from the root: openat("..") leads elsewhere if the directory was moved meanwhile."""
        if not self._names:
            raise _escape_by_link(path, "..")
        self.pending.extendleft(reversed(self._names[:-1]))
        self.restart()

    def restart(self) -> None:
        """Go back to the root; the pending names stay."""
        self.fd = _replace(self.fd, os.open(".", _DIRECTORY, dir_fd=self._root_fd))
        self._names = []

    def add_link(self, target: str) -> None:
        """Put the names in a symlink's target before the pending ones."""
        self._links += 1
        self.pending.extendleft(part for part in reversed(target.split("/")) if part not in ("", "."))


def clean(path: str) -> list[str]:
    """The parts of a path, without `.` and `..`; none for the workspace itself. Raises PathError, EscapeError."""
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PathError("the path is not valid UTF-8") from error
    if b"\0" in encoded:
        raise PathError("the path contains a NUL byte")
    if len(encoded) >= _MAX_PATH_BYTES:
        raise PathError(f"the path is too long: {len(encoded)} bytes, at most {_MAX_PATH_BYTES - 1}")
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
            elif not path.startswith("/"):  # the parent of the root is the root, as with `cd /..`
                raise EscapeError(
                    f"access denied: path '{path}' escapes workspace jail (relative path traversal: {path})"
                )
        elif part not in ("", "."):
            if len(part.encode()) > 255:
                raise PathError("the path is too long: a name in it has more than 255 bytes")
            parts.append(part)
    return parts


def _escape_by_link(path: str, target: str) -> EscapeError:
    shown = target.encode("utf-8", "replace").decode()
    return EscapeError(f"access denied: resolved path '{shown}' (from '{path}') escapes workspace jail via symlink")


def _make_directory(name: str, dir_fd: int) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=dir_fd)
    except FileExistsError:
        pass  # created meanwhile; the next step of the walk checks what it is


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new
