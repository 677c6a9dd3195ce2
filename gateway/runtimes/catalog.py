"""A catalog of runtimes that does not change while the gateway runs: from files, or the built-in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.core.model import PoolSpec, Resources, Runtime, RuntimeKey


class StaticCatalog:
    """A RuntimeCatalog of the runtimes that were read at the start."""

    def __init__(self, runtimes: Iterable[Runtime]) -> None:
        self._runtimes = {runtime.key: runtime for runtime in runtimes}

    def choose(self, key: RuntimeKey) -> Runtime | None:
        """What `get` finds: these runtimes have no revisions."""
        return self.get(key)

    def get(self, key: RuntimeKey) -> Runtime | None:
        """The runtime with that key; None if no file defines it."""
        return self._runtimes.get(key)

    def all(self) -> Sequence[Runtime]:
        """All runtimes, sorted by key."""
        return [self._runtimes[key] for key in sorted(self._runtimes)]


def default_runtime(warm: int, preload: Sequence[str] = ()) -> Runtime:
    """The built-in code interpreter, `default/my-interpreter`."""
    return Runtime(
        key=RuntimeKey("default", "my-interpreter"),
        max_resources=Resources(cpus=4.0, memory=4 << 30, processes=1024),
        pool=PoolSpec(size=warm, max=warm),
        preload=tuple(preload),
    )
