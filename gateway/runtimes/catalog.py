"""Runtimes that are known before the gateway starts: those of its files, and the built-in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.core.model import PoolSpec, Runtime, RuntimeKey


class StaticCatalog:
    """The runtimes read at start. A RuntimeCatalog."""

    def __init__(self, runtimes: Iterable[Runtime]) -> None:
        self._runtimes = {runtime.key: runtime for runtime in runtimes}

    def get(self, key: RuntimeKey) -> Runtime | None:
        """The runtime of that key; None: no file has it."""
        return self._runtimes.get(key)

    def all(self) -> Sequence[Runtime]:
        """All runtimes, sorted by key."""
        return [self._runtimes[key] for key in sorted(self._runtimes)]


def default_runtime(warm: int, preload: Sequence[str] = ()) -> Runtime:
    """The built-in code interpreter, `default/my-interpreter`."""
    return Runtime(
        key=RuntimeKey("default", "my-interpreter"), pool=PoolSpec(size=warm, max=warm), preload=tuple(preload)
    )
