"""A gateway of the whole cluster, as its clients use it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from tests.support.waiting import wait_until


@dataclass
class Gateway:
    """`client` is an administrator's; sessions are of `runtime`."""

    client: httpx.Client
    runtime: str

    def session(self, note: str = "", runtime: str = "") -> str:
        """Create a session, with a file `note` if one is given. Returns its id."""
        reply = self.client.post("/v1/sessions", json={"runtime": runtime or self.runtime})
        assert reply.status_code == 201, reply.text
        session = str(reply.json()["id"])
        if note:
            assert self.run(session, f"printf %s {note} > note").json()["exit_code"] == 0
        return session

    def run(self, session: str, script: str) -> httpx.Response:
        """Run a shell script in the session's sandbox."""
        body = {"command": ["sh", "-c", script]}
        return self.client.post("/api/execute", json=body, headers={"x-session-id": session})

    def output(self, session: str, script: str) -> str:
        """The standard output of a script that succeeds."""
        reply = self.run(session, script)
        assert reply.status_code == 200, reply.text
        document = reply.json()
        assert document["exit_code"] == 0, document
        return str(document["stdout"])

    def end(self, *sessions: str) -> None:
        """End sessions, also where the store or a node comes back just now."""
        for session in sessions:
            wait_until(partial(self._ended, session), f"session {session} ends", within=60)

    def _ended(self, session: str) -> bool:
        try:
            reply = self.client.delete(f"/v1/sessions/{session}")
        except httpx.TransportError:
            return False
        assert reply.status_code in (204, 404, 503), reply.text
        return reply.status_code != 503

    def pool(self) -> Any:
        """The runtime's warm pool."""
        namespace, _, name = self.runtime.partition("/")
        for each in self.client.get("/v1/runtimes").json()["runtimes"]:
            if (each["namespace"], each["name"]) == (namespace, name):
                return each["pool"]
        return {"ready": -1, "target": 0}

    def wait_for_pool(self) -> None:
        """Until there are as many warm sandboxes as there should be."""

        def full() -> bool:
            try:
                pool = self.pool()
            except (httpx.HTTPError, KeyError, ValueError):
                return False
            return bool(pool["ready"] >= max(1, pool["target"]))

        wait_until(full, "the warm pool is full", within=180)
