"""What the interpreter had before a script came: modules and standard streams. What it has besides is the script's."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Baseline:
    """Noted by the server when its imports are done, asked by each child at the end of its script."""

    def __init__(self) -> None:
        self.streams: tuple[object, ...] = (sys.stdin, sys.stdout, sys.stderr)
        self.modules: frozenset[str] = frozenset()
        self._last_modules = ("", "")
        self._count = 0

    def remember(self) -> None:
        """The imports are done."""
        self.modules = frozenset(sys.modules)
        latest = reversed(sys.modules)
        self._last_modules, self._count = (next(latest), next(latest)), len(sys.modules)

    def new_modules(self) -> Iterable[str]:
        """Names of the modules that came with the script."""
        # They are the last. To walk through all of them would write to, and so copy, the pages of 800 names: 1.3 ms.
        names = []
        latest = reversed(sys.modules)
        for name in latest:
            if name == self._last_modules[0]:
                break
            names.append(name)
        if next(latest, "") == self._last_modules[1] and len(sys.modules) == self._count + len(names):
            return names
        return set(sys.modules) - self.modules  # some were taken out, or put back
