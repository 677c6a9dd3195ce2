"""Decides from INFO and CONFIG which settings of a Redis server can lose session records. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def durability_warnings(
    memory: Mapping[str, Any], persistence: Mapping[str, Any], save_points: str | None
) -> Sequence[str]:
    """One sentence for each setting that can lose records.

    `memory` and `persistence` are those sections of INFO. `save_points` is the server's `save` setting: empty if it
    writes no RDB files, None if CONFIG is forbidden, in which case there is no warning about persistence.
    """
    found = []
    # Even volatile-lru counts: claim history and usage have an expiry, and their loss is silent.
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        found.append(
            f"Redis evicts keys when its memory is full (maxmemory-policy {policy}), session records among them; set"
            " maxmemory-policy noeviction"
        )
    if int(persistence.get("aof_enabled", 1)) == 0 and save_points == "":
        found.append(
            "Redis keeps nothing on disk (appendonly no, no save points), so its restart loses all session records;"
            " set appendonly yes"
        )
    return found
