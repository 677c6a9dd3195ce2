"""Before anything is served: clear what an earlier life of this gateway left running. Its workspaces are
workspaces.py's.

After an end in order there is nothing; after a kill -9 there may be processes that are still dying.
"""

from __future__ import annotations

import logging
import os

from gateway.provider.local import cgroups, process_tags
from gateway.provider.local.process import wait_gone
from gateway.provider.local.state_dir import Folders

log = logging.getLogger(__name__)

_LEFTOVER_TIMEOUT = 10.0  # seconds for killed processes of an earlier life to vanish


def clear_earlier_life(folders: Folders) -> None:
    """End what runs of it: processes first, then their groups and sockets. Blocks."""
    leftovers = cgroups.sweep(folders.earlier_groups())
    killed = [pidfd for group in leftovers for pidfd in group.kill()]
    killed += process_tags.kill_marked(process_tags.mark(folders.owner, ""))
    if killed:
        log.warning("ended %d processes that an earlier gateway left behind", len(killed))
    gone = wait_gone(killed, _LEFTOVER_TIMEOUT)
    for pidfd in killed:
        os.close(pidfd)
    stuck = [group for group in leftovers if not group.remove()]
    if stuck or not gone:
        log.warning("processes of an earlier gateway do not end; their control groups stay until they do")
    folders.clear_sockets()
