"""Bytes per second of a session: how long each amount has to wait, and that transfers do wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.core.model import Secret
from gateway.egress.gate import EgressGate
from gateway.egress.limits import Account
from gateway.egress.policy import Limits
from tests.support.egress import open_proxy

HOST = "origin.example.com"


def test_rate_is_of_both_directions_and_of_all_connections() -> None:
    """1000 bytes a second, of which a quarter may go at once: what is beyond that waits for its share."""
    account = Account(Limits(rate=1000), now=100.0)
    assert account.moved(250, 0, 100.0) == 0.0
    assert account.moved(0, 500, 100.0) == pytest.approx(0.5)
    assert account.moved(500, 0, 100.0) == pytest.approx(1.0)
    assert account.moved(0, 1, 101.0) == pytest.approx(0.001)
    assert account.moved(1, 0, 200.0) == 0.0  # silence saves up a quarter of a second, no more
    assert account.moved(0, 749, 200.0) == pytest.approx(0.5)


def test_without_a_rate_nothing_waits() -> None:
    assert Account(Limits(), now=0.0).moved(10**12, 10**12, 0.0) == 0.0


@pytest.mark.processes
@pytest.mark.parametrize("ended", [False, True], ids=["TLS passes", "TLS is ended"])
async def test_downloads_wait_for_their_rate(gate: EgressGate, tmp_path: Path, ended: bool) -> None:
    """Two at once share 1 MB a second: 3 MB cannot be there before two. A lower bound alone, so load does no harm."""
    (tmp_path / "key").write_text("sk-0123456789")
    secrets = (Secret("KEY", (HOST,), "bearer", file=str(tmp_path / "key")),) if ended else ()
    loop = asyncio.get_running_loop()
    async with open_proxy(gate, HOST, limits=Limits(rate=1_000_000), secrets=secrets) as proxy:

        async def download() -> int:
            async with proxy.secure(f"{HOST}:443") as (reader, writer):
                writer.write(f"GET /bytes/1500000 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                await reader.readuntil(b"\r\n\r\n")
                return len(await reader.readexactly(1_500_000))

        began = loop.time()
        assert sum(await asyncio.gather(download(), download())) == 3_000_000
        # The last pieces, of 256 KiB each, are on their way before they are waited for.
        assert loop.time() - began > (3_000_000 - 2 * (256 << 10)) / 1_000_000 - 0.25
