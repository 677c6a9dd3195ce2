"""Recorded claims leave a gateway in the form that `wakegate replay` reads."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from gateway.autoscaler.replay.traces import read_traces
from tests.support.scripted import KEY, OpenScripted
from tests.support.waiting import eventually


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


@pytest.mark.parametrize(
    ("cost", "objective"),
    [(0.0, {"targetMissRate": 0.01}), (50.0, {"coldStartCost": 50.0})],
    ids=["miss rate", "costs"],
)
async def test_explanation_names_the_objective_of_a_pool(
    open_gateway: OpenScripted, cost: float, objective: dict[str, float]
) -> None:
    """The settings say whether a miss rate or costs decide; GET /v1/autoscaler says it of each pool, and why."""
    served, _ = await open_gateway(cold_start_cost=cost)
    await eventually(
        lambda: any(pool.decision is not None for pool in served.gateway.autoscaler.pools.values()), "looked at"
    )
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        (pool,) = (await client.get("/v1/autoscaler")).json()["pools"]

    assert pool["objective"] == objective
    assert pool["why"].endswith(".")
    assert {"demand", "quantile", "experts", "target", "changes"} <= pool.keys()
