"""A release that fails, under load: it is rolled back by itself, and nobody on the old revision notices."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serve import Server, serve
from tests.support.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.processes

PROGRAM = """
import http.server, os
class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        data = os.environ["SAYS"].encode()
        self.send_response(500 if os.environ["SAYS"] == "bad" and self.path != "/ready" else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
"""
PATH = "/v1/namespaces/default/agent-runtimes/greeter/invocations/"
ON_THE_OLD = 4  # sessions that are asked again and again
ASKED = 4  # requests of each new session


def spec(says: str) -> dict[str, Any]:
    container = {
        "name": "agent", "image": "x", "command": ["python3", "-c", PROGRAM],
        "env": [{"name": "SAYS", "value": says}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
    }  # fmt: skip
    return {"targetPort": [{"port": 8080, "protocol": "HTTP"}], "podTemplate": {"spec": {"containers": [container]}}}


@dataclass
class Load:
    """Clients that ask until the end of the block; `answers` counts (who, status, text)."""

    url: str
    answers: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _ends: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def run(self, who: str, headers: Callable[[], dict[str, str]]) -> None:
        """One more client, of a thread of its own. `headers`: of each request."""

        def ask() -> None:
            with httpx.Client(base_url=self.url, timeout=LIMIT_S) as client:
                while not self._ends.is_set():
                    try:
                        said = client.get(PATH, headers=headers())
                        self.answers[who, said.status_code, said.text] += 1
                        session = said.headers.get("x-session-id")
                        if who == "new" and session:
                            for _ in range(ASKED - 1):  # a sandbox takes long to start on a machine with other work
                                said = client.get(PATH, headers={"x-session-id": session})
                                self.answers[who, said.status_code, said.text] += 1
                            client.delete(f"/v1/sessions/{session}")  # its sandbox is another one's
                    except httpx.HTTPError as error:
                        self.problems.append(f"{who}: {error!r}")

        thread = threading.Thread(target=ask)
        thread.start()
        self._threads.append(thread)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def count(self, who: str) -> int:
        return sum(number for (name, _, _), number in list(self.answers.items()) if name == who)


def rollout(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get("/v1/agents/greeter").json()["status"]
    return found


def test_a_failing_canary_is_rolled_back_under_load_and_the_old_revision_serves_on(tmp_path: Path) -> None:
    """No request of a session that the old revision has fails, before, during or after; new ones fail at most with
    what the canary answers, also those that were waiting for its sandbox when it was rolled back."""
    with serve(tmp_path / "state") as server:
        made = server.client.post("/v1/agents", json={"name": "greeter", "spec": spec("good")})
        assert made.status_code == 201, made.text
        with Load(server.url) as load:
            for _ in range(ON_THE_OLD):
                first = server.client.get(PATH)
                assert first.text == "good", first.text
                session = {"x-session-id": first.headers["x-session-id"]}
                load.run("old", lambda session=session: session)  # type: ignore[misc]
            load.run("new", dict)
            wait_until(lambda: load.count("old") > 50, "the old revision is under load")
            strategy = {"canary": {"weight": 100}, "window": "60s", "minRequests": ASKED}
            changed = server.client.patch("/v1/agents/greeter", json={"spec": spec("bad"), "strategy": strategy})
            assert changed.status_code == 200, changed.text
            wait_until(lambda: rollout(server)["rollout"] is None, "it was rolled back by itself", within=45.0)
            told = [each["text"] for each in rollout(server)["events"] if each["revision"] == 2]
            assert any(each.startswith("rolled back") and "requests failed" in each for each in told), told
            assert rollout(server)["stable"] == 1
            asked, new = load.count("old"), load.count("new")
            wait_until(lambda: load.count("old") > asked + 50, "the old revision is under load afterwards")
            failed = load.answers["new", 500, "bad"]
            wait_until(lambda: load.count("new") > new + ASKED, "new sessions begin")
            assert load.answers["new", 500, "bad"] <= failed + ASKED  # of one that was under way
        assert not load.problems
        assert {(status, text) for who, status, text in load.answers if who == "old"} == {(200, "good")}, load.answers
        assert {(status, text) for who, status, text in load.answers if who == "new"} <= {
            (200, "good"),
            (500, "bad"),
        }, load.answers
        assert failed >= ASKED, load.answers
