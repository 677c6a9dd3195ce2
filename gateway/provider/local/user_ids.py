"""User ids of this machine for sandboxes: which a gateway may take, and that no two sandboxes have the same one.

A range is cut into blocks. A gateway holds a block by a lock on a file, which the kernel releases when it ends, however
it ends. So gateways on one machine share a range without knowing each other. In a block, an id is free when no sandbox
of this gateway has it; and a process that an earlier gateway left may still have one, so a block's processes are looked
for when it is taken. Files are no concern: on the disk they belong to the gateway's user (mount_stage.py).

Source of the automatic range: systemd's UIDS-GIDS.md, in which 1879048192 to 2147352575 are unused; containers that
have 65536 ids get a range that neither people (from 1000) nor dynamic services (from 61184) have.
"""

from __future__ import annotations

import fcntl
import os
import pwd
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = 256
AUTOMATIC = ((1_900_000_000, 1_900_065_535), (40_000, 59_999))
_LAST = (1 << 31) - 1  # programs that take ids for signed numbers are many


@dataclass(frozen=True, slots=True)
class IdRange:
    """User ids, which are used as group ids too; both ends belong to it."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, uid: int) -> bool:
        return self.first <= uid <= self.last

    def overlaps(self, other: IdRange) -> bool:
        """Whether some id is in both ranges."""
        return self.first <= other.last and other.first <= self.last


def parse_range(text: str) -> IdRange:
    """`FIRST-LAST` as a range. Raises ValueError with what is wrong."""
    first, dash, last = text.strip().partition("-")
    if not (dash and first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise ValueError(f"{text!r} is not a range of user ids, e.g. 200000-265535")
    if max(len(first), len(last)) > 10 or not 1000 <= int(first) <= int(last) <= _LAST:
        raise ValueError(f"{text!r}: the first id is at least 1000, the last at most {_LAST} and not below the first")
    return IdRange(int(first), int(last))


def automatic_range(ours: Sequence[IdRange], taken: Sequence[IdRange]) -> IdRange | None:
    """The first of AUTOMATIC that this machine has (`ours`) and of which nothing is `taken` (pure)."""
    for first, last in AUTOMATIC:
        wanted = IdRange(first, last)
        has = any(each.first <= first and last <= each.last for each in ours)
        if has and not any(wanted.overlaps(each) for each in taken):
            return wanted
    return None


def ids_of_namespace(path: str = "/proc/self/uid_map") -> list[IdRange]:
    """The ids that exist in this process's user namespace. Raises OSError."""
    rows = [list(map(int, line.split())) for line in Path(path).read_text().splitlines()]
    return [IdRange(first, first + count - 1) for first, _, count in rows]


def ids_taken() -> list[IdRange]:
    """Ids of this machine's users, and those that are set aside for their containers."""
    found = [IdRange(user.pw_uid, user.pw_uid) for user in pwd.getpwall()]
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            fields = line.split(":")
            if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
                found.append(IdRange(int(fields[1]), int(fields[1]) + int(fields[2]) - 1))
    return found


def running_users() -> Iterator[int]:
    """The user ids of all processes that can be seen, real, effective, saved and of the file system; not of dead ones
    that nobody has reaped yet."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "status").read_text(errors="replace")
            except OSError:
                continue  # it ended meanwhile
            for line in text.splitlines():
                if line.startswith(("State:\tZ", "State:\tX")):
                    break
                if line.startswith("Uid:"):
                    yield from map(int, line.split()[1:])


class UserIds:
    """The ids of one gateway. Not thread-safe. `close` gives its blocks to others."""

    def __init__(self, ids: IdRange, locks: Path, owner: str) -> None:
        """`locks`: a folder that all gateways of the machine share; `owner`: the state directory's name.

        Gateways begin at different blocks, so that those in containers, who do not see each other's locks, rarely meet.
        """
        self.range, self._locks = ids, locks
        count = -(-(ids.last - ids.first + 1) // BLOCK)
        begin = int.from_bytes(owner.encode()[-8:], "big") % count
        self._untried = iter([*range(begin, count), *range(begin)])
        self._held: list[int] = []
        self._free: list[int] = []

    def take(self) -> int:
        """An id that nothing of this machine's sandboxes has. Blocks for a moment. Raises OSError when none is left."""
        while not self._free:
            self._take_block(next(self._untried, None))
        return self._free.pop()

    def give_back(self, uid: int) -> None:
        """No process has this id any more."""
        self._free.append(uid)

    def close(self) -> None:
        """Release all blocks for other gateways of this machine."""
        for lock in self._held:
            os.close(lock)
        self._held, self._free = [], []

    def _take_block(self, number: int | None) -> None:
        if number is None:
            raise OSError(f"every user id of {self.range} is in use; name a larger range with --sandbox-uids")
        first = self.range.first + number * BLOCK
        lock = os.open(self._locks / f"{first}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)  # another gateway's
            return
        self._held.append(lock)
        self._free = free_ids(IdRange(first, min(first + BLOCK - 1, self.range.last)), running_users())


def free_ids(block: IdRange, running: Iterable[int]) -> list[int]:
    """The ids of a block that no process has; the last is to be taken first (pure)."""
    busy = set(running)
    return [uid for uid in range(block.last, block.first - 1, -1) if uid not in busy]
