"""A gateway process with instant sandboxes, one of several over a Redis, for tests of what all of them count together.

Usage: python -m tests.support.quota_gateway FOLDER REDIS_URL NAME; prints its URL once it serves. It takes a claim that
no record confirmed back after seconds and not minutes, so that a test can wait for what a killed one has left.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import uvloop

from gateway.core.clock import SystemClock
from gateway.runtimes.catalog import default_runtime
from gateway.serving.server import serving
from gateway.sessions import quota_audit, quotas
from gateway.store import make_store
from gateway.testing import ScriptedProvider, scripted_gateway

RESERVATION_S = 4.0


async def main(folder: Path, redis_url: str, name: str) -> None:
    """Serve until SIGTERM."""
    quotas.RESERVATION_S, quota_audit.AUDIT_INTERVAL_S = RESERVATION_S, 1.0
    clock = SystemClock()
    folder.mkdir(parents=True, exist_ok=True)
    admin = folder / "admin"
    admin.write_text("a" * 40)
    gateway = scripted_gateway(
        folder,
        ScriptedProvider(),
        clock=clock,
        store=make_store(redis_url, clock),
        me=name,
        runtimes=[replace(default_runtime(1), session_timeout=3600.0)],
        auth=True,
        admin_key_file=admin,
        takeover_after=2.0,
        sweep_interval=0.5,
        max_sandboxes=1000,
        allowed_hosts="*",
    )
    async with serving(gateway) as (url, ended):
        sys.stdout.write(url + "\n")
        sys.stdout.flush()
        await ended


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
