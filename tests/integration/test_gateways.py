"""Several gateways with engines of their own over one Redis: whoever is asked, the one that has the session answers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from redis import Redis
from websockets.sync.client import connect

from gateway.provider.local import process_tags
from tests.support.redis_server import RedisServer
from tests.support.serve import processes_of, serve
from tests.support.two_gateways import two
from tests.support.waiting import wait_until


def test_requests_reach_the_gateway_that_has_the_session(tmp_path: Path) -> None:
    """Files, errors, sleep, wake, changes, WebSockets and the end: all through the gateway that does not have it."""
    with two(tmp_path) as (a, b, _):
        session = a.session()
        assert a.run(session, "echo kept > note").status_code == 200
        reply = b.run(session, "cat note")
        assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n")
        assert reply.headers.get_list("x-session-id") == [session]
        assert reply.headers["x-wakegate-start"] == "live"
        up = b.client.put(
            f"/api/files/big?session={session}", content=b"x" * 3_000_000, headers={"x-session-id": session}
        )
        assert up.status_code < 300, up.text
        assert len(b.client.get("/api/files/big", headers={"x-session-id": session}).content) == 3_000_000
        assert b.client.get("/api/files/nothing", headers={"x-session-id": session}).status_code == 404
        assert b.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
        woken = b.run(session, "cat note")
        assert woken.json()["stdout"] == "kept\n"
        assert woken.headers["x-wakegate-start"] in ("wake", "wake-cold")
        changed = b.client.patch(f"/v1/sessions/{session}", json={"metadata": {"k": "v"}, "idleTimeout": "1h"})
        assert changed.json()["metadata"] == {"k": "v"}
        assert a.state(session)["idleTimeout"] == 3600.0
        url = f"ws{b.url.removeprefix('http')}/v1/sessions/{session}/terminal"
        with connect(url) as socket:
            socket.send(b"echo $((6*7))\n")
            seen = b""
            deadline = time.monotonic() + 20
            while b"42" not in seen and time.monotonic() < deadline:
                message = socket.recv(20)
                seen += message if isinstance(message, bytes) else b""
            assert b"42" in seen
        assert b.client.delete(f"/v1/sessions/{session}").status_code == 204
        assert a.run(session, "true").status_code == 404


def test_session_waits_for_the_only_gateway_that_has_its_files(tmp_path: Path) -> None:
    """Parked workspaces are one gateway's: while it is dead the other holds requests, then says so; nothing is lost."""
    with two(tmp_path) as (a, b, common):
        session = a.session()
        a.run(session, "echo kept > note")
        assert b.run(session, "true").status_code == 200
        a.kill()
        away = b.run(session, "cat note")
        assert (away.status_code, away.json()["code"]) == (503, "OWNER_AWAY"), away.text
        assert "retry-after" in away.headers
        assert "--snapshots" in away.json()["error"]
        with serve(tmp_path / "a", *common) as again:
            reply = b.run(session, "cat note")
            assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n"), reply.text
            assert again.run(session, "cat note").headers["x-wakegate-start"] == "live"


def test_session_moves_to_the_gateway_that_lives_when_snapshots_are_shared(tmp_path: Path) -> None:
    """The other one wakes it from its last snapshot, says of when that is, and has it from then on."""
    snapshots = f"file://{tmp_path}/snapshots"
    with two(tmp_path, "--snapshots", snapshots) as (a, b, common):
        session = a.session()
        a.run(session, "echo kept > note")
        assert a.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
        saved = a.state(session)["snapshotAt"]
        assert a.run(session, "echo later > note").status_code == 200
        a.kill()
        reply = b.run(session, "cat note")
        assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n"), reply.text
        assert reply.headers["x-wakegate-restored"] == saved
        with serve(tmp_path / "a", *common) as again:
            assert again.run(session, "cat note").json()["stdout"] == "kept\n"
        reply = b.run(session, "cat note")
        assert (reply.status_code, reply.headers["x-wakegate-start"]) == (200, "live")


def test_hibernated_session_wakes_at_any_gateway(tmp_path: Path) -> None:
    """With shared snapshots a session that sleeps is nobody's: the gateway that is asked wakes it on its own engine."""
    with two(tmp_path, "--snapshots", f"file://{tmp_path}/snapshots") as (a, b, _):
        session = a.session()
        a.run(session, "echo kept > note")
        a.client.post(f"/v1/sessions/{session}/hibernate")
        woken = b.run(session, "cat note")
        assert woken.json()["stdout"] == "kept\n"
        assert woken.headers["x-wakegate-start"] in ("wake", "wake-cold")
        a.kill()
        assert b.run(session, "cat note").headers["x-wakegate-start"] == "live"


def test_live_sessions_continue_while_redis_is_unavailable(tmp_path: Path) -> None:
    """Live sessions go on; what needs the store is told 503 and when to come back; its return needs no help."""
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    with two(tmp_path, redis=redis) as (a, b, _):
        session, sleeping = a.session(), a.session()
        a.run(session, "echo kept > note")
        a.client.post(f"/v1/sessions/{sleeping}/hibernate")
        redis.kill()
        assert a.run(session, "cat note").json()["stdout"] == "kept\n"
        for refused in (
            a.run(sleeping, "true"),
            a.client.post("/v1/sessions", json={"runtime": "default/my-interpreter"}),
        ):
            assert (refused.status_code, refused.json()["code"]) == (503, "STORE_UNAVAILABLE")
            assert "retry-after" in refused.headers
        wait_until(lambda: a.client.get("/readyz").status_code == 503, "readyz says so")
        assert a.client.get("/health/ready").status_code == 200, "a balancer goes on to send it what it can serve"
        redis.start()
        wait_until(lambda: a.client.get("/readyz").status_code == 200, "readyz is well again")
        assert a.run(sleeping, "true").status_code == 200
        assert a.run(session, "cat note").json()["stdout"] == "kept\n"
        wait_until(lambda: b.run(session, "cat note").status_code == 200, "the other gateway finds the owner again")


def test_checkpoint_is_what_a_lost_gateway_leaves(tmp_path: Path) -> None:
    """With spec.wakegate.checkpointInterval an active session is copied now and then, and restored from that."""
    runtime = tmp_path / "runtime.yaml"
    runtime.write_text(
        "apiVersion: runtime.agentcube.volcano.sh/v1alpha1\nkind: CodeInterpreter\n"
        "metadata: {name: my-interpreter}\n"
        "spec: {warmPoolSize: 1, template: {image: any}, wakegate: {checkpointInterval: 1s}}\n"
    )
    flags = ("--snapshots", f"file://{tmp_path}/snapshots", "--runtime", str(runtime))
    with two(tmp_path, *flags) as (a, b, _):
        session = a.session()
        a.run(session, "echo kept > note")

        def checkpointed() -> bool:
            a.run(session, "true")  # only sessions in use are copied
            return a.state(session)["snapshotAt"] is not None

        wait_until(checkpointed, "a checkpoint is on record")
        a.kill()
        reply = b.run(session, "cat note")
        assert reply.json()["stdout"] == "kept\n", reply.text
        assert reply.headers["x-wakegate-restored"] != "none"


def test_only_the_time_of_a_session_can_be_changed(tmp_path: Path) -> None:
    """PATCH says what cannot be changed, bounds what can, and loses nothing by a bad request."""
    with serve(tmp_path / "state", "--warm-pool", "1") as server:
        session = server.session()
        url = f"/v1/sessions/{session}"
        for body in ({"runtime": "x"}, {"ttl": -1}, {"idleTimeout": None}, {"metadata": [1]}, {"ttl": "soon"}):
            assert server.client.patch(url, json=body).status_code == 400, body
        assert server.client.patch(url, content=b"{").status_code == 400
        assert server.client.patch("/v1/sessions/unknown", json={}).status_code == 404
        before = server.state(session)
        short = server.client.patch(url, json={"ttl": 60}).json()
        assert short["expiresAt"] < before["expiresAt"]
        assert server.client.patch(url, json={"ttl": None}).json()["expiresAt"] == before["expiresAt"]
        assert server.client.patch(url, json={"idleTimeout": "100h"}).json()["idleTimeout"] == 28800.0
        assert server.client.patch(url, json={"ttl": 0.2}).status_code == 200
        wait_until(lambda: server.run(session, "true").status_code == 404, "its time is over")


def test_sessions_outlive_a_redis_that_comes_back_empty(tmp_path: Path) -> None:
    """Awake and asleep, after an outage longer than a takeover: each has its files, and its record again."""
    redis = RedisServer(tmp_path / "redis").start()
    try:
        flags = ("--store", redis.url, "--takeover-after", "1s", "--sweep-interval", "0.2s", "--warm-pool", "1")
        with serve(tmp_path / "state", *flags) as server:
            awake, asleep = server.session(), server.session()
            for session in (awake, asleep):
                assert server.run(session, "echo precious > note").status_code == 200
            assert server.client.post(f"/v1/sessions/{asleep}/hibernate").json()["state"] == "hibernated"
            redis.kill()
            wait_until(lambda: server.client.get("/readyz").status_code == 503, "the outage shows")
            missed = time.monotonic() + 1.5  # a takeover's time, which only passes
            wait_until(lambda: time.monotonic() > missed, "the announcements were missed")
            redis.start()
            wait_until(lambda: server.client.get("/readyz").status_code == 200, "the store is back")
            wait_until(lambda: server.client.get(f"/v1/sessions/{awake}").status_code == 200, "its record is back")
            for session in (awake, asleep):
                reply = server.run(session, "cat note")
                assert (reply.status_code, reply.json().get("stdout")) == (200, "precious\n"), reply.text
    finally:
        redis.kill()


# Each request may be held for 90 s (MAX_OWNER_WAIT_S), and 80 starts come before: at load 14 they alone took 52 s.
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_forty_sessions_of_a_killed_gateway_are_taken_over_by_slower_answers_alone(tmp_path: Path) -> None:
    """kill -9 of one of two gateways: a request for each of its sessions at once, and none is refused."""
    with two(tmp_path, "--snapshots", f"file://{tmp_path}/snapshots") as (a, b, _), ThreadPoolExecutor(40) as threads:
        sessions = [a.session() for _ in range(40)]
        for number, session in enumerate(sessions):
            assert a.run(session, f"echo {number} > note").status_code == 200
            assert a.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
            assert a.run(session, "true").status_code == 200
        a.kill()

        def ask(session: str) -> tuple[int, str]:
            with httpx.Client(base_url=b.url, timeout=100.0) as client:
                body = {"command": ["cat", "note"]}
                reply = client.post("/api/execute", json=body, headers={"x-session-id": session})
                return reply.status_code, reply.json().get("stdout", reply.text).strip()

        assert list(threads.map(ask, sessions)) == [(200, str(number)) for number in range(40)]


def test_sandbox_that_ends_while_redis_is_away_is_on_record_once_it_is_back(tmp_path: Path) -> None:
    """Nobody asks for the session meanwhile; its files are those of its last moment."""
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    with two(tmp_path, redis=redis) as (a, b, _):
        session = a.session()
        assert a.run(session, "echo kept > note").status_code == 200
        sandbox = a.state(session)["sandboxId"]
        redis.kill()
        for process in processes_of(tmp_path / "a"):
            if process.environ().get(process_tags.VARIABLE, "").endswith(sandbox):
                process.kill()
        wait_until(lambda: "is written later" in a.log.read_text(), "the record could not be written")
        redis.start()
        wait_until(lambda: b.state(session)["state"] == "lost", "the record says it")
        assert b.run(session, "cat note").json()["stdout"] == "kept\n"


def test_live_session_is_found_again_after_redis_lost_everything(tmp_path: Path) -> None:
    """No gateway takes it for one that never was, nor its gateway for dead; what never was is 404 in the end."""
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    with two(tmp_path, "--snapshots", f"file://{tmp_path}/snapshots", redis=redis) as (a, b, _):
        session = a.session()
        assert a.run(session, "echo kept > note").status_code == 200
        with Redis.from_url(redis.url) as client:
            client.flushdb()
        seen: list[int] = []

        def found() -> bool:
            reply = b.run(session, "cat note")
            seen.append(reply.status_code)
            assert reply.status_code == 200 or "retry-after" in reply.headers, reply.text
            return reply.status_code == 200 and reply.json()["stdout"] == "kept\n"

        wait_until(found, "it is found")
        assert set(seen) <= {200, 503}
        assert b.run(session, "true").headers["x-wakegate-start"] == "live"
        assert a.state(session)["state"] == "active"
        wait_until(lambda: b.run("never-was", "true").status_code == 404, "the records are complete")
