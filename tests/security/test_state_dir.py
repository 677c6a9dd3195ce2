"""What the gateway keeps is not seen by sandboxes, wherever the operator put it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.model import Agent, Kind, Probe, RuntimeKey, SessionId
from gateway.provider.local.bwrap import covered_paths
from tests.support.local_engine import runtime, serving

LOOK = "ls -A /app > /workspace/seen; find /app/state >> /workspace/seen; echo end >> /workspace/seen; sleep 600"


async def test_state_directory_below_an_agents_source_is_empty_inside(tmp_path: Path) -> None:
    """The signing keys and the sockets of other sandboxes are there; the agent's own files are seen."""
    (tmp_path / "main.py").write_text("")
    agent = Agent(
        ("sh", "-c", LOOK),
        (("/", 9000),),
        source=str(tmp_path),
        probe=Probe(command=("grep", "-qx", "end", "/workspace/seen"), period=0.1),
    )
    key = RuntimeKey("default", "looker", Kind.AGENT_RUNTIME)
    async with serving(tmp_path, replace(runtime(key=key), agent=agent)) as provider:
        sandbox = await provider.claim(key, SessionId("session-a"))
        workspace = provider.workspace(sandbox.id)
        assert workspace is not None
        seen = (workspace / "seen").read_text().split()

    assert {"main.py", "state"} <= set(seen)
    assert [line for line in seen if line.startswith("/app/state")] == ["/app/state"]


@pytest.mark.parametrize(
    ("source", "covered"),
    [
        ("/srv", ["/app/w/state"]),
        ("/srv/w", ["/app/state"]),
        ("/srv/w/other", []),
        ("/srv/w/sta", []),
        ("/", ["/app/srv/w/state"]),
    ],
)
def test_bind_of_a_folder_around_the_state_directory_is_covered(source: str, covered: list[str]) -> None:
    """Only where it would show; names that merely begin alike are not below it."""
    assert covered_paths("/app", source, ["/srv/w/state"]) == covered
