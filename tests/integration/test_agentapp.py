"""AgentScope's AgentApp, deployed from code: with the real package (scripts/test-agents).

WAKEGATE_AGENTSCOPE_PYTHON names an environment that has it; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

# The sample of AgentScope's guide to deployments, with a scripted answer in place of a model.
APP = """
import asyncio
from agentscope.message import Msg
from agentscope_runtime.engine import AgentApp

agent_app = AgentApp(app_name="Friday", app_description="A helpful assistant")

@agent_app.init
async def init(self):
    self.said = {}

@agent_app.query(framework="agentscope")
async def query(self, msgs, request=None, **kwargs):
    turns = self.said.setdefault((request.session_id, request.user_id), [])
    turns.append(msgs[-1].get_text_content())
    yield Msg("Friday", f"turn {len(turns)}: " + ", ".join(turns), "assistant"), True

@agent_app.endpoint("/sync")
def sync_handler(request: dict):
    return {"status": "ok", "payload": request}

@agent_app.endpoint("/async")
async def async_handler(request: dict):
    return {"status": "ok", "payload": request}

@agent_app.endpoint("/stream_async")
async def stream_async_handler(request: dict):
    for i in range(5):
        yield f"async chunk {i}, with request payload {request}\\n"

@agent_app.endpoint("/stream_sync")
def stream_sync_handler(request: dict):
    for i in range(5):
        yield f"sync chunk {i}, with request payload {request}\\n"

@agent_app.task("/task", queue="celery1")
def task_handler(request: dict):
    return {"status": "ok", "payload": request}

@agent_app.task("/atask")
async def atask_handler(request: dict):
    await asyncio.sleep(0.01)
    return {"status": "ok", "payload": request}

if __name__ == "__main__":
    agent_app.run()
"""
PATH = "/v1/namespaces/default/agent-runtimes/friday/invocations"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway with the agent, whose conversations the bodies name."""
    python = os.environ.get("WAKEGATE_AGENTSCOPE_PYTHON")
    if python is None:
        pytest.skip("WAKEGATE_AGENTSCOPE_PYTHON is not set (scripts/test-agents makes such an environment)")
    folder = tmp_path_factory.mktemp("agentapp")
    with serve(folder / "state", "--sandbox-python", python) as one:
        code = folder / "friday"
        code.mkdir()
        (code / "agent_app.py").write_text(APP)
        said = wakegate(one, folder, "deploy", str(code), "--conversation", "session_id")
        assert "agentapp agent_app.py:agent_app" in said
        yield one


def wakegate(server: Server, folder: Path, *words: str) -> str:
    """What a command prints."""
    environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(folder)}
    command = [sys.executable, "-m", "gateway", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + server.log.read_text()[-4000:]
    return done.stdout


def warm(server: Server, name: str = "friday") -> None:
    """Wait until a new session need not: the imports of AgentScope take longer than a request is held."""

    def is_warm() -> bool:
        return bool(server.client.get(f"/v1/agents/{name}").json()["status"]["replicas"].get("ready"))

    wait_until(is_warm, f"{name} has a sandbox ready", within=120.0)


def ask(server: Server, text: str, conversation: str, name: str = "friday") -> tuple[str, list[dict[str, Any]]]:
    """One turn by POST /process: the session that answered, and the events."""
    warm(server, name)
    path = PATH.replace("friday", name)
    body = {
        "input": [{"role": "user", "type": "message", "content": [{"type": "text", "text": text}]}],
        "session_id": conversation,
        "user_id": "ada",
    }
    with server.client.stream("POST", f"{path}/process", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert answer.status_code == 200, lines
        assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.headers["x-session-id"], [json.loads(line) for line in lines]


def text_of(events: list[dict[str, Any]]) -> str:
    """What the agent said in the end."""
    assert (events[-1]["object"], events[-1]["status"]) == ("response", "completed"), events[-1]
    return str(events[-1]["output"][-1]["content"][0]["text"])


def test_three_turns_by_process_are_one_session(server: Server) -> None:
    """Which its body names; the events have the numbers that AgentScope's clients check."""
    turns = [ask(server, text, "s1") for text in ("one", "two", "three")]
    assert len({session for session, _ in turns}) == 1
    assert [text_of(events) for _, events in turns] == ["turn 1: one", "turn 2: one, two", "turn 3: one, two, three"]
    assert [event["sequence_number"] for event in turns[0][1]] == list(range(len(turns[0][1])))
    other, events = ask(server, "one", "s2")
    assert (other != turns[0][0], text_of(events)) == (True, "turn 1: one")


def test_its_own_endpoints_answer(server: Server) -> None:
    """Five of them, and their tasks, whose ids are found in the session of the conversation."""
    body = {"session_id": "s1", "n": 1}
    for path in ("sync", "async"):
        assert server.client.post(f"{PATH}/{path}", json=body).json()["payload"] == body
    for path in ("async", "sync"):
        streamed = server.client.post(f"{PATH}/stream_{path}", json=body)
        assert streamed.status_code == 200, streamed.text
        assert all(f"{path} chunk {n}" in streamed.text for n in range(5))
    for path in ("task", "atask"):
        submitted = server.client.post(f"{PATH}/{path}", json=body)
        place = f"{PATH}/{path}/{submitted.json()['task_id']}"
        session = {"x-session-id": submitted.headers["x-session-id"]}

        def is_finished(place: str = place, session: dict[str, str] = session) -> bool:
            return bool(server.client.get(place, headers=session).json().get("status") == "finished")

        wait_until(is_finished, f"{path} is finished")
    assert server.client.get(f"{PATH}/health", headers=session).json()["status"] == "healthy"


def test_process_runs_in_the_background_in_the_same_session(server: Server) -> None:
    """The task's progress is the last of its events."""
    awaited, _ = ask(server, "one", "s3")
    body = {
        "input": [{"role": "user", "type": "message", "content": [{"type": "text", "text": "two"}]}],
        "session_id": "s3",
    }
    asked = server.client.post(f"{PATH}/process", json={**body, "user_id": "ada"}, headers={"prefer": "respond-async"})
    task = server.client.get(f"{asked.headers['location']}?wait=30s").json()
    assert (task["state"], task["session"]) == ("succeeded", awaited), task
    assert "turn 2: one, two" in server.client.get(f"{asked.headers['location']}/result").text


def test_an_agent_lives_from_its_deployment_to_its_end(server: Server, tmp_path: Path) -> None:
    """Status, stop, start, a release that is undone, and deletion, as the agent platform's own test goes."""
    folder = tmp_path / "life"
    folder.mkdir()
    (folder / "agent_app.py").write_text(APP)
    path = PATH.replace("friday", "life")
    wakegate(server, tmp_path, "deploy", str(folder), "--conversation", "session_id")
    assert text_of(ask(server, "hi", "a", "life")[1]) == "turn 1: hi"
    status = server.client.get("/v1/agents/life").json()["status"]
    assert (status["phase"], status["metrics"]["requests"] >= 1) == ("Running", True)
    assert server.client.post("/v1/agents/life/stop").json()["phase"] == "Stopped"
    assert server.client.post(f"{path}/process", json={"session_id": "a"}).status_code == 409
    server.client.post("/v1/agents/life/start")
    wait_until(
        lambda: server.client.get("/v1/agents/life").json()["status"]["phase"] == "Running",
        "it runs again",
        within=120.0,
    )
    assert text_of(ask(server, "again", "a", "life")[1]) == "turn 1: again"
    (folder / "agent_app.py").write_text(APP.replace("turn {len(turns)}", "bad"))
    wakegate(server, tmp_path, "deploy", str(folder), "--conversation", "session_id")
    assert text_of(ask(server, "hi", "b", "life")[1]) == "bad: hi"
    wakegate(server, tmp_path, "rollout", "undo", "life")
    assert text_of(ask(server, "hi", "c", "life")[1]) == "turn 1: hi"
    assert "life" in [each["name"] for each in server.client.get("/api/v1/agents").json()["agents"]]
    assert server.client.delete("/v1/agents/life").status_code == 204
    gone: httpx.Response = server.client.get("/v1/agents/life")
    assert gone.status_code == 404
