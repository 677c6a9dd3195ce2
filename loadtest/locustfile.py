"""User behaviour for locust, headless or with its web page, against any gateway.

    .venv/bin/locust -f loadtest/locustfile.py --host http://127.0.0.1:8080
    .venv/bin/locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --headless -u 20 -r 5 -t 1m

WAKEGATE_LOAD_RUNTIME names the runtime. Requests are named by what they do and by their start kind (`run [wake]`),
because one percentile over live and cold answers describes neither. A 429 is retried after Retry-After, no failure.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

from locust import HttpUser, between, constant_throughput, task

RUNTIME = os.environ.get("WAKEGATE_LOAD_RUNTIME", "default/my-interpreter")
RETRY_LIMIT_S = 120.0  # for how long a 429 is retried


class SessionUser(HttpUser):
    """Requests on one session; the classes below are the kinds of users."""

    abstract = True
    session = ""

    def ask(self, method: str, path: str, name: str, expected: int = 200, **options: Any) -> Any:
        """Send a request whose answer must have the expected status; a 429 is retried after Retry-After."""
        headers = {"x-session-id": self.session} if self.session else {}
        until = time.monotonic() + RETRY_LIMIT_S
        while True:
            with self.client.request(method, path, name=name, headers=headers, catch_response=True, **options) as reply:
                kind = reply.headers.get("x-wakegate-start") if reply.headers else None
                if kind:
                    reply.request_meta["name"] = f"{name} [{kind}]"
                # Shown under a name of its own: in with the others, the time of a refusal would make them look fast.
                if reply.status_code == 429 and time.monotonic() < until:
                    reply.request_meta["name"] = f"{name} [429]"
                    reply.success()
                elif reply.status_code == expected:
                    reply.success()
                    return reply
                else:
                    reply.failure(f"{reply.status_code}: {reply.text[:200] if reply.text else ''}")
                    return reply
            # Half to one and a half times as long, or all users would come back at the same moment.
            time.sleep(float(reply.headers.get("retry-after", 1)) * random.uniform(0.5, 1.5))

    def create(self) -> bool:
        """Create a new session for this user. Returns whether it was created."""
        self.session = ""
        reply = self.ask("POST", "/v1/sessions", "create", 201, json={"runtime": RUNTIME})
        if reply.status_code == 201:
            self.session = reply.json()["id"]
        return bool(self.session)

    def run_script(self, script: str) -> str:
        """Run a shell script in the sandbox. Returns what it printed."""
        reply = self.ask("POST", "/api/execute", "run", json={"command": ["sh", "-c", script]})
        return str(reply.json()["stdout"]) if reply.status_code == 200 else ""

    def remove(self) -> None:
        """End the session, if there is one."""
        if self.session:
            self.ask("DELETE", f"/v1/sessions/{self.session}", "delete", 204)
            self.session = ""

    def on_stop(self) -> None:
        """locust: the user stops; end its session."""
        self.remove()


class Visitor(SessionUser):
    """Creates a session, runs a command, thinks, runs another one, ends the session."""

    weight = 3
    wait_time = between(1, 3)

    @task
    def visit(self) -> None:
        """Use one session from its creation to its end."""
        if self.create():
            self.run_script("echo 1 > kept")
            time.sleep(random.uniform(0.5, 1.5))
            self.run_script("cat kept")
            self.remove()


class ToolCaller(SessionUser):
    """An agent that keeps its session and calls tools at a steady rate."""

    weight = 5
    # One call a second whatever it takes: a slow gateway must not get less load for it.
    wait_time = constant_throughput(1)

    def on_start(self) -> None:
        """locust: the user starts; create its session."""
        self.create()

    @task(4)
    def command(self) -> None:
        """Run a command that takes next to no time."""
        if self.session or self.create():
            self.run_script("echo $((6 * 7))")

    @task(1)
    def file(self) -> None:
        """Write a file of 10 kB and read it back."""
        if self.session or self.create():
            self.ask("PUT", "/api/files/note.txt", "write file", 200, data=b"x" * 10_000)
            self.ask("GET", "/api/files/note.txt", "read file")


class HibernatingUser(SessionUser):
    """Keeps a session for days and wakes it at long intervals."""

    weight = 2
    wait_time = between(2, 5)

    def on_start(self) -> None:
        """locust: the user starts; create its session with a file."""
        if self.create():
            self.run_script("date > born")

    @task
    def hibernate_and_wake(self) -> None:
        """Hibernate the session; the next request wakes it."""
        if self.session or self.create():
            self.ask("POST", f"/v1/sessions/{self.session}/hibernate", "hibernate")
            self.run_script("cat born")
