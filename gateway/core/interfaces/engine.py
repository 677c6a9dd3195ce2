"""What an engine does: its sandboxes and runtimes, and what some engines can do besides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from gateway.core.model import Limits, PoolStatus, Runtime, RuntimeKey, Sandbox, SandboxEvent, SandboxId, SessionId
from gateway.core.usage import SandboxLoad, SandboxUsage


class SandboxProvider(Protocol):
    """Starts sandboxes, binds them to sessions and keeps warm pools filled."""

    async def start(self) -> None:
        """Clean up what an earlier process left behind, and start filling the pools."""
        ...

    async def aclose(self) -> None:
        """End the sandboxes that this gateway owns."""
        ...

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Replace the set of runtimes that are served; each warm pool starts at its spec's size."""
        ...

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """Bind a sandbox to the session: a warm one if there is one, else a cold one; `Sandbox.start` says which.

        A sandbox is bound at most once, so that no session sees what another left. Raises SandboxStartError,
        RuntimeNotFoundError.
        """
        ...

    async def release(self, sandbox_id: SandboxId) -> None:
        """Delete the sandbox and its files; it is never reused. An absent one is not an error."""
        ...

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the wanted number of warm sandboxes. Raises RuntimeNotFoundError."""
        ...

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool's current state. Raises RuntimeNotFoundError."""
        ...

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox, or None if it does not exist or has ended. Answered from memory, without I/O."""
        ...

    async def list(self) -> Sequence[Sandbox]:
        """All sandboxes that exist, including warm ones (their session_id is None)."""
        ...

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Yield an event for each sandbox that ends without being released, as it happens."""
        ...


@runtime_checkable
class EngineMeter(Protocol):
    """What an engine can measure of its sandboxes, for usage metering. Not every engine can."""

    async def usage(self, sandboxes: Sequence[SandboxId]) -> Mapping[SandboxId, SandboxUsage]:
        """What each uses, or used before it ended a moment ago. Unknown ones are left out."""
        ...

    async def parked_bytes(self, reference: str) -> int:
        """The size of a parked workspace; 0 if it is not here, or not measured yet."""
        ...


@runtime_checkable
class SandboxResizer(Protocol):
    """An engine that can change how much of the machine a running sandbox may use."""

    async def resize_sandbox(self, sandbox_id: SandboxId, limits: Limits) -> None:
        """Give a sandbox the CPUs, memory and processes of `limits`: all of them, or nothing changes.

        Raises ResizeError with what stands against it, SandboxGoneError.
        """
        ...


@runtime_checkable
class MachineBookings(Protocol):
    """An engine that books what sandboxes request of its machine."""

    def booked(self) -> Mapping[str, float]:
        """What is booked now, by resource: cpu in cores, memory in bytes, gpu."""
        ...

    def bookable(self) -> Mapping[str, float]:
        """All that may be booked, by resource as in `booked`."""
        ...


@runtime_checkable
class LoadReader(Protocol):
    """An engine that can tell what one sandbox uses at the moment, without counting it as read by the meter."""

    async def load(self, sandbox_id: SandboxId) -> SandboxLoad | None:
        """What it uses; None: there is no such sandbox."""
        ...


@runtime_checkable
class LossCounter(Protocol):
    """An engine that shows in a pool's status which sandboxes were lost.

    It cannot know by itself: where several gateways share an engine, each is notified of every end, and only the
    session's record says whether another gateway has ended the sandbox on purpose.
    """

    def count_loss(self, event: SandboxEvent) -> None:
        """The sandbox of this event ended while a session needed it."""
        ...


@runtime_checkable
class UnreachableWatcher(Protocol):
    """An engine whose sandboxes may be lost with their machine, which a request may notice first."""

    def suspect(self, sandbox_id: SandboxId) -> None:
        """No connection to it could be made, and none was refused. Returns at once."""
        ...


class RuntimeCatalog(Protocol):
    """The runtimes that are served: fixed from files, or watched in a cluster."""

    def get(self, key: RuntimeKey) -> Runtime | None:
        """The runtime with that key, or None if it is not served."""
        ...

    def all(self) -> Sequence[Runtime]:
        """All served runtimes, sorted by key. An agent with revisions has an entry for each that is served."""
        ...

    def choose(self, key: RuntimeKey) -> Runtime | None:
        """The runtime for a new session that asks for `key`: of an agent with revisions, one of them.

        Raises ConflictError for an agent that is stopped.
        """
        ...
