"""Cheaper imports of what a gateway needs: its start is mostly these."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

_ONLY_TO_DRAW = ("rich", "pygments")


@contextlib.contextmanager
def without_rich() -> Iterator[None]:
    """Import in this block as if rich and pygments were not installed.

    structlog and httpx import them wherever they find them: 60 ms of CPU of a start's 600, and 4 MB of memory. The
    gateway logs plainly (observability/logs.py); only the commands over the API draw with them.
    """
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None: as if it were not installed
    hidden = [name for name in _ONLY_TO_DRAW if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
