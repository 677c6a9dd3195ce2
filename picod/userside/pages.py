"""The warm interpreter's memory in large pages. Used by forkserver.py, in the python3 of user code.

A fork copies, and a child's end takes down, an entry for each page: with pandas 11 000, most of what either costs. Of a
page of two megabytes it is one for 512. A small page that a child writes to is copied alone, as ever.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MADV_COLLAPSE = 25  # Linux 6.1; an older one says that it does not know it
_BLOCK_BYTES = 2 << 20
_FULL_RATIO = 0.9
_UNNAMED_WORDS = 5  # words that a line of smaps has without a name


def join(advise: Callable[[int, int, int], object]) -> None:
    """Have the kernel keep full regions of this process's memory in large pages, as far as it can.

    `advise` is madvise.
    """
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        found = list(full_blocks(file))
    for start in found:
        advise(start, _BLOCK_BYTES, _MADV_COLLAPSE)


def full_blocks(smaps: Iterable[str]) -> Iterator[int]:
    """Where blocks begin that lie in private memory of no file, nearly all of which is used. Pure.

    What is not used stays as it is, for a large page is whole: numpy reserves 32 MB for matrix products, say.
    """
    start = end = 0
    for line in smaps:
        words = line.split()
        if not words[0].endswith(":"):  # FROM-TO rw-p ..., and then the size and other facts of it
            ours = words[1] == "rw-p" and (len(words) == _UNNAMED_WORDS or words[-1] == "[heap]")
            start, end = (int(word, 16) for word in words[0].split("-")) if ours else (0, 0)
        elif words[0] == "Rss:" and int(words[1]) << 10 >= (end - start) * _FULL_RATIO:
            yield from range(-(-start // _BLOCK_BYTES) * _BLOCK_BYTES, end // _BLOCK_BYTES * _BLOCK_BYTES, _BLOCK_BYTES)
