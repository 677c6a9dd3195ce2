"""A gateway on a scripted provider, for benchmarks: every session's sandbox is the given endpoint.

With `local` instead of an endpoint the sandboxes are real. Prints `URL session-id endpoint [key]` when it is ready,
and at the end the number of store calls and signatures, for which benchmarks have bars.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from gateway.app.gateway import Gateway
from gateway.core.clock import SystemClock
from gateway.core.identity import Role
from gateway.core.interfaces import SandboxProvider
from gateway.core.model import DEFAULT_TENANT, Endpoint, PoolMode, PoolSpec, Runtime, RuntimeKey, StartKind
from gateway.identity.tenant_limits import parse_limits
from gateway.provider.local import LocalProvider
from gateway.routing.target import Target
from gateway.runtimes.catalog import default_runtime
from gateway.serving.server import serving
from gateway.sessions.activation import Opened
from gateway.testing import ScriptedProvider, scripted_gateway

_SETTLE_S = 5.0  # of claims, so that tables are computed and every runtime has been looked at


async def serve(
    endpoint: Endpoint | None, folder: Path, settings: dict[str, Any], *, rated: bool, sized: int = 0, rate: float = 0.1
) -> None:
    """Serve until SIGTERM. `endpoint` None: a real local sandbox. `settings` are those of gateway/core/settings.

    `sized` further runtimes have `rate` claims a second each, by which their pools are sized.
    """
    clock = SystemClock()
    provider: SandboxProvider
    if endpoint is None:
        provider = LocalProvider(folder, folder / "keys" / "public", clock)
    else:
        provider = ScriptedProvider(endpoint)
    spec = PoolSpec(mode=PoolMode.PREDICTIVE, max=50, size=1)
    others = [Runtime(key=RuntimeKey("load", f"r{n:04d}"), pool=spec) for n in range(sized)]
    gateway = scripted_gateway(folder, provider, clock=clock, runtimes=[default_runtime(3), *others], **settings)
    async with serving(gateway) as (url, ended):
        claiming = asyncio.create_task(claims(gateway, others, rate))
        while not all(pool.restored for pool in gateway.autoscaler.pools.values()) or not gateway.autoscaler.leads:
            await asyncio.sleep(0.05)
        if others:
            await asyncio.sleep(_SETTLE_S)
        opened: Opened = await gateway.lifecycle.create(RuntimeKey("default", "my-interpreter"))
        await gateway.sessions.idleness.flush()
        # Puts the session's route into memory, so that the first measured request is a live one like all others.
        reservation = await gateway.activator.reserve(Target(opened.session.id, None, b"/"))
        reservation.route.leave(clock.now())
        # Counts from here on: what the start and the create needed is not part of a request.
        gateway.counters.store.durations.clear()
        signed = gateway.tokens.signed
        where = opened.sandbox.endpoint
        # HAProxy's notation of a unix socket is unix@PATH.
        key = [await make_key(gateway, rated=rated)] if gateway.settings.auth else []
        print(url, opened.session.id, f"unix@{where.uds}" if where.uds else where, *key, flush=True)
        await ended
        claiming.cancel()
        calls = {verb: times.total for verb, times in gateway.counters.store.durations.items()}
        print(json.dumps({"store": calls, "signed": gateway.tokens.signed - signed}), flush=True)


async def claims(gateway: Gateway, runtimes: Sequence[Runtime], rate: float) -> None:
    """Claims of sandboxes at random, as sessions would make them, each served from its warm pool."""
    rng, clock, scaler = np.random.default_rng(1), SystemClock(), gateway.autoscaler
    while runtimes:
        for n in rng.integers(0, len(runtimes), rng.poisson(rate * len(runtimes) * 0.01)).tolist():
            scaler.waiting(runtimes[n].key, 1, clock.now())
            scaler.claimed(runtimes[n].key, StartKind.WARM, clock.now())
            scaler.waiting(runtimes[n].key, -1, clock.now())
        await asyncio.sleep(0.01)


async def make_key(gateway: Gateway, *, rated: bool) -> str:
    """A key of the session's tenant; `rated`: which may send more requests per second than any load has."""
    if rated:
        # The budget is consulted at each request and never used up: 1e9 requests a second.
        await gateway.tenants.put(DEFAULT_TENANT, parse_limits({"requestsPerSecond": 1e9}))
    authenticator = gateway.surfaces.keys.authenticator
    assert authenticator is not None
    key, _ = await authenticator.directory.create(role=Role.MEMBER)
    return key


def main() -> None:
    """Parse the endpoint and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint", help="HOST:PORT of an upstream, or `local` for a real sandbox")
    parser.add_argument("--access-log", action="store_true")
    parser.add_argument("--otlp-endpoint", default="")
    parser.add_argument("--audit", action="store_true", help="keep an audit trail")
    parser.add_argument("--auth", action="store_true", help="ask for a key, which is printed too")
    parser.add_argument("--rate", action="store_true", help="with --auth: count the tenant's requests")
    parser.add_argument("--sized", type=int, default=0, help="further runtimes, whose pools are sized by claims")
    parser.add_argument("--claims", type=float, default=0.1, help="a second of each of them")
    args = parser.parse_args()
    text = args.endpoint
    settings = {
        "access_log": args.access_log,
        "log_format": "json",
        "otlp_endpoint": args.otlp_endpoint,
        "auth": args.auth,
    }
    host, _, port = text.rpartition(":")
    endpoint = None if text == "local" else Endpoint(host=host, port=int(port))
    logging.basicConfig(level="WARNING")
    with tempfile.TemporaryDirectory() as folder:
        settings["audit_log"] = f"{folder}/audit.log" if args.audit else ""
        uvloop.run(serve(endpoint, Path(folder), settings, rated=args.rate, sized=args.sized, rate=args.claims))


if __name__ == "__main__":
    main()
