"""Modules and standard streams of the warm interpreter before a script runs; what is there besides is the script's."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Baseline:
    """Recorded by the server after its imports, compared by each child at the end of its script."""

    def __init__(self) -> None:
        self.streams: tuple[object, ...] = (sys.stdin, sys.stdout, sys.stderr)
        self.modules: frozenset[str] = frozenset()
        self._last_modules = ("", "")
        self._count = 0

    def remember(self) -> None:
        """Record the modules that are loaded now, after the imports."""
        self.modules = frozenset(sys.modules)
        latest = reversed(sys.modules)
        self._last_modules, self._count = (next(latest), next(latest)), len(sys.modules)

    def new_modules(self) -> Iterable[str]:
        """Names of modules loaded since `remember`."""
        # sys.modules keeps the order of insertion, so new names are its last. Comparing all 800 would change their
        # reference counts and so copy the pages that hold them: 1.3 ms, where the script itself may take 5.
        names = []
        latest = reversed(sys.modules)
        for name in latest:
            if name == self._last_modules[0]:
                break
            names.append(name)
        if next(latest, "") == self._last_modules[1] and len(sys.modules) == self._count + len(names):
            return names
        return (
            set(sys.modules) - self.modules
        )  # some were removed, or removed and added again: the order proves nothing
