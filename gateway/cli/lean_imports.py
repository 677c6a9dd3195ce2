"""Cheaper imports of what a gateway needs: its start is mostly these."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def without_rich() -> Iterator[None]:
    """Import in this block as if rich were not installed.

    structlog and httpx import it, and pygments with it, wherever they find it: 55 ms of CPU of a start's 600, and 4 MB
    of memory. The gateway logs plainly (observability/logs.py); only the commands over the API draw with it.
    """
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None: as if it were not installed
    hides = "rich" not in modules
    if hides:
        modules["rich"] = None
    try:
        yield
    finally:
        if hides:
            del modules["rich"]
