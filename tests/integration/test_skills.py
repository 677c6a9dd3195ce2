"""Skills over the tool surfaces, with a real gateway: scripts in sandboxes of their own, for one call or kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: office}
spec:
  template: {image: none}
  wakegate:
    codeContext: "off"
    skills:
      - {source: adds, limits: {memory: 256Mi, processes: 32}, timeout: 20s}
      - {source: counts, kept: true}
"""
ADDS = """---
name: adds
description: Adds amounts.
---
Run `sum.py` with the amounts.
"""
SUM = """
import os, sys
print(sum(map(int, sys.argv[1:])), sorted(os.listdir("/workspace")), sorted(os.listdir("/skill")))
"""
HOSTILE = """
import os
print(os.path.exists("/workspace/secret"), flush=True)
held = bytearray(2 << 30)
"""
COUNT = """
count=$(( $(cat count 2>/dev/null || echo 0) + 1 )); echo $count > count; echo "$count $(cat input)"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway with the runtime `office`, and nothing warm."""
    folder = tmp_path_factory.mktemp("skills")
    for name, text, scripts in (
        ("adds", ADDS, {"sum.py": SUM, "hostile.py": HOSTILE}),
        ("counts", ADDS.replace("adds", "counts"), {"count.sh": COUNT}),
    ):
        (folder / name / "scripts").mkdir(parents=True)
        (folder / name / "SKILL.md").write_text(text)
        for file, content in scripts.items():
            (folder / name / "scripts" / file).write_text(content)
    (folder / "office.yaml").write_text(MANIFEST)
    with serve(folder / "state", "--runtime", str(folder / "office.yaml"), "--warm-pool", "0") as running:
        yield running


def call(server: Server, session: str, tool: str, **arguments: Any) -> str:
    """What a model reads of one call."""
    body = {
        "session_id": session,
        "content": [{"type": "tool_use", "id": "t1", "name": tool, "input": arguments}],
    }
    answer = server.client.post("/v1/tool_calls", json=body)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["content"]
    content = result["content"]
    return content if isinstance(content, str) else "\n".join(each.get("text", "") for each in content)


def sessions(server: Server) -> dict[str, str]:
    """Sessions that have not ended, by their runtime's name."""
    return {each["runtime"]["name"]: each["id"] for each in server.client.get("/v1/sessions").json()["sessions"]}


def new_session(server: Server) -> str:
    made = server.client.post("/v1/sessions", json={"runtime": "default/office"})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def test_skills_are_listed_with_their_descriptions(server: Server) -> None:
    """To a model they are tools; the runtimes that they run on are not listed."""
    for form, name in (("mcp", "inputSchema"), ("anthropic", "input_schema")):
        query = {"format": form, "runtime": "default/office"}
        tools = {each["name"]: each for each in server.client.get("/v1/tools", params=query).json()["tools"]}
        assert tools["skill_adds"]["description"] == "Adds amounts. Without `script` it answers its instructions."
        assert tools["skill_adds"][name]["properties"]["script"]["enum"] == ["hostile.py", "sum.py"]
    names = [each["name"] for each in server.client.get("/v1/runtimes").json()["runtimes"]]
    assert "office" in names
    assert not any("skill" in name for name in names)


async def test_an_mcp_client_lists_and_calls_skills(server: Server) -> None:
    """With the SDK's client, on the endpoint of the runtime; in its result is what the script printed."""
    async with httpx2.AsyncClient(timeout=60) as http:
        transport = streamable_http_client(f"{server.url}/mcp?runtime=default/office", http_client=http)
        async with Client(transport, mode="legacy") as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert (tools["skill_adds"].description or "").startswith("Adds amounts.")
            assert tools["skill_adds"].input_schema["properties"]["script"]["enum"] == ["hostile.py", "sum.py"]
            told = await client.call_tool("skill_adds", {})
            assert "Run `sum.py`" in str(told.content)
            added = await client.call_tool("skill_adds", {"script": "sum.py", "args": ["1", "2"]})
            assert (added.is_error, "3 [] ['SKILL.md', 'scripts']" in str(added.content)) == (False, True), added
            wrong = await client.call_tool("skill_adds", {"script": "nothing.py"})
            assert wrong.is_error


def test_call_runs_in_a_sandbox_of_its_own_that_then_ends(server: Server) -> None:
    """It sees its folder, and nothing of the session's; what it breaks stays inside, and its limits are its own."""
    session = new_session(server)
    server.run(session, "echo hidden > secret")
    assert call(server, session, "skill_adds") == "Run `sum.py` with the amounts."
    shown = call(server, session, "skill_adds", script="sum.py", args=["20", "22"])
    assert shown.strip() == "42 [] ['SKILL.md', 'scripts']"
    broken = call(server, session, "skill_adds", script="hostile.py")
    assert "False" in broken
    assert "MemoryError" in broken or "exit" in broken.lower()
    assert "invalid_arguments" in call(server, session, "skill_adds", script="../../bin/sh")
    assert server.run(session, "cat secret").json()["stdout"] == "hidden\n"
    wait_until(lambda: "office.skill.adds" not in sessions(server), "the sandboxes of the calls have ended")
    server.client.delete(f"/v1/sessions/{session}").raise_for_status()


def test_kept_sandbox_is_the_sessions_and_ends_with_it(server: Server) -> None:
    """Its files are there in the next call, also after it slept; another session has one of its own."""
    first, second = new_session(server), new_session(server)
    for expected in ("1 a", "2 a"):
        assert call(server, first, "skill_counts", script="count.sh", input="a").strip() == expected
    assert call(server, second, "skill_counts", script="count.sh", input="b").strip() == "1 b"
    for each in server.client.get("/v1/sessions", params={"runtime": "default/office.skill.counts"}).json()["sessions"]:
        server.client.post(f"/v1/sessions/{each['id']}/hibernate").raise_for_status()
    assert call(server, first, "skill_counts", script="count.sh", input="c").strip() == "3 c"
    for session in (first, second):
        server.client.delete(f"/v1/sessions/{session}").raise_for_status()
    wait_until(lambda: "office.skill.counts" not in sessions(server), "kept sandboxes end with their sessions")
