"""Deleting what was discarded: later, in a thread, one round at a time.

A workspace leaves its place by a rename (Folders.discard), which is quick however much is in it. Whoever did that says
so here.
"""

from __future__ import annotations

import asyncio
import logging

from gateway.provider.local.state_dir import Folders

log = logging.getLogger(__name__)


class Trash:
    """Wakes who empties the trash. What cannot be deleted is said, and tried again in the next round."""

    def __init__(self) -> None:
        self._wanted = asyncio.Event()

    def want_emptied(self) -> None:
        """Something may have been discarded. Cheap: rounds that are asked for during one become one."""
        self._wanted.set()

    async def run(self, folders: Folders) -> None:
        """Empty it whenever that is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await asyncio.to_thread(empty, folders)


def empty(folders: Folders) -> None:
    """One round. Blocks."""
    try:
        folders.empty_trash()
    except OSError as error:
        log.warning("a workspace could not be deleted: %s", error)
