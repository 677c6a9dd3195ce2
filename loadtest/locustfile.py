"""The journeys of Wakegate's users for locust, headless or with its web page, against any gateway.

    .venv/bin/locust -f loadtest/locustfile.py --host http://127.0.0.1:8080
    .venv/bin/locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --headless -u 20 -r 5 -t 1m

WAKEGATE_LOAD_RUNTIME names the runtime. Requests are named by what they do and by how their sandbox came to be (`run
[wake]`), because one percentile over live and cold answers says nothing of either. 429 is obeyed, not a failure.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

from locust import HttpUser, between, constant_throughput, task

RUNTIME = os.environ.get("WAKEGATE_LOAD_RUNTIME", "default/my-interpreter")
PATIENCE_S = 120.0  # how long a 429 is obeyed


class SessionUser(HttpUser):
    """Verbs on one session; the classes below are the journeys."""

    abstract = True
    session = ""

    def ask(self, method: str, path: str, name: str, expected: int = 200, **options: Any) -> Any:
        """A request whose answer must have the expected status; 429 is tried again after Retry-After."""
        headers = {"x-session-id": self.session} if self.session else {}
        until = time.monotonic() + PATIENCE_S
        while True:
            with self.client.request(method, path, name=name, headers=headers, catch_response=True, **options) as reply:
                kind = reply.headers.get("x-wakegate-start") if reply.headers else None
                if kind:
                    reply.request_meta["name"] = f"{name} [{kind}]"
                if reply.status_code == 429 and time.monotonic() < until:
                    reply.request_meta["name"] = f"{name} [429]"
                    reply.success()
                elif reply.status_code == expected:
                    reply.success()
                    return reply
                else:
                    reply.failure(f"{reply.status_code}: {reply.text[:200] if reply.text else ''}")
                    return reply
            time.sleep(float(reply.headers.get("retry-after", 1)) * random.uniform(0.5, 1.5))

    def create(self) -> bool:
        """A session of one's own."""
        self.session = ""
        reply = self.ask("POST", "/v1/sessions", "create", 201, json={"runtime": RUNTIME})
        if reply.status_code == 201:
            self.session = reply.json()["id"]
        return bool(self.session)

    def run_script(self, script: str) -> str:
        """What a shell script prints in the sandbox."""
        reply = self.ask("POST", "/api/execute", "run", json={"command": ["sh", "-c", script]})
        return str(reply.json()["stdout"]) if reply.status_code == 200 else ""

    def remove(self) -> None:
        """The session ends."""
        if self.session:
            self.ask("DELETE", f"/v1/sessions/{self.session}", "delete", 204)
            self.session = ""

    def on_stop(self) -> None:
        """Leave nothing behind."""
        self.remove()


class Visitor(SessionUser):
    """Comes, runs something, thinks, runs something more, goes."""

    weight = 3
    wait_time = between(1, 3)

    @task
    def visit(self) -> None:
        """One session from beginning to end."""
        if self.create():
            self.run_script("echo 1 > kept")
            time.sleep(random.uniform(0.5, 1.5))
            self.run_script("cat kept")
            self.remove()


class ToolCaller(SessionUser):
    """An agent that keeps its session and calls tools at a steady rate."""

    weight = 5
    wait_time = constant_throughput(1)

    def on_start(self) -> None:
        """Its session."""
        self.create()

    @task(4)
    def command(self) -> None:
        """A small command."""
        if self.session or self.create():
            self.run_script("echo $((6 * 7))")

    @task(1)
    def file(self) -> None:
        """A file there and back."""
        if self.session or self.create():
            self.ask("PUT", "/api/files/note.txt", "write file", 200, data=b"x" * 10_000)
            self.ask("GET", "/api/files/note.txt", "read file")


class Sleeper(SessionUser):
    """Keeps a session for days and wakes it at long intervals."""

    weight = 2
    wait_time = between(2, 5)

    def on_start(self) -> None:
        """Its session, with something in it."""
        if self.create():
            self.run_script("date > born")

    @task
    def sleep_and_wake(self) -> None:
        """Puts it to sleep; the next request wakes it."""
        if self.session or self.create():
            self.ask("POST", f"/v1/sessions/{self.session}/hibernate", "hibernate")
            self.run_script("cat born")
