"""Says how far a long action is: a bar or a clock on a terminal, a line now and then elsewhere; on standard error.

Standard output is the answer, which a program may read (`-o json`, `cp ID:f -`): nothing here writes to it, and rich is
told not to catch what others print there while it draws.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from gateway.cli.remote.screen import note, plain

# A wake takes 0.3 s: a clock that is drawn and wiped for it would only flicker, and importing rich takes 0.1 s.
_PATIENCE_S = 0.5
# Where no terminal is, the log of a build server: lines after 10, 20, 40, ... seconds, so that an installation of ten
# minutes is six lines and not six hundred.
_FIRST_LINE_S = 10.0


class Advance(Protocol):
    """Told of bytes that were moved, or of things that were done."""

    def __call__(self, moved: int, /) -> None:
        """`moved` more of them."""


@contextmanager
def transfer(what: str, size: int | None) -> Iterator[Advance]:
    """A bar for bytes that are moved; `size` None: it is not known how many there will be."""
    if not sys.stderr.isatty():
        yield lambda moved: None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _bar(*columns, TimeRemainingColumn(compact=True)) as bar:
        task = bar.add_task(plain(what), total=size)
        yield lambda moved: bar.advance(task, moved)


@contextmanager
def counting(what: str, count: int) -> Iterator[Advance]:
    """A bar for so many things that are done one after the other."""
    if not sys.stderr.isatty():
        yield lambda moved: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    with _bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(what, total=count)
        yield lambda moved: bar.advance(task, moved)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A clock beside what is waited for, once that has taken half a second."""
    done = threading.Event()
    # A thread of its own, as what is waited for blocks: one answer of the gateway, which says nothing before its end.
    teller = threading.Thread(target=_tell, args=(plain(what), done), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


class Counted(io.BytesIO):
    """Bytes to be sent, which tell how many were read. httpx reads 64 KiB at a time and knows the length beforehand, so
    the request has a Content-Length; a generator would be sent in chunks, of which the gateway cannot say at once that
    they are too many.
    """

    def __init__(self, data: bytes, advance: Advance) -> None:
        super().__init__(data)
        self._advance = advance

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, which count as moved."""
        data = super().read(size)
        self._advance(len(data))
        return data


def _tell(what: str, done: threading.Event) -> None:
    if sys.stderr.isatty():
        if done.wait(_PATIENCE_S):
            return
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        with _bar(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()) as bar:
            bar.add_task(what, total=None)
            done.wait()
        return
    passed, step = 0.0, _FIRST_LINE_S
    while not done.wait(step):
        passed += step
        note(f"{what}: {passed:.0f} s")
        step = passed


def _bar(*columns: Any) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )
