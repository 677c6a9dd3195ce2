"""How much of its machine a sandbox may use, and how much is kept free for it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one sandbox, with a runtime's defaults. None: no limit beyond the machine's."""

    memory: int | None = 1 << 30  # bytes
    cpus: float | None = 1.0  # cores
    processes: int = 256  # tasks (threads count)
    file_size: int = 4 << 30  # bytes, the largest single file
    tmp_size: int = 256 << 20  # bytes of /tmp
    workspace_size: int | None = 5 << 30  # bytes of the workspace
    workspace_files: int | None = 500_000  # inodes of the workspace: a large JavaScript monorepo has 300,000

    def resized(self, resources: Resources | None) -> Limits:
        """The same with what a session has in place of its runtime's."""
        if resources is None:
            return self
        changed = {name: value for name in SIZES if (value := getattr(resources, name)) is not None}
        return replace(self, **changed)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one session has in place of its runtime's limits of the same names; None: what its runtime has.

    Of a runtime (spec.wakegate.maxResources): the most that a session may have; None: no more than the limit itself.
    """

    cpus: float | None = None  # cores
    memory: int | None = None  # bytes
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Requests:
    """What of its machine is kept free for one sandbox, as `resources.requests` has it; limits say what it may use."""

    millicores: int = 0  # thousandths of a core, so that sums are exact
    memory: int = 0  # bytes
    gpus: int = 0

    def __bool__(self) -> bool:
        """Whether it requests anything."""
        return bool(self.millicores or self.memory or self.gpus)


SIZES = ("cpus", "memory", "processes")  # the fields of Resources
