"""Orphans of an earlier run: its processes, control groups and sockets are removed before anything is served.

After an orderly end there are none; after a kill -9 processes may still be dying. Workspaces of an earlier run are not
removed here, workspaces.py takes them over.
"""

from __future__ import annotations

import logging
import os

from gateway.provider.local import cgroups, process_tags
from gateway.provider.local.descriptors import wait_gone
from gateway.provider.local.state_dir import StateDir

logger = logging.getLogger(__name__)

_ORPHAN_TIMEOUT_S = 10.0  # for killed processes to vanish


def end_orphans(state_dir: StateDir) -> None:
    """Kill what an earlier run left: processes first, then their groups and sockets. Blocks."""
    # By group and by tag: without control groups there are tags only, and code can clear its own environment.
    groups = cgroups.sweep(state_dir.earlier_groups())
    killed = [pidfd for group in groups for pidfd in group.kill()]
    killed += process_tags.kill_tagged(process_tags.tag(state_dir.owner, ""))
    if killed:
        logger.warning("ended %d processes that an earlier gateway left behind", len(killed))
    # Waited for, as a group with a dying process cannot be removed (EBUSY).
    gone = wait_gone(killed, _ORPHAN_TIMEOUT_S)
    for pidfd in killed:
        os.close(pidfd)
    stuck = [group for group in groups if not group.remove()]
    if stuck or not gone:
        logger.warning("processes of an earlier gateway do not end; their control groups stay until they do")
    state_dir.clear_sockets()
