"""x-wakegate-restored reaches a client, whichever comes and through whichever door."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest

from tests.support.serve import Server, processes_of, serve
from tests.support.two_gateways import two
from tests.support.waiting import wait_until


def lose_sandbox(server: Server, state: Path, session: str) -> None:
    """kill -9 of everything in the session's sandbox."""
    pid = int(server.run(session, "echo kept > note; cat /proc/sys/kernel/random/uuid > id; echo 1").json()["stdout"])
    assert pid == 1
    for process in processes_of(state):
        if process.pid != server.process.pid:
            with contextlib.suppress(Exception):
                process.kill()
    wait_until(lambda: server.state(session)["state"] == "lost", "the loss is on record")


def leave_during(server: Server, session: str) -> None:
    """A client that finds the loss, and is gone before its answer."""
    body = {"command": ["sh", "-c", "touch found; sleep 1"]}
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{server.url}/api/execute", json=body, headers={"x-session-id": session}, timeout=0.5)


def test_loss_is_told_to_the_next_client_when_the_first_has_left(tmp_path: Path) -> None:
    """It stays due until an answer with it was delivered, and is not repeated after that."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        lose_sandbox(server, tmp_path / "state", session)
        leave_during(server, session)
        told = server.run(session, "cat note")
        assert told.headers["x-wakegate-restored"] not in ("", "none")
        assert told.json()["stdout"] == "kept\n"
        assert "x-wakegate-restored" not in server.run(session, "cat note").headers


def test_loss_is_told_by_a_wake_and_then_no_more(tmp_path: Path) -> None:
    """POST /wake carries the header as the data path does."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        lose_sandbox(server, tmp_path / "state", session)
        leave_during(server, session)
        assert "x-wakegate-restored" in server.client.post(f"/v1/sessions/{session}/wake").headers
        wait_until(lambda: "x-wakegate-restored" not in server.run(session, "true").headers, "it was told")


def test_loss_is_told_through_another_gateway(tmp_path: Path) -> None:
    """The client of the gateway that passes requests on is the one that counts."""
    with two(tmp_path) as (a, b, _):
        session = a.session()
        lose_sandbox(a, tmp_path / "a", session)
        leave_during(b, session)
        assert "x-wakegate-restored" in b.run(session, "cat note").headers
        wait_until(lambda: "x-wakegate-restored" not in b.run(session, "true").headers, "it was told")
        assert "x-wakegate-restored" not in a.run(session, "true").headers
