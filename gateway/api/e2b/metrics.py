"""What a sandbox uses now, as E2B's `GET /sandboxes/{id}/metrics` lists it: one sample, taken when it is asked for.

E2B's own server keeps samples of the past; the history of a session is in its usage (`/v1/usage`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError
from gateway.core.interfaces import LoadReader
from gateway.core.model import Limits, SandboxId
from gateway.core.units import rfc3339
from gateway.core.usage import SandboxLoad

# An engine that counts CPU seconds is asked twice, this far apart: ten ticks of the kernel's clock, a tenth of a core.
_BETWEEN_S = 0.1
_MAX_DIGITS = 12


async def samples(
    engine: LoadReader, sandbox_id: SandboxId, limits: Limits, clock: Clock, between: tuple[float, float]
) -> list[dict[str, Any]]:
    """The sample of now, if `between` (epoch seconds, both included) has it; none of a sandbox that has ended."""
    load = await engine.load(sandbox_id)
    if load is None:
        return []
    cores = load.cores
    if cores is None and load.cpu_s is not None:
        began = clock.monotonic()
        await asyncio.sleep(_BETWEEN_S)
        before, load = load.cpu_s, await engine.load(sandbox_id)
        if load is None:
            return []
        cores = max(0.0, (load.cpu_s or 0.0) - before) / (clock.monotonic() - began)
    now = clock.now()
    # Whole seconds, as the clients send them: what ends in this second has it.
    return [describe(load, cores or 0.0, limits, now)] if between[0] <= int(now) <= between[1] else []


def describe(load: SandboxLoad, cores: float, limits: Limits, now: float) -> dict[str, Any]:
    """A sample; what the engine does not know, or does not limit, is 0. Pure."""
    count = max(1, round(limits.cpus or 1))
    return {
        "timestamp": rfc3339(now),
        "timestampUnix": int(now),
        "cpuCount": count,
        "cpuUsedPct": round(100.0 * cores / count, 2),  # of all its CPUs together
        "memUsed": int(load.memory_bytes or 0),
        "memTotal": limits.memory or 0,
        "memCache": 0,
        "diskUsed": load.disk_bytes or 0,
        "diskTotal": limits.workspace_size or 0,
    }


def read_between(query: Mapping[str, str]) -> tuple[float, float]:
    """`start` and `end` in epoch seconds. Raises BadRequestError."""
    start, end = _read_second(query, "start", 0.0), _read_second(query, "end", float("inf"))
    if start > end:
        raise BadRequestError("start: expected a time that is not after end")
    return start, end


def _read_second(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name) or ""
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise BadRequestError(f"{name}: expected seconds since 1970, got {text[:32]!r}")
    return float(text)
