"""A sandbox reaches what its runtime names and nothing else, through the real service, with ordinary tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import Sandbox, SessionId
from gateway.egress.gate import EgressGate
from gateway.egress.log import Access, Outcome
from tests.support.internet import PUBLIC
from tests.support.local_engine import KEY, execute, runtime, serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes


async def curl(sandbox: Sandbox, *arguments: str) -> dict[str, Any]:
    return await execute(sandbox, "curl", "-sS", "-m", "15", *arguments)


async def test_named_host_is_reached_and_another_is_refused_at_once(gate: EgressGate, tmp_path: Path) -> None:
    """curl without any option of its own; the refusal says which setting allows it, and both are in the log."""
    lines: list[Access] = []
    gate.on_line(lines.append)
    async with serving(tmp_path, runtime(egress=("origin.example.com",)), egress=gate) as provider:
        sandbox = await provider.claim(KEY, SessionId("one"))

        reached = await curl(sandbox, "http://origin.example.com/hello")
        refused = await curl(sandbox, "-w", "%{http_code}", "http://other.example.com/hello")

        assert reached["exit_code"] == 0, reached
        seen = json.loads(reached["stdout"])
        assert (seen["address"], seen["path"]) == (PUBLIC, "/hello")
        assert refused["stdout"].endswith("403"), refused
        assert "add other.example.com to spec.wakegate.egress of" in refused["stdout"]
        await eventually(lambda: len(lines) == 3, "the log has three lines")
        assert [(line.outcome, line.host) for line in lines] == [
            (Outcome.OPEN, "origin.example.com"),
            (Outcome.CLOSED, "origin.example.com"),
            (Outcome.REFUSED, "other.example.com"),
        ]
