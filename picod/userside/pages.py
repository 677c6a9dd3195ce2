"""The warm interpreter's memory in large pages. Used by forkserver.py, in the python3 of user code.

A fork copies a page table entry for each page, and a child's exit removes it: with pandas 11,000 entries, most of what
either costs. A page of 2 MiB is one entry in place of 512. A write by a child still copies 4 KiB only, because the
kernel splits the large page first.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MADV_COLLAPSE = 25  # Linux 6.1; older ones return EINVAL, and the pages stay small
_BLOCK_BYTES = 2 << 20
_FULL_RATIO = 0.9
_UNNAMED_WORDS = 5  # of a line of smaps without a file name: range, permissions, offset, device, inode


def join(advise: Callable[[int, int, int], object]) -> None:
    """Ask the kernel to move nearly full regions of this process's memory into large pages.

    `advise` is madvise(2): address, length, advice. Its failures are ignored: the memory then stays as it is.
    """
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        found = list(full_blocks(file))
    for start in found:
        advise(start, _BLOCK_BYTES, _MADV_COLLAPSE)


def full_blocks(smaps: Iterable[str]) -> Iterator[int]:
    """Addresses of 2 MiB blocks in anonymous regions at least 90 % of which is resident, from the lines of smaps. Pure.

    Regions that are mostly unused are left out, as a large page is allocated as a whole: numpy, say,
    reserves 32 MB for matrix products.
    """
    start = end = 0
    for line in smaps:
        words = line.split()
        if not words[0].endswith(":"):  # FROM-TO rw-p ..., and then the size and other facts of it
            ours = words[1] == "rw-p" and (len(words) == _UNNAMED_WORDS or words[-1] == "[heap]")
            start, end = (int(word, 16) for word in words[0].split("-")) if ours else (0, 0)
        elif words[0] == "Rss:" and int(words[1]) << 10 >= (end - start) * _FULL_RATIO:
            yield from range(-(-start // _BLOCK_BYTES) * _BLOCK_BYTES, end // _BLOCK_BYTES * _BLOCK_BYTES, _BLOCK_BYTES)
