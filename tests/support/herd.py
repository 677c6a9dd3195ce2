"""Many clients at once on one hibernated session."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.serve import Server
from tests.support.waiting import LIMIT_S

ASK = {"command": ["cat", "note"]}


def claims(*servers: Server) -> int:
    """Sandboxes that these gateways have bound to sessions since they started."""
    families = [each for one in servers for each in text_string_to_metric_families(one.client.get("/metrics").text)]
    counts = [sample.value for each in families for sample in each.samples if sample.name == "wakegate_claims_total"]
    assert counts
    return int(sum(counts))


def asleep(server: Server, note: str) -> str:
    """The id of a session that sleeps on a file `note`."""
    session = server.session()
    assert server.run(session, f"printf %s {note} > note").json()["exit_code"] == 0
    assert server.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
    return session


async def all_at_once(asked: Sequence[tuple[str, str]]) -> list[httpx.Response]:
    """What each (gateway's URL, session) answers to `cat note`, each on its own connection."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=2 * LIMIT_S, limits=limits) as client:
        return await asyncio.gather(
            *(client.post(f"{url}/api/execute", json=ASK, headers={"x-session-id": each}) for url, each in asked)
        )


def said(answers: Sequence[httpx.Response]) -> list[str]:
    """The outputs; an answer that is none of 200 stands for itself."""
    return [each.json()["stdout"] if each.status_code == 200 else each.text for each in answers]
