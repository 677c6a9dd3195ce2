"""Packs a directory into a tar stream: a walk that yields pieces of the archive. Blocking; api.py runs it in a thread.

It holds all kinds of files, their modes and times, hard links, holes and user.* attributes. Left out: sockets (useless
without their process), owners (there is only one), mounted volumes (they outlive the sandbox), unfinished uploads.
Memory is flat except for the names in the open directories and for files with several names.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator

from picod.archive.tar_members import (
    DIRECTORY,
    END,
    FIFO,
    FILE,
    HARD_LINK,
    SET_ID_BITS,
    SYMLINK,
    Member,
    encode,
    encode_sparse_map,
    padding,
)
from picod.filesystem.safe_walk import READ, SafeWalk, open_file

_PIECE_BYTES = 256 << 10
_MAX_XATTR_BYTES = 1 << 20  # of attributes of one file; ext4 has room for 4 KiB, XFS for 64 KiB each
_MAX_REGIONS = 100_000  # in one sparse file; after them, holes are written out as zeros
UPLOAD = re.compile(rb"\.wakegate-[0-9a-f]{16}\.part")  # names of files/staging.py and files/archive_api.py

_Identity = tuple[int, int]
_Seen = dict[_Identity, bytes] | None  # first names of files by identity; None: hard links and holes are not kept


def pack(root_fd: int, *, plain: bool = False) -> Iterator[bytearray]:
    """The archive in pieces of about 256 KiB. Raises OSError, ESTALE for a file that changed while it was read.

    A piece is valid until the next one is requested: the buffer is used again. `plain`, for formats without hard links
    and holes: every name has all of its data.
    """
    out = bytearray()
    seen: _Seen = None if plain else {}
    with SafeWalk(root_fd, READ) as walk:
        pending = [_names(walk.fd)]
        prefix: list[bytes] = [b""]
        while pending:
            if not pending[-1]:
                pending.pop()
                prefix.pop()
                if pending:
                    walk.leave()
                continue
            name = pending[-1].pop()
            try:
                status = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
                path = prefix[-1] + name
                if stat.S_ISDIR(status.st_mode):
                    walk.enter(name)
                    mounted = walk.is_mount()  # the mount point is kept as an empty directory
                    out += _directory(path, status, 0 if mounted else walk.fd)
                    pending.append([] if mounted else _names(walk.fd))
                    prefix.append(path + b"/")
                elif stat.S_ISREG(status.st_mode):
                    yield from _file(walk.fd, name, path, seen, out)
                else:
                    out += _special(walk.fd, name, path, status, seen)
            except FileNotFoundError:
                continue  # deleted since its directory was read
            if len(out) >= _PIECE_BYTES:
                yield out
                out.clear()
    yield out + END


def _names(fd: int) -> list[bytes]:
    """The names in a directory in reverse order (the walk pops them): one tree always makes the same archive."""
    return sorted(
        (os.fsencode(name) for name in os.listdir(fd) if not UPLOAD.fullmatch(os.fsencode(name))), reverse=True
    )


def _directory(path: bytes, status: os.stat_result, fd: int) -> bytes:
    xattrs = _xattrs(fd) if fd else {}
    return encode(Member(path, DIRECTORY, stat.S_IMODE(status.st_mode), status.st_mtime_ns, xattrs=xattrs))


def _special(dir_fd: int, name: bytes, path: bytes, status: os.stat_result, seen: _Seen) -> bytes:
    if stat.S_ISLNK(status.st_mode):
        kind, link = SYMLINK, os.readlink(name, dir_fd=dir_fd)
    elif stat.S_ISFIFO(status.st_mode):
        kind, link = FIFO, b""
    else:
        return b""  # a socket; device nodes cannot be made in a sandbox
    first = _first_name(status, path, seen)
    if first is not None:
        kind, link = HARD_LINK, first
    return encode(Member(path, kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, link=link))


def _first_name(status: os.stat_result, path: bytes, seen: _Seen) -> bytes | None:
    """The name under which a file with several names was packed before, if any."""
    if status.st_nlink == 1 or seen is None:
        return None
    # Only files with several names are remembered: memory grows with those, not with the workspace.
    first = seen.setdefault((status.st_dev, status.st_ino), path)
    return None if first is path else first


def _file(dir_fd: int, name: bytes, path: bytes, seen: _Seen, out: bytearray) -> Iterator[bytearray]:
    fd = open_file(name, dir_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _changed(path)
        first = _first_name(status, path, seen)
        member = Member(path, FILE, stat.S_IMODE(status.st_mode) & ~SET_ID_BITS, status.st_mtime_ns)
        if first is not None:
            member.kind, member.link = HARD_LINK, first
            out += encode(member)
            return
        member.xattrs = _xattrs(fd)
        # Fewer blocks than its size needs: it has holes (or is compressed by the file system, which costs a map only).
        if status.st_size > status.st_blocks * 512 and seen is not None:
            yield from _sparse(fd, status.st_size, member, out)
        elif status.st_size <= _PIECE_BYTES:
            # One read, then its length: size and data in the archive agree, whatever is written meanwhile. Larger files
            # have announced their size before they are read, and one that shrinks ends the archive.
            data = os.read(fd, status.st_size + 1)
            member.size = len(data)
            out += encode(member)
            out += data
            out += bytes(padding(len(data)))
        else:
            member.size = status.st_size
            out += encode(member)
            yield from _region(fd, 0, status.st_size, path, out)
            out += bytes(padding(status.st_size))
    finally:
        os.close(fd)


def _sparse(fd: int, size: int, member: Member, out: bytearray) -> Iterator[bytearray]:
    regions = list(_regions(fd, size))
    table = encode_sparse_map(regions)
    member.real_size = size
    member.size = len(table) + sum(length for _, length in regions)
    out += encode(member)
    out += table
    for offset, length in regions:
        yield from _region(fd, offset, length, member.path, out)
    out += bytes(padding(member.size))


def _regions(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each part with data. The last one, perhaps empty, ends the file, as GNU tar expects."""
    end = count = 0
    while end < size:
        count += 1
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole from here
        if start >= size:
            break
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size) if count < _MAX_REGIONS else size
        yield start, end - start
    if end < size or not size:
        yield size, 0


def _region(fd: int, offset: int, length: int, path: bytes, out: bytearray) -> Iterator[bytearray]:
    while length:
        data = os.pread(fd, min(_PIECE_BYTES, length), offset)
        if not data:
            raise _changed(path)
        out += data
        offset += len(data)
        length -= len(data)
        if len(out) >= _PIECE_BYTES:
            yield out
            out.clear()


def _xattrs(fd: int) -> dict[bytes, bytes]:
    try:
        names = [name for name in os.listxattr(fd) if name.startswith("user.")]
        found = {os.fsencode(name): os.getxattr(fd, name) for name in names}
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.EPERM):  # ENODATA: one was removed since the listing
            return {}
        raise
    if sum(map(len, found.values())) > _MAX_XATTR_BYTES:
        raise OSError(errno.E2BIG, "a file has more than 1 MiB of extended attributes")
    return found


def _changed(path: bytes) -> OSError:
    shown = path.decode("utf-8", "replace")
    return OSError(errno.ESTALE, f"{shown} changed while it was read")
