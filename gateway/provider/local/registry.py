"""The registry of running sandboxes: each is started, listed while it runs, and ended exactly once.

sandbox_factory.py does the work on one of them; pools.py decides which are warm, workspaces.py keeps the workspace of
one that ended. Both register callbacks here, which run in the same event-loop step as the event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from gateway.core.model import Runtime, RuntimeKey, SandboxEvent, SandboxId
from gateway.provider.local.booking import Booking
from gateway.provider.local.safe_delete import TrashCollector
from gateway.provider.local.sandbox import LocalSandbox, SandboxState
from gateway.provider.local.sandbox_factory import SandboxFactory
from gateway.provider.watches import Watches

logger = logging.getLogger(__name__)


class SandboxRegistry:
    """All sandboxes of one provider, warm and claimed. Call `open` before the first `start`."""

    def __init__(self, trash: TrashCollector) -> None:
        self._trash = trash
        self._factory: SandboxFactory | None = None
        self._all: dict[SandboxId, LocalSandbox] = {}
        self._endings: dict[SandboxId, asyncio.Task[None]] = {}
        self._watches = Watches()
        self._on_death: list[Callable[[LocalSandbox, str], None]] = []
        self._on_ending: list[Callable[[LocalSandbox], None]] = []
        self._on_gone: list[Callable[[LocalSandbox], None]] = []

    def on_death(self, callback: Callable[[LocalSandbox, str], None]) -> None:
        """Call this with each warm sandbox that exited unasked, and the reason. `on_ending` follows."""
        self._on_death.append(callback)

    def on_ending(self, callback: Callable[[LocalSandbox], None]) -> None:
        """Call this when the end of a sandbox begins: from then on it cannot be claimed."""
        self._on_ending.append(callback)

    def on_gone(self, callback: Callable[[LocalSandbox], None]) -> None:
        """Call this when a sandbox is gone, all but a workspace that it keeps."""
        self._on_gone.append(callback)

    def open(self, sandboxes: SandboxFactory) -> None:
        """Start and remove sandboxes with this factory."""
        self._factory = sandboxes

    async def aclose(self) -> None:
        """End every sandbox. Workspaces of claimed ones stay, for the next run to decide over."""
        for sandbox in self._all.values():
            sandbox.keeps_workspace = sandbox.state is SandboxState.CLAIMED
        await asyncio.gather(*(self.end(sandbox) for sandbox in list(self._all.values())), return_exceptions=True)
        self._watches.end()

    def get(self, sandbox_id: SandboxId) -> LocalSandbox | None:
        """A sandbox from its start until it is gone."""
        return self._all.get(sandbox_id)

    def alive(self) -> Sequence[LocalSandbox]:
        """All that run, warm ones included."""
        return [sandbox for sandbox in self._all.values() if sandbox.is_alive]

    def bound(self) -> Sequence[LocalSandbox]:
        """Those that run for a session."""
        return [sandbox for sandbox in self.alive() if sandbox.state is SandboxState.CLAIMED]

    def claimed(self, runtime: RuntimeKey) -> int:
        """How many of that runtime are bound to sessions."""
        return sum(
            sandbox.runtime.key == runtime and sandbox.state is SandboxState.CLAIMED for sandbox in self._all.values()
        )

    def hint(self, runtime: RuntimeKey) -> str:
        """What those that are being started wait for, as far as they say; empty: nothing."""
        return "" if self._factory is None else self._factory.hint(runtime)

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Events of claimed sandboxes that exit unasked, from this call on. Ends with aclose()."""
        return self._watches.begin()

    async def start(self, runtime: Runtime, booking: Booking | None = None) -> LocalSandbox:
        """Start a sandbox and wait until it is healthy. Raises StartFailedError.

        The booking is its own from the moment that this returns, until `on_gone`.
        """
        assert self._factory is not None
        try:
            sandbox = await self._factory.start(runtime, () if booking is None else booking.gpus)
        finally:
            self._trash.request()
        sandbox.booking = booking
        self._all[sandbox.id] = sandbox
        sandbox.process.exited.add_done_callback(lambda _: self._on_exit(sandbox))
        return sandbox

    async def end(self, sandbox: LocalSandbox) -> None:
        """End it and wait until it is gone. Cancelling the caller does not stop the end."""
        await asyncio.shield(self._ending(sandbox))

    def end_soon(self, sandboxes: Iterable[LocalSandbox]) -> None:
        """Begin to end these, without waiting."""
        for sandbox in sandboxes:
            self._ending(sandbox)

    async def end_for(self, sandbox_id: SandboxId, reason: str) -> None:
        """End a claimed sandbox's processes for what it did; watchers get the reason, and its workspace is kept."""
        sandbox = self._all.get(sandbox_id)
        if sandbox is not None and sandbox.state is SandboxState.CLAIMED:
            sandbox.end_cause = reason
            await sandbox.process.end()

    def _on_exit(self, sandbox: LocalSandbox) -> None:
        """Its processes ended, either after `end` (state ENDED: nothing to do) or unasked."""
        if sandbox.state is SandboxState.ENDED:
            return
        reason = sandbox.end_reason()
        if sandbox.state is SandboxState.CLAIMED:
            sandbox.keeps_workspace = True  # until it is kept or released
            logger.info("sandbox %s of session %s %s", sandbox.id, sandbox.session_id, reason)
            self._watches.publish(SandboxEvent(sandbox.id, sandbox.session_id, reason))
        else:
            for callback in self._on_death:
                callback(sandbox, reason)
        self.end_soon([sandbox])

    def _ending(self, sandbox: LocalSandbox) -> asyncio.Task[None]:
        """The one task that ends this sandbox; from here on it cannot be claimed."""
        # Before anything is awaited: a claim in the next step of the event loop must not find it warm.
        sandbox.state = SandboxState.ENDED
        task = self._endings.get(sandbox.id)
        if task is None:
            sandbox.read_cpu()  # while its processes are there
            for callback in self._on_ending:
                callback(sandbox)
            task = self._endings[sandbox.id] = asyncio.get_running_loop().create_task(self._remove(sandbox))
        return task

    async def _remove(self, sandbox: LocalSandbox) -> None:
        assert self._factory is not None
        try:
            await self._factory.remove(sandbox)
        except (OSError, TimeoutError) as error:
            logger.error(
                "sandbox %s could not be removed: %s; the next start of the gateway removes it", sandbox.id, error
            )
        finally:
            # Although it may not be gone: who waits for its end, a parking session say, must not wait for ever.
            self._all.pop(sandbox.id, None)
            self._endings.pop(sandbox.id, None)
            self._trash.request()
            for callback in self._on_gone:
                callback(sandbox)
