"""Bundles: the files of agents that were deployed from code, by the digest of what was uploaded.

An upload is hostile: it is read as a stream, and holds plain files and folders only. A link could point out of its
folder, which sandboxes would then see; a small archive could unpack to a full disk. A folder has its name only once it
is complete, so what has a name can be used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from gateway.core.errors import BadRequestError, QuotaExceededError, TooLargeError
from gateway.core.tar import read_tar

MAX_UPLOAD_BYTES = 64 << 20
MAX_BYTES = 512 << 20  # unpacked
MAX_FILES = 20_000
MAX_BUNDLES = 1000
UNUSED_S = 3600.0  # from an upload to the agent that names it
_MAX_PATH_CHARS = 512
_PIECE = 1 << 20


class BundleStore:
    """Bundles below one folder. All methods block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: str) -> Path:
        """Where the files of a digest are, or would be."""
        return self._folder.absolute() / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        """Whether the files of that digest are in this gateway's folder."""
        return self.path(digest).is_dir()

    def add(self, archive: BinaryIO) -> str:
        """Keep a tar archive, plain or gzip, under its digest; one that is here already is not unpacked again.

        Raises BadRequestError, TooLargeError, QuotaExceededError; OSError where the disk is full.
        """
        archive.seek(0)
        hashed = hashlib.sha256()
        for piece in iter(partial(archive.read, _PIECE), b""):
            hashed.update(piece)
        digest = "sha256:" + hashed.hexdigest()
        if not self.touch(digest):
            archive.seek(0)
            self.keep(digest, archive)
        return digest

    def touch(self, digest: str) -> bool:
        """Whether it is here; it is then about to be named, so `sweep` must not take it for an old one."""
        if not self.has(digest):
            return False
        os.utime(self.path(digest))
        return True

    def scratch(self) -> Path:
        """The folder for files on their way in."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        return self._folder

    def scratch_file(self) -> BinaryIO:
        """A file without a name, for what comes in."""
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self.scratch()))

    def secret(self) -> bytes:
        """The key for names that nobody outside can work out, made on first use."""
        path = self.scratch() / ".key"
        if not path.exists():
            # Whole under its name, or not at all: of two that make one, the first one's is used by both.
            descriptor, half = tempfile.mkstemp(dir=self._folder)  # readable by its owner only
            with open(descriptor, "wb") as file:
                file.write(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):
                os.link(half, path)
            os.unlink(half)
        return path.read_bytes()

    def keep(self, digest: str, file: IO[bytes], *, max_bytes: int = 0, max_files: int = 0) -> None:
        """Unpack a tar archive as the files of `digest`; 0: the limits of bundles. Raises as `add`."""
        kept = sum(each.is_dir() for each in self.scratch().iterdir())
        if kept >= MAX_BUNDLES:
            raise QuotaExceededError(
                f"bundles: this gateway keeps {kept}, the most that it does; those without an agent go after an hour",
                limit="bundles", value=MAX_BUNDLES, used=kept, retry_after=60.0,
            )  # fmt: skip
        half = Path(tempfile.mkdtemp(prefix=".half-", dir=self._folder))
        try:
            half.chmod(0o755)  # sandboxes have users of their own, who read it
            unpack(file, half, max_bytes=max_bytes or MAX_BYTES, max_files=max_files or MAX_FILES)
            # Lost a race with another upload of the same: its folder is as good.
            with contextlib.suppress(FileExistsError, OSError) if self.has(digest) else contextlib.nullcontext():
                half.rename(self.path(digest))
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def sweep(self, used: Collection[str], before: float) -> int:
        """Delete those that are not `used` and were last sent before a time, and what uploads left half. Blocks."""
        # Half-written folders begin with a dot, so they are in nobody's `used` and go the same way once they are old.
        names = {digest.removeprefix("sha256:") for digest in used}
        gone = 0
        for each in list(self._folder.iterdir()) if self._folder.is_dir() else ():
            if each.name not in names and each.is_dir() and each.stat().st_mtime < before:
                shutil.rmtree(each, ignore_errors=True)
                gone += 1
        return gone


def unpack(file: IO[bytes], folder: Path, *, max_bytes: int, max_files: int) -> None:
    """Unpack a tar archive into an empty folder. Raises BadRequestError, TooLargeError."""
    try:
        for path, member, content in _members(file, max_bytes=max_bytes, max_files=max_files):
            target = folder / path
            if content is None:
                target.mkdir(parents=True, exist_ok=True, mode=0o755)
                continue
            # An archive need not list the folders of its files, and many tools leave them out.
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            # Of the mode only the owner's x counts: setuid, and what others may write, would be taken over from a
            # stranger.
            mode = 0o755 if member.mode & 0o100 else 0o644
            # O_EXCL: a second entry of one name is refused, as which of the two a reader sees would depend on the
            # order.
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            with open(descriptor, "wb") as written:
                shutil.copyfileobj(content, written, _PIECE)
                os.fchmod(written.fileno(), mode)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _twice() from error


def check_archive(file: IO[bytes], *, max_bytes: int, max_files: int) -> None:
    """Raise as `unpack` does, and write nothing: for an archive that is unpacked elsewhere. Blocks."""
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for path, _, content in _members(file, max_bytes=max_bytes, max_files=max_files):
        folders.update(path.parents)
        if content is None:
            folders.add(path)
        elif path in files:
            raise _twice()
        else:
            files.add(path)
    if files & folders:
        raise _twice()


def _twice() -> BadRequestError:
    return BadRequestError("the bundle has two entries of one name")


def _members(
    file: IO[bytes], *, max_bytes: int, max_files: int
) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo, IO[bytes] | None]]:
    """Path, head and content of each file and, without content, of each folder.

    Raises BadRequestError, TooLargeError.
    """
    left, seen = max_bytes, set[PurePosixPath]()
    try:
        for member, content in read_tar(file):
            path = _inside(member.name)
            # With the folders that its path implies: one file may be in 250 of them, and each takes an inode.
            seen.update((path, *path.parents[:-1]))
            if len(seen) > max_files:
                raise TooLargeError(f"the bundle has more than {max_files} files and folders")
            if content is None and not member.isdir():
                raise BadRequestError(f"{member.name[:200]!r}: a bundle has plain files only, no links or devices")
            left -= member.size if content is not None else 0
            if left < 0:
                raise TooLargeError(f"the bundle is larger than {max_bytes} bytes once unpacked")
            yield path, member, content
        if not seen:  # also of a disk's worth of zeros, which is an archive that ends at once
            raise BadRequestError("the bundle has no files")
    except tarfile.TarError as error:
        raise BadRequestError(f"the bundle is no tar archive: {error}") from None


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or len(name) > _MAX_PATH_CHARS:
        raise BadRequestError(
            f"{name[:200]!r}: expected a path below the bundle, of at most {_MAX_PATH_CHARS} characters"
        )
    return path
