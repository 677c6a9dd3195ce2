"""The sandboxes that are there: each is started, known while it lasts, and ended once, by our hand or by itself.

The work on one of them is sandbox.py's. Which are warm and for whom is the pools' business (pools.py), what becomes of
a workspace that one leaves workspaces.py's: both are told of what happens here in the step in which it happens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from gateway.core.model import Runtime, RuntimeKey, SandboxEvent, SandboxId
from gateway.provider.local.sandbox import Box, Boxes, BoxState
from gateway.provider.local.trash import Trash
from gateway.provider.watches import Watches

log = logging.getLogger(__name__)


class Fleet:
    """All boxes of one provider, warm and claimed. `open` comes before the first start."""

    def __init__(self, trash: Trash) -> None:
        self._trash = trash
        self._boxes: Boxes | None = None
        self._all: dict[SandboxId, Box] = {}
        self._endings: dict[SandboxId, asyncio.Task[None]] = {}
        self._watches = Watches()
        self._on_death: list[Callable[[Box, str], None]] = []
        self._on_ending: list[Callable[[Box], None]] = []
        self._on_gone: list[Callable[[Box], None]] = []

    def on_death(self, verb: Callable[[Box, str], None]) -> None:
        """Call this for each warm box that ended by itself, with the reason. `on_ending` follows."""
        self._on_death.append(verb)

    def on_ending(self, verb: Callable[[Box], None]) -> None:
        """Call this when a box begins to be ended: nobody can claim it any more."""
        self._on_ending.append(verb)

    def on_gone(self, verb: Callable[[Box], None]) -> None:
        """Call this when all of a box is gone, but for a workspace that it keeps."""
        self._on_gone.append(verb)

    def open(self, boxes: Boxes) -> None:
        """Boxes are made and cleared away by this from now on."""
        self._boxes = boxes

    async def aclose(self) -> None:
        """End every box. Workspaces of claimed ones stay."""
        for box in self._all.values():
            box.keeps_workspace = box.state is BoxState.CLAIMED  # for the next life to decide over
        await asyncio.gather(*(self.end(box) for box in list(self._all.values())), return_exceptions=True)
        self._watches.end()

    def get(self, sandbox_id: SandboxId) -> Box | None:
        """A box from its start until it is gone."""
        return self._all.get(sandbox_id)

    def alive(self) -> Sequence[Box]:
        """All that run, warm ones included."""
        return [box for box in self._all.values() if box.is_alive]

    def bound(self) -> Sequence[Box]:
        """Those that run for a session."""
        return [box for box in self.alive() if box.state is BoxState.CLAIMED]

    def claimed(self, runtime: RuntimeKey) -> int:
        """How many of that runtime are bound to sessions."""
        return sum(box.runtime.key == runtime and box.state is BoxState.CLAIMED for box in self._all.values())

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Claimed boxes that end by themselves, from this call on. Ends with aclose()."""
        return self._watches.begin()

    async def start(self, runtime: Runtime) -> Box:
        """One more, healthy and warm. Raises StartFailedError."""
        assert self._boxes is not None
        try:
            box = await self._boxes.start(runtime)
        finally:
            self._trash.want_emptied()
        self._all[box.id] = box
        box.process.exited.add_done_callback(lambda _: self._on_exit(box))
        return box

    async def end(self, box: Box) -> None:
        """End it and wait until it is gone. A caller that is cancelled does not stop it."""
        await asyncio.shield(self._ending(box))

    def end_soon(self, boxes: Iterable[Box]) -> None:
        """Begin to end them."""
        for box in boxes:
            self._ending(box)

    def _on_exit(self, box: Box) -> None:
        """A box's processes ended: by our hand (state ended, nothing to do) or by themselves."""
        if box.state is BoxState.ENDED:
            return
        reason = box.end_reason()
        if box.state is BoxState.CLAIMED:
            box.keeps_workspace = True  # until it is parked or released
            log.info("sandbox %s of session %s %s", box.id, box.session_id, reason)
            self._watches.tell(SandboxEvent(box.id, box.session_id, reason))
        else:
            for verb in self._on_death:
                verb(box, reason)
        self.end_soon([box])

    def _ending(self, box: Box) -> asyncio.Task[None]:
        """The one task that ends this box; from here on nobody can claim it."""
        box.state = BoxState.ENDED
        task = self._endings.get(box.id)
        if task is None:
            for verb in self._on_ending:
                verb(box)
            task = self._endings[box.id] = asyncio.get_running_loop().create_task(self._clear(box))
        return task

    async def _clear(self, box: Box) -> None:
        assert self._boxes is not None
        try:
            await self._boxes.clear(box)
        except (OSError, TimeoutError) as error:
            log.error("sandbox %s could not be cleared away: %s; the next start does", box.id, error)
        finally:
            self._all.pop(box.id, None)
            self._endings.pop(box.id, None)
            self._trash.want_emptied()
            for verb in self._on_gone:
                verb(box)
