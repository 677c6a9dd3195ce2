"""Recorded claims leave a gateway in the form that `wakegate replay` reads."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from gateway.autoscaler.replay.traces import read_traces
from tests.conftest import OpenScripted
from tests.support import KEY


async def test_recorded_history_can_be_replayed(open_gateway: OpenScripted, tmp_path: Path) -> None:
    """What was recorded, by minute or by second, is read back as a trace with as many arrivals."""
    served, _ = await open_gateway()
    begin = int(served.gateway.clock.now()) - 600
    await served.gateway.store.record_claims(KEY, {begin: 3, begin + 120: 2, begin + 121: 1})
    file = tmp_path / "claims.jsonl"
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        for query in ("", "?bucket=1&runtime=default/my-interpreter"):
            answer = await client.get("/v1/autoscaler/history" + query)
            assert answer.status_code == 200, answer.text
            file.write_bytes(answer.content)
            (trace,) = read_traces(str(file))
            assert len(trace.arrivals) == 6
            assert trace.name.endswith(str(KEY))


@pytest.mark.parametrize("query", ["bucket=5", "since=1"])
async def test_history_refuses_wrong_parameters(open_gateway: OpenScripted, query: str) -> None:
    """Naming the one that is wrong and what would be right."""
    served, _ = await open_gateway()
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        answer = await client.get("/v1/autoscaler/history?" + query)

    assert answer.status_code == 400
    assert query.partition("=")[0] + ": " in answer.text
    assert "expected" in answer.text
