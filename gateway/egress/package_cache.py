"""Packages that sandboxes download from an index, kept for the next sandbox: read through, and written from here alone.

A file is kept under its URL and the SHA-256 of what the origin sent, which had proven who it is. What a request of a
sandbox says besides the URL does not reach the origin, so no sandbox can shape what another one gets. Content is hashed
again before each use; where PyPI's URL names the content (BLAKE2b, 256 bits), that has to agree too.

FOLDER/kept/URLHASH-SHA256    the content; used least recently goes first (the time of the file says when)
FOLDER/new/RANDOM             what is being fetched; nothing of it outlives the process
FOLDER/lock                   held by the process that uses the folder
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.egress.http_head import Head
from gateway.egress.policy import Target
from gateway.egress.presets import CACHED

logger = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 20
_PATH = re.compile(r"/packages/[!-~]{1,1000}\.(?:whl|whl\.metadata|tar\.gz|zip)")
_DIGEST = re.compile(r"/packages/([0-9a-f]{2})/([0-9a-f]{2})/([0-9a-f]{60})/[^/]+")
_CACHED_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})")
# With one of these a request is for something else than the whole file as anybody gets it.
_OWN_FIELDS = frozenset((b"range", b"authorization", b"cookie", b"if-range", b"if-match", b"if-none-match",
                         b"if-modified-since", b"if-unmodified-since", b"upgrade", b"expect"))  # fmt: skip
_OWN_ANSWERS = frozenset((b"set-cookie", b"content-encoding", b"content-range", b"transfer-encoding"))
# With 5 GiB that is 1.25 GiB; torch for CUDA has 0.9. A larger file would push out everything else for one install.
_SHARE = 4  # of the whole cache is the most that one file takes: a fourth
# Of the file system stays free: it may be the one that keys and workspaces are on, and smaller than the cache may grow.
_SPARE_SHARE, _SPARE_BYTES = 4, 1 << 30


def url_of(target: Target, head: Head) -> str:
    """The URL of a request that the cache may answer; empty: it may not."""
    path = head.target
    if head.method != "GET" or head.length != 0 or any(name in _OWN_FIELDS for name, _ in head.fields):
        return ""
    # One spelling for each file: with %2e or // a sandbox could fill the cache with copies of one that is there.
    if not _PATH.fullmatch(path) or "?" in path or "%" in path or "/." in path or "//" in path:
        return ""
    return f"https://{target}{path}"


def length_of(status: int, fields: list[tuple[bytes, bytes]]) -> int:
    """Bytes of an answer that may be kept; 0: it may not."""
    lengths = [value for name, value in fields if name == b"content-length"]
    if status != 200 or len(lengths) != 1 or not lengths[0].isdigit() or len(lengths[0]) > 15:
        return 0
    control = b",".join(value.lower() for name, value in fields if name == b"cache-control")
    if any(name in _OWN_ANSWERS for name, _ in fields) or b"no-store" in control or b"private" in control:
        return 0
    return int(lengths[0])


@dataclass(slots=True)
class _Entry:
    sha256: str
    size: int


class PackageCache:
    """Files that sandboxes have downloaded from package indexes, shared by all of them.

    `most`: bytes of files. Blocks while it is made. Raises OSError, also where another process uses the folder.
    """

    def __init__(self, folder: Path, most: int, hosts: tuple[str, ...] = CACHED) -> None:
        self.hits = self.misses = 0
        self.hit_bytes = 0
        self._most, self._hosts = most, hosts
        self._kept, self._new = folder / "kept", folder / "new"
        for each in (folder, self._kept, self._new):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Held until `close`, or the end of the process.
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise OSError(error.errno, "another process uses it", str(folder)) from None
        # Not continued: a half of a file has no digest that says what the other half should be.
        for left in self._new.iterdir():  # of a service that was killed
            left.unlink()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # by the hash of the URL, used least recently first
        self._writing: set[str] = set()
        self._load()
        self.bytes = sum(entry.size for entry in self._entries.values())  # with what is being fetched
        self._shrink(0)

    def _load(self) -> None:
        found = []
        for file in self._kept.iterdir():
            match = _CACHED_NAME.fullmatch(file.name)
            if match is None or match[1] in self._entries:
                file.unlink()
                continue
            seen = file.stat()
            found.append((seen.st_mtime, match[1], _Entry(match[2], seen.st_size)))
        for _, name, entry in sorted(found, key=lambda each: each[:2]):
            self._entries[name] = entry

    def close(self) -> None:
        """Another may use the folder."""
        os.close(self._lock)

    def serves(self, target: Target) -> bool:
        """Whether a host is one whose files are kept."""
        return target.port == 443 and target.host in self._hosts

    async def find(self, url: str) -> Kept | None:
        """A file that is kept, its content checked; None: it is not. The caller closes it."""
        name = _hash(url)
        entry = self._entries.get(name)
        if entry is None:
            self.misses += 1
            return None
        self._entries.move_to_end(name)
        # Each time: the disk is read anyway, and sandboxes install what is in these files.
        fd = await asyncio.to_thread(_verified, self._path(name, entry), entry)
        if fd is None:
            if self._entries.get(name) is entry:  # not one that another request has fetched meanwhile
                self._remove(name)
            self.misses += 1
            return None
        self.hits += 1
        self.hit_bytes += entry.size
        return Kept(fd, entry.size)

    def begin(self, url: str, length: int) -> Fetched | None:
        """A place for a file that is being fetched; None: it is too large, or another request fetches it already."""
        name = _hash(url)
        # Without a length it is not known when the file is whole; a large one would push out all others.
        if not length or length * _SHARE > self._most or name in self._writing or name in self._entries:
            return None
        # Room is taken when the fetch begins, not when it ends: 100 fetches at once would otherwise fill the disk
        # together.
        self._shrink(length)
        if self.bytes + length > self._most:
            return None  # so much is being fetched at once
        if not self._has_room(length):
            return None
        try:
            made = Fetched(self._new / secrets.token_hex(8), url, length, self._done)
        except OSError as error:
            logger.warning("package cache: %s", error.strerror)
            return None
        self.bytes += length
        self._writing.add(name)
        return made

    def _has_room(self, length: int) -> bool:
        try:
            disk = os.statvfs(self._new)
        except OSError:
            return False
        free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        return free - length >= min(size // _SPARE_SHARE, _SPARE_BYTES)

    def _done(self, fetched: Fetched, sha256: str) -> None:
        """It is complete, with this digest, or broke off, without one."""
        name = _hash(fetched.url)
        self._writing.discard(name)
        if sha256:
            entry = _Entry(sha256, fetched.length)
            try:
                os.rename(fetched.path, self._path(name, entry))
                self._entries[name] = entry
                return
            except OSError as error:
                logger.warning("package cache: %s", error.strerror)
        self.bytes -= fetched.length
        fetched.path.unlink(missing_ok=True)

    def _shrink(self, more: int) -> None:
        """Make room, by what was not used for longest."""
        while self._entries and self.bytes + more > self._most:
            self._remove(next(iter(self._entries)))

    def _remove(self, name: str) -> None:
        entry = self._entries.pop(name)
        self.bytes -= entry.size
        self._path(name, entry).unlink(missing_ok=True)

    def _path(self, name: str, entry: _Entry) -> Path:
        return self._kept / f"{name}-{entry.sha256}"


@dataclass(slots=True)
class Kept:
    """An open file whose content has been checked. Its name may be gone already."""

    _fd: int
    size: int

    async def read(self, at: int) -> bytes:
        """The piece that begins there."""
        return await asyncio.to_thread(os.pread, self._fd, min(_PIECE_BYTES, self.size - at), at)

    def close(self) -> None:
        """Give up reading; the file stays."""
        os.close(self._fd)


class Fetched:
    """A file that is being fetched. `done(self, sha256)` once: empty where it is not to be kept."""

    def __init__(self, path: Path, url: str, length: int, done: Callable[[Fetched, str], None]) -> None:
        self.path, self.url, self.length = path, url, length
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._done: Callable[[Fetched, str], None] | None = done
        self._written = 0
        self._sha256 = hashlib.sha256()
        match = _DIGEST.search(url)
        self._named = "".join(match.groups()) if match else ""
        self._blake2b = hashlib.blake2b(digest_size=32)

    async def add(self, data: bytes) -> None:
        """Write the next bytes. On a full disk the entry is given up, and the download goes on."""
        try:
            await asyncio.to_thread(self._add, data)
        except OSError as error:
            logger.warning("package cache: %s", error.strerror)
            self.end(complete=False)

    def _add(self, data: bytes) -> None:
        if self._done is None:
            return
        self._sha256.update(data)
        self._blake2b.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._written += len(data)

    def end(self, *, complete: bool) -> None:
        """No more comes. It is kept if it is whole, and what its URL says."""
        done, self._done = self._done, None
        if done is None:
            return
        os.close(self._fd)
        right = complete and self._written == self.length
        if right and self._named and self._blake2b.hexdigest() != self._named:
            logger.warning("package cache: %s is not what its URL says", self.url)
            right = False
        done(self, self._sha256.hexdigest() if right else "")


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _verified(path: Path, entry: _Entry) -> int | None:
    """The file, open, if its content is what it was. Blocks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        digest: Any = hashlib.sha256()
        with open(fd, "rb", buffering=0, closefd=False) as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
        if digest.hexdigest() == entry.sha256 and os.fstat(fd).st_size == entry.size:
            os.utime(fd)  # the order of use survives a restart in the files' times
            return fd
        logger.warning("package cache: a file has changed, and is fetched anew: %s", path.name)
    except OSError as error:
        logger.warning("package cache: %s: %s", path.name, error.strerror)
    os.close(fd)
    return None
