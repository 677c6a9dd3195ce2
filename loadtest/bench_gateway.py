"""A gateway on a scripted provider, for benchmarks: every session's sandbox is the given endpoint.

Prints `URL session-id` when it answers, and at the end the counts that the bars speak of: store calls and signatures.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

from gateway.clock import SystemClock
from gateway.lifecycle import Opened
from gateway.model import Endpoint, RuntimeKey
from gateway.routing.target import Target
from gateway.server import serving
from gateway.store.sqlite import SqliteStore
from gateway.testing import ScriptedProvider, scripted_gateway


class CountingStore:
    """A session store that counts its calls by name."""

    def __init__(self, inner: SqliteStore) -> None:
        self._inner = inner
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._inner, name)


async def serve(endpoint: Endpoint, folder: Path) -> None:
    """Serve until SIGTERM."""
    clock = SystemClock()
    store = CountingStore(SqliteStore(folder / "wakegate.db", clock))
    gateway = scripted_gateway(folder, ScriptedProvider(endpoint), store=store, clock=clock)
    async with serving(gateway) as (url, ended):
        opened: Opened = await gateway.lifecycle.create(RuntimeKey("default", "my-interpreter"))
        await gateway.lifecycle.flush_activity()
        reservation = await gateway.activator.reserve(Target(opened.session.id, None, b"/"))
        reservation.route.leave(clock.now())
        store.calls.clear()
        signed = gateway.tokens.signed
        print(url, opened.session.id, flush=True)
        await ended
        print(json.dumps({"store": dict(store.calls), "signed": gateway.tokens.signed - signed}), flush=True)


def main() -> None:
    """Parse the endpoint and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint", help="HOST:PORT or a unix socket's path")
    text = parser.parse_args().endpoint
    host, _, port = text.rpartition(":")
    endpoint = Endpoint(uds=text) if "/" in text else Endpoint(host=host, port=int(port))
    logging.basicConfig(level="WARNING")
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(serve(endpoint, Path(folder)))


if __name__ == "__main__":
    main()
