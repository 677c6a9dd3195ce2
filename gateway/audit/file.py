"""The trail as files: appended to, rotated by size, taken up again after a restart or a kill.

Nothing that was written is ever changed, so `chattr +a` may be set. A process has a file of its own, and a lock on it:
two that append to one file would fork the chain.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import VERSION, Position, decode, encode, line_hash, sign
from gateway.audit.disk import ends_of, full_files, sync_folder, write_all
from gateway.audit.event import timestamp
from gateway.audit.keys import public_hex
from gateway.core.clock import Clock

logger = logging.getLogger(__name__)

Entry = tuple[str, dict[str, Any]]  # type and fields of a line


class AuditFile:
    """The current file of a chain. Not thread-safe; all of it blocks. Raises OSError where it cannot write.

    State: the descriptor, None until opened and after an error; where the chain stands; what was not signed yet.
    """

    def __init__(
        self, path: Path, key: Ed25519PrivateKey, clock: Clock, head_copy: Path, *, max_bytes: int, keep: int
    ) -> None:
        """`head_copy`: where the latest signed head is kept besides. `keep`: full files that stay, 0: all."""
        self.path = path
        self.unsigned = 0  # lines since the latest head
        self._key = key
        self._clock = clock
        self._head_copy = head_copy
        self._max_bytes = self._rotates_at = max_bytes
        self._keep = keep
        self._fd: int | None = None
        self._size = 0
        self._position = Position()
        self._chain = ""
        self._first_seq = 0
        self._writing_from: int | None = None  # seq of the first line of a write that failed half-way

    def __repr__(self) -> str:
        return f"<AuditFile {self.path} seq={self._position.seq}>"

    def open(self) -> int:
        """Open the file and go on where its chain ends. Returns the seq up to which lines of before are whole."""
        self._fd = self._open_locked()
        try:
            return self._go_on()
        except OSError:
            self._close()
            raise

    def _go_on(self) -> int:
        assert self._fd is not None
        self._size = os.fstat(self._fd).st_size
        torn = None
        if self._size:
            torn = self._take_up()
        else:
            self._take_up_rotated()
        whole = self._position.seq
        cut = self._cut_head()
        if not self._size:
            self._begin_file()
        if torn is not None or cut is not None:
            block = (torn or b"").removesuffix(b"\n")
            notes: dict[str, Any] = {"torn_bytes": len(block), "torn_sha256": sha256(block).hexdigest()}
            if block:
                logger.warning("%s: its last line was torn by a kill or a full disk; it is marked as such", self.path)
            if cut is not None:
                notes["cut_after"] = cut
                logger.error("%s: lines up to %d were signed and are no longer there", self.path, cut)
            is_sealed = not torn or torn.endswith(b"\n")
            self._write([("recovered", {"time": self._now(), **notes})], first=b"" if is_sealed else b"\n")
        return whole

    def append(self, entries: Sequence[Entry]) -> None:
        """Write lines, and have them on the disk. After an OSError call it with the same: none is written twice."""
        if self._fd is None:
            chain, began = self._chain, self._writing_from
            whole = self.open()
            if began is not None and chain == self._chain:
                entries = entries[max(0, whole - began) :]
        elif self._is_gone():
            self._follow()
        self._writing_from = None
        if self._size >= self._rotates_at:
            self._rotate()
        self._writing_from = self._position.seq
        self._write(entries)
        self._writing_from = None

    def sign_head(self) -> None:
        """Vouch for all lines until now, unless nothing was written since the latest head."""
        if not self.unsigned or self._fd is None:
            return
        line = sign(self._position, {"time": self._now(), "chain": self._chain}, self._key)
        self._put([line])
        self.unsigned = 0
        # After the line is on the disk: a copy of a head that the file does not have would look like a cut trail.
        fresh = self._head_copy.with_suffix(".new")
        fresh.write_bytes(line + b"\n")
        os.replace(fresh, self._head_copy)

    def close(self) -> None:
        """Sign what is not, and close."""
        try:
            self.sign_head()
        finally:
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open_locked(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "is not a regular file", str(self.path))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(0, "another gateway writes to it", str(self.path)) from None
            os.fchmod(descriptor, 0o600)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _take_up(self) -> bytes | None:
        """Find where the chain of the file stands. Returns its torn last line, sealed now; None: it has none."""
        opening, last, torn = ends_of(self.path, self._size)
        first, fields = decode(opening), decode(last)
        if first is None and not last and b"\n" not in torn:
            # Killed with the very first line: the file says nothing.
            self._start_over(remove=True)
            return None
        if first is None or first["type"] != "open" or fields is None:
            self._start_over(remove=False)
            return None
        self._chain, self._first_seq = str(first.get("chain")), first["seq"]
        self._position = Position(fields["seq"]).after(last)
        self.unsigned = 0 if fields["type"] == "head" else 1
        if not torn:
            return None
        assert self._fd is not None
        self.unsigned = 1
        whole = decode(torn)
        if whole is not None and (whole["seq"], whole["prev"]) == (self._position.seq, self._position.prev):
            write_all(self._fd, b"\n")  # it lacks nothing else
            self._position = self._position.after(torn)
            return b""
        return torn

    def _take_up_rotated(self) -> None:
        """Go on with the chain of the newest full file, where the current one is new; else begin a chain."""
        if self._chain:
            return  # the file was moved away while we wrote to it
        for path in reversed(full_files(self.path)):
            opening, last, torn = ends_of(path, path.stat().st_size)
            first, fields = decode(opening), decode(last)
            if first is not None and fields is not None and not torn:
                self._chain = str(first.get("chain"))
                self._position = Position(fields["seq"]).after(last)
                return
            break
        self._position = Position()

    def _start_over(self, *, remove: bool) -> None:
        """Put a file that has no end to go on from out of the way."""
        if remove:
            os.unlink(self.path)
        else:
            aside = self.path.with_name(f"{self.path.name}.damaged-{int(self._clock.now())}")
            logger.error("%s: is not an audit trail, or its end was changed; it is now %s", self.path, aside)
            os.rename(self.path, aside)
        self._close()
        self._fd = self._open_locked()
        self._size = 0
        self._take_up_rotated()

    def _cut_head(self) -> int | None:
        """The seq of the latest signed head, if its line is in none of the files that could have it."""
        try:
            head = self._head_copy.read_bytes().rstrip(b"\n")
        except FileNotFoundError:
            return None
        fields = decode(head)
        if fields is None or self._position.prev == line_hash(head):
            return None
        # It is signed before a file is full, so it is in this one or the one before; that one may have been taken away.
        for path in (self.path, *full_files(self.path)[-1:]):
            with open(path, "rb") as lines:
                for number, line in enumerate(lines):
                    opening = None if number else decode(line.rstrip(b"\n"))
                    if line[:-1] == head or (opening is not None and opening["prev"] == line_hash(head)):
                        return None
        return int(fields["seq"])

    def _begin_file(self) -> None:
        if not self._chain:
            self._chain = secrets.token_hex(8)
        self._first_seq = self._position.seq
        fields = {"time": self._now(), "v": VERSION, "chain": self._chain, "key": public_hex(self._key.public_key())}
        self._write([("open", fields)])
        sync_folder(self.path.parent)

    def _is_gone(self) -> bool:
        """Whether somebody has moved or deleted the file: what is written to it would be nowhere to be found."""
        assert self._fd is not None
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return True

    def _follow(self) -> None:
        """Go on with the chain in a new file, as log rotation of the system's expects."""
        logger.warning("%s: was moved or deleted; the chain continues in a new file", self.path)
        self.sign_head()
        self._close()
        self.open()

    def _rotate(self) -> None:
        self.sign_head()  # each full file ends with a head, so it can be checked, and taken away, by itself
        full = self.path.with_name(f"{self.path.name}.{self._chain[:8]}-{self._first_seq:012d}")
        try:
            os.rename(self.path, full)
        except OSError as error:  # chattr +a, or a folder that we may not change: a larger file is better than none
            logger.warning("%s: cannot be rotated: %s", self.path, error.strerror)
            self._rotates_at = self._size + self._max_bytes
            return
        self._rotates_at = self._max_bytes
        self._close()
        self._fd = self._open_locked()
        self._size = 0
        self._begin_file()
        if self._keep:
            for path in full_files(self.path)[: -self._keep]:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    def _write(self, entries: Sequence[Entry], first: bytes = b"") -> None:
        lines = []
        position = self._position
        for kind, fields in entries:
            lines.append(encode(position, kind, fields))
            position = position.after(lines[-1])
        self._put(lines, first)
        self.unsigned += len(lines)

    def _put(self, lines: Sequence[bytes], first: bytes = b"") -> None:
        if not lines:
            return
        assert self._fd is not None
        data = first + b"".join(line + b"\n" for line in lines)
        try:
            write_all(self._fd, data)
            os.fdatasync(self._fd)  # and not fsync: the size is written too, the file's times need not be
        except OSError:
            self._close()  # what is in the file now is found out when it is opened again
            raise
        self._size += len(data)
        for line in lines:
            self._position = self._position.after(line)

    def _now(self) -> str:
        return timestamp(self._clock.now())
