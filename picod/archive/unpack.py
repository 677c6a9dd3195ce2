"""Unpacks a tar stream into a directory. Blocking; api.py runs it in a thread.

Neither the archive nor the target is trusted: code may be running there. Each file is created with O_EXCL in an open
directory that was reached from the root without following a symlink. So whatever the archive says (`..`, absolute
names, a symlink and then a file below it), a file is created inside the target or not at all.
"""

from __future__ import annotations

import errno
import os

from picod.archive.source import Source
from picod.archive.tar_members import (
    BLOCK,
    DIRECTORY,
    EXTENDED,
    FILE,
    GLOBAL,
    HARD_LINK,
    KINDS,
    LONG_LINK,
    LONG_NAME,
    SET_ID_BITS,
    SYMLINK,
    Member,
    TarballError,
    member_of,
    padding,
    parse_head,
    parse_records,
)
from picod.filesystem.safe_walk import READ, WRITE, SafeWalk, change_mode

_MAX_EXTENDED_BYTES = 4 << 20
_MAX_PATH_BYTES = 1 << 20  # 256 times PATH_MAX: code can create deeper trees with mkdirat than it can name
_MAX_MAP_BYTES = 4 << 20  # of a sparse map

_Final = tuple[int | None, int | None, dict[bytes, bytes]]  # mode, time in ns, attributes; None: unchanged


def unpack(root_fd: int, source: Source, *, max_files: int | None = None) -> tuple[int, int]:
    """Unpack everything up to the archive's end mark. Returns the number of files and of bytes of data.

    Raises TarballError, and OSError of the file system; what was created until then stays.
    """
    files = size = 0
    records: dict[bytes, bytes] = {}
    with _Builder(root_fd) as builder:
        while True:
            block = source.take(BLOCK)
            if not any(block):
                if any(source.take(BLOCK)):
                    raise TarballError("its end mark is damaged")
                break
            head = parse_head(block)
            if head.kind in (EXTENDED, GLOBAL):
                found = _extended(source, head.size)
                records = found if head.kind == EXTENDED else records
                continue
            # GNU tar's older way: the name is the data of a member of its own, before the file that has it.
            if head.kind in (LONG_NAME, LONG_LINK):
                text = _extended_data(source, head.size).split(b"\0", 1)[0]
                records = {**records, b"path" if head.kind == LONG_NAME else b"linkpath": text}
                continue
            member = member_of(head, records)
            records = {}
            if files == max_files:
                raise TarballError(f"it holds more than {max_files} files")
            builder.make(member, source)
            files += 1
            size += member.size
    return files, size


def _extended(source: Source, size: int) -> dict[bytes, bytes]:
    return parse_records(_extended_data(source, size))


def _extended_data(source: Source, size: int) -> bytes:
    if size > _MAX_EXTENDED_BYTES:
        raise TarballError(f"an extended header has {size} bytes, at most {_MAX_EXTENDED_BYTES} are accepted")
    data = source.take(size)
    source.take(padding(size))
    return data


def _parts(path: bytes) -> list[bytes]:
    """The parts of a member's path; none for the workspace itself. Raises TarballError."""
    if path.startswith(b"/"):
        raise _refused(path, "is absolute")
    if b"\0" in path or len(path) > _MAX_PATH_BYTES:
        raise _refused(path, "is not a name of a file")
    # Refused and not resolved: no honest archive needs `..`, and `a/../b` is not `b` where `a` is a link.
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise _refused(path, "leads out of the workspace")
    return parts


def _refused(path: bytes, why: str) -> TarballError:
    return TarballError(f"{path[:200].decode('utf-8', 'replace')!r} {why}")


class _Builder:
    """Creates one member after another. A directory gets its mode and time when the walk leaves it.

    Not before: a read-only mode would block its own contents, and each file created in it would change its time.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._walk = SafeWalk(root_fd, WRITE)
        self._here: list[bytes] = []
        self._final: list[_Final | None] = []  # for each level; None: unchanged

    def __enter__(self) -> _Builder:
        return self

    def __exit__(self, *failure: object) -> None:
        with self._walk:
            if failure[0] is None:
                self._go([])

    def make(self, member: Member, source: Source) -> None:
        """Create one member, reading its data from the source. Raises TarballError, OSError."""
        parts = _parts(member.path)
        if member.kind not in KINDS:
            raise _refused(member.path, f"is of a kind (type {member.kind!r}) that a workspace cannot hold")
        if member.kind != FILE and member.size:
            raise _refused(member.path, "has data, but is not a file")
        if member.kind == DIRECTORY:
            self._directory(parts, member)
            return
        if not parts:
            raise _refused(member.path, "is not a name of a file")
        try:
            self._go(parts[:-1])
            self._leaf(parts[-1], member, source)
        except FileExistsError:
            raise _refused(member.path, "comes twice") from None

    def _leaf(self, name: bytes, member: Member, source: Source) -> None:
        here = self._walk.fd
        if member.kind == FILE:
            _file(here, name, member, source)
            return
        if member.kind == HARD_LINK:
            self._hard_link(name, member)
            return
        if member.kind == SYMLINK:
            if not member.link or b"\0" in member.link:
                raise _refused(member.path, "is a link to nothing")
            os.symlink(member.link, name, dir_fd=here)
        else:
            os.mkfifo(name, 0o600, dir_fd=here)
            change_mode(name, here, member.mode)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=here, follow_symlinks=False)

    def _hard_link(self, name: bytes, member: Member) -> None:
        parts = _parts(member.link)
        if not parts:
            raise _refused(member.path, "is a link to nothing")
        here = self._walk.fd
        try:
            if parts[:-1] == self._here:
                os.link(parts[-1], name, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
                return
            with SafeWalk(self._root_fd, READ) as there:
                for part in parts[:-1]:
                    there.enter(part)
                os.link(parts[-1], name, src_dir_fd=there.fd, dst_dir_fd=here, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EPERM):
                raise _refused(member.path, "is a hard link to nothing that came before it") from None
            raise

    def _directory(self, parts: list[bytes], member: Member) -> None:
        self._go(parts)
        if parts and not self._walk.is_mount():  # the workspace itself, and volumes, are as the engine made them
            self._final[-1] = (member.mode, member.mtime_ns, member.xattrs)

    def _go(self, parts: list[bytes]) -> None:
        """Move to a directory: up to the common parent, then down, creating what is missing."""
        shared = 0
        while shared < min(len(parts), len(self._here)) and parts[shared] == self._here[shared]:
            shared += 1
        while len(self._here) > shared:
            self._walk.leave(self._finish)
            self._here.pop()
            self._final.pop()
        for name in parts[shared:]:
            self._enter(name)

    def _enter(self, name: bytes) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=self._walk.fd)
            final: _Final | None = (0o755, None, {})  # for a parent that the archive does not name
        except FileExistsError:
            final = None
        try:
            self._walk.enter(name)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise _refused(b"/".join([*self._here, name]), "is a directory here and something else there") from None
            raise
        if final is None and not self._walk.is_mount():
            final = (None, os.fstat(self._walk.fd).st_mtime_ns, {})
        self._here.append(name)
        self._final.append(final)

    def _finish(self, fd: int) -> None:
        final = self._final[-1]
        if final is None:
            return
        mode, mtime_ns, xattrs = final
        _set_xattrs(fd, xattrs)
        if mode is not None:
            os.fchmod(fd, mode)
        if mtime_ns is not None:
            os.utime(fd, ns=(mtime_ns, mtime_ns))


def _file(dir_fd: int, name: bytes, member: Member, source: Source) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        if member.real_size is None:
            _copy(fd, member.size, source)
        else:
            _sparse(fd, member, source)
        source.take(padding(member.size))
        # In this order: attributes need the right to write, which the mode may take away; the time comes last, as
        # writing would change it.
        _set_xattrs(fd, member.xattrs)
        os.fchmod(fd, member.mode & ~SET_ID_BITS)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
    finally:
        os.close(fd)


def _copy(fd: int, size: int, source: Source) -> None:
    while size:
        piece = source.some(size)
        size -= len(piece)
        while piece:
            piece = piece[os.write(fd, piece) :]


def _sparse(fd: int, member: Member, source: Source) -> None:
    regions, used = _sparse_map(member, source)
    assert member.real_size is not None
    # Regions must be in order and apart. Overlapping ones could write the same bytes again and again, and those beyond
    # the size would grow the file past what its header says.
    end = 0
    for offset, length in regions:
        if offset < end or offset + length > member.real_size:
            raise _refused(member.path, "has a sparse map that makes no sense")
        end = offset + length
    if used + sum(length for _, length in regions) != member.size:
        raise _refused(member.path, "has a sparse map that makes no sense")
    for offset, length in regions:
        os.lseek(fd, offset, os.SEEK_SET)
        _copy(fd, length, source)
    os.ftruncate(fd, member.real_size)


def _sparse_map(member: Member, source: Source) -> tuple[list[tuple[int, int]], int]:
    """The regions with data, and the number of bytes of the map itself."""
    used = 0
    text = b""

    def number() -> int:
        nonlocal used, text
        while b"\n" not in text:
            if len(text) > 20 or used > min(_MAX_MAP_BYTES, member.size):
                raise _refused(member.path, "has a sparse map that makes no sense")
            text += source.take(BLOCK)
            used += BLOCK
        digits, _, text = text.partition(b"\n")
        if not digits.isdigit() or len(digits) > 18:
            raise _refused(member.path, "has a sparse map that makes no sense")
        return int(digits)

    return [(number(), number()) for _ in range(number())], used


def _set_xattrs(fd: int, xattrs: dict[bytes, bytes]) -> None:
    """Set the user.* attributes. A file system without attributes is not an error: the files matter more."""
    try:
        for name, value in xattrs.items():
            if name.startswith(b"user."):
                os.setxattr(fd, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
