"""What this machine has, as far as sandboxes may request it."""

from __future__ import annotations

import os

from gateway.provider.local.booking import Capacity
from gateway.provider.local.gpus import NO_GPUS, Gpus


def capacity(cpus: int = 0, memory: int = 0, gpus: Gpus = NO_GPUS) -> Capacity:
    """What may be booked: cores and bytes of memory, each of the machine's where 0, and GPUs."""
    # The cores that we may run on: of a container that is pinned to some of them, those.
    cores = cpus or len(os.sched_getaffinity(0))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Capacity(cores * 1000, memory or whole, tuple(gpus.nodes), gpus.lacking)
