"""kill -9 of the gateway, and a disk that is suddenly full, at each step of making and of ending a session.

And at each step of its sleep and its wake the same of the disk, of all sandboxes and of the Redis that has its record
(tests/integration/test_crashes.py has the gateway).

Afterwards what was answered is so, every session that the gateway lists works, and nothing is left over: no sandbox, no
folder, nothing of the tenant's quota.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.picod import with_mounts
from tests.support.redis_server import RedisServer
from tests.support.serve import RUNTIME, Server, sandboxes_of, serve
from tests.support.waiting import wait_until

MINED = "tests.support.mined"
WARM = 1
STEPS = 14  # the longest way, a creation with quota, has ten; beyond the last one nothing happens
DISK_BYTES = 192 << 20
LIMITS = "tenants:\n  default: {sandboxes: 4, sessions: 6}\n"
AGENTCUBE = {"name": "my-interpreter", "namespace": "default"}
REFUSALS = (503, 507)

Create = Callable[[httpx.Client], httpx.Response]


def _native(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/sessions", json={"runtime": RUNTIME})


def _agentcube(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/code-interpreter", json=AGENTCUBE)


def _container(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/containers", json={"name": "mine"})


SURFACES: dict[str, tuple[Create, str, str]] = {  # how to create, the id's field, and the path that ends it
    "native": (_native, "id", "/v1/sessions/"),
    "agentcube": (_agentcube, "sessionId", "/v1/code-interpreter/sessions/"),
    "containers": (_container, "id", "/v1/containers/"),
}


def arm(server: Server, state: Path, what: str, step: int, whom: int = 0) -> None:
    """Let the gateway do `what` so many steps from now; `whom`: a process, where `what` is of one."""
    Path(f"{state}.mine").write_text(f"{what} {step} {whom}")
    os.kill(inside(server), signal.SIGUSR1)


def disarm(server: Server, state: Path) -> bool:
    """Give the disk its room back. Returns whether it was full."""
    order = Path(f"{state}.mine")
    os.kill(inside(server), signal.SIGUSR2)
    wait_until(lambda: order.read_text().startswith("left"), "the disk has room again")
    return order.read_text() == "left 0"


def inside(server: Server) -> int:
    """The gateway's own process, which bubblewrap may have started."""
    return int(Path(f"{server.log.parent / 'state'}.pid").read_text())


@contextlib.contextmanager
def life(folder: Path, *flags: str, wrapper: tuple[str, ...] = ()) -> Iterator[Server]:
    """One life of a gateway with limits for its only tenant."""
    limits = folder / "tenants.yaml"
    limits.write_text(LIMITS)
    flags = ("--warm-pool", str(WARM), "--tenants", str(limits), *flags)
    with serve(folder / "state", *flags, program=MINED, wrapper=wrapper) as server:
        yield server


def used(server: Server) -> dict[str, float]:
    document: dict[str, float] = server.client.get("/v1/tenants/default").json()["used"]
    return {name: amount for name, amount in document.items() if amount}


def listed(server: Server) -> list[str]:
    return [each["id"] for each in server.client.get("/v1/sessions").json()["sessions"]]


def require_nothing_left(server: Server, state: Path, *, quota: bool) -> None:
    """Every session that is listed works and can be ended; then there is nothing but the warm pool."""
    for session in listed(server):
        assert server.run(session, "true").status_code == 200
        assert server.client.delete(f"/v1/sessions/{session}").status_code == 204
    root = Path(f"/proc/{inside(server)}/root")
    folder = root / state.relative_to("/")
    wait_until(lambda: len(sandboxes_of(state, folder)) == WARM, "only the warm sandbox runs")
    wait_until(lambda: len(list((folder / "workspaces").iterdir())) == WARM, "only the warm sandbox has a folder")
    for kept in ("parked", "abandoned", "restoring", "trash"):
        wait_until(lambda kept=kept: not list((folder / kept).iterdir()), f"{kept} is empty")  # type: ignore[misc]
    if quota:
        wait_until(lambda: not used(server), "nothing is reserved")


def kill_at(tmp_path: Path, surface: str, verb: str, steps: range) -> int:
    """A life that ends at each step of a verb, and one after it. Returns how many did end there."""
    create, field, path = SURFACES[surface]
    state, died = tmp_path / "state", 0
    for step in steps:
        with life(tmp_path) as server:
            session = create(server.client).json()[field]
            assert server.run(session, "echo kept > note").status_code == 200
            arm(server, state, "kill", step)
            try:
                made = create(server.client) if verb == "create" else None
                ended = server.client.delete(path + session) if verb == "delete" else None
            except httpx.TransportError:
                died += 1
                made = ended = None
            server.kill()
        with life(tmp_path) as server:
            known = listed(server)
            if verb == "create":
                assert server.run(session, "cat note").json()["stdout"] == "kept\n", f"step {step}"
                assert made is None or made.json()[field] in known, f"step {step}"
            else:
                assert ended is None or session not in known, f"step {step}"
                if session in known:
                    assert server.run(session, "cat note").json()["stdout"] == "kept\n", f"step {step}"
            assert create(server.client).is_success, f"step {step}"
            # What a killed gateway had reserved and not confirmed is its for two minutes (sessions/quotas.py).
            require_nothing_left(server, state, quota=False)
            held = int(verb == "create")
            wait_until(lambda held=held: used(server).get("sandboxes", 0) <= held, f"step {step}: quota")  # type: ignore[misc]
        wipe_ledger(state)
    return died


def wipe_ledger(state: Path) -> None:
    """Forget reservations of lives that are over: fourteen of them within two minutes would exceed the limit."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(state / "wakegate.db", isolation_level=None)) as db:
        db.execute("DELETE FROM quota_entries")
        db.execute("DELETE FROM quota_used")


def fill_at(tmp_path: Path, surface: str, verb: str, steps: range) -> int:
    """One gateway whose disk is full from each step of a verb on, until it was answered. Returns how often it was."""
    create, field, path = SURFACES[surface]
    (tmp_path / "state").mkdir()
    state, filled = tmp_path / "state", 0
    wrapper = tuple(with_mounts("--size", str(DISK_BYTES), "--tmpfs", str(state)))
    with life(tmp_path, wrapper=wrapper) as server:
        for step in steps:
            session = create(server.client).json()[field]
            assert server.run(session, "echo kept > note").status_code == 200
            arm(server, state, "fill", step)
            reply = create(server.client) if verb == "create" else server.client.delete(path + session)
            filled += disarm(server, state)
            assert reply.is_success or reply.status_code in REFUSALS, f"step {step}: {reply.text}"
            if reply.is_success and verb == "delete":
                assert session not in listed(server), f"step {step}"
            else:
                assert server.run(session, "cat note").json()["stdout"] == "kept\n", f"step {step}"
            if verb == "create" and reply.is_success:
                assert server.run(reply.json()[field], "true").status_code == 200, f"step {step}"
            assert create(server.client).is_success, f"step {step}"
            require_nothing_left(server, state, quota=True)
    return filled


@pytest.mark.parametrize(("surface", "verb", "step"), [("native", "create", 4), ("agentcube", "delete", 2)])
def test_kill_at_a_step_leaves_nothing_over(tmp_path: Path, surface: str, verb: str, step: int) -> None:
    """One step of each verb; the slow suite has all of them on every surface."""
    assert kill_at(tmp_path, surface, verb, range(step, step + 1)) == 1


@pytest.mark.parametrize(("surface", "verb", "step"), [("containers", "create", 3), ("native", "delete", 1)])
def test_full_disk_at_a_step_leaves_nothing_over(tmp_path: Path, surface: str, verb: str, step: int) -> None:
    """One step of each verb; the slow suite has all of them on every surface."""
    assert fill_at(tmp_path, surface, verb, range(step, step + 1)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["create", "delete"])
@pytest.mark.parametrize("surface", SURFACES)
def test_kill_at_each_step_leaves_nothing_over(tmp_path: Path, surface: str, verb: str) -> None:
    """Before and after each call that changes something, until the verb is through."""
    assert kill_at(tmp_path, surface, verb, range(1, STEPS)) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["create", "delete"])
@pytest.mark.parametrize("surface", SURFACES)
def test_full_disk_at_each_step_leaves_nothing_over(tmp_path: Path, surface: str, verb: str) -> None:
    """The same with a disk without a free block, from that call on."""
    assert fill_at(tmp_path, surface, verb, range(1, STEPS)) >= 6


def sleep_and_wake_at(tmp_path: Path, what: str, steps: range, *flags: str, redis: RedisServer | None = None) -> int:
    """One gateway to which that happens at each step of a hibernation and the wake after it. Returns how often it did.

    Each session has its file afterwards, without a word of a loss, and no copy of it stays.
    """
    state, snapshots = tmp_path / "state", tmp_path / "snapshots"
    for folder in (state, snapshots):
        folder.mkdir(exist_ok=True)
    mounts = [each for folder in (state, snapshots) for each in ("--size", str(DISK_BYTES), "--tmpfs", str(folder))]
    happened = 0
    with life(tmp_path, *flags, wrapper=tuple(with_mounts(*mounts))) as server:
        kept = Path(f"/proc/{inside(server)}/root") / snapshots.relative_to("/")
        for step in steps:
            session = _native(server.client).json()["id"]
            assert server.run(session, "echo kept > note").status_code == 200
            arm(server, state, what, step, redis.pid if redis else 0)
            for ask in (f"/v1/sessions/{session}/hibernate", f"/v1/sessions/{session}/wake"):
                reply = server.client.post(ask)
                assert reply.is_success or reply.status_code in (409, 502, *REFUSALS), f"step {step}: {reply.text}"
            happened += disarm(server, state)
            if redis:
                redis.kill()
                redis.start()
            wait_until(partial(answers, server, session), f"step {step}: it answers")
            found = server.run(session, "cat note")
            assert found.json()["stdout"] == "kept\n", f"step {step}"
            require_nothing_left(server, state, quota=True)
            wait_until(lambda: not list(kept.iterdir()), f"step {step}: no snapshot is left")
    return happened


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kept", ["parked", "snapshots"])
@pytest.mark.parametrize("what", ["sandboxes", "fill", "redis"])
def test_fault_at_each_step_of_sleep_and_wake_loses_nothing(tmp_path: Path, what: str, kept: str) -> None:
    """Whatever ends or is full, and with workspaces that are moved and with ones that are copied."""
    flags = [] if kept == "parked" else ["--snapshots", f"file://{tmp_path}/snapshots"]
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start() if what == "redis" else None
    try:
        if redis:
            flags += ["--store", redis.url]
        assert sleep_and_wake_at(tmp_path, what, range(1, 31), *flags, redis=redis) >= 15
    finally:
        if redis:
            redis.kill()


def answers(server: Server, session: str) -> bool:
    """Whether a session can be used: a gateway that died holds its lease for a while."""
    return server.run(session, "true").status_code == 200


def take_over_at(tmp_path: Path, steps: range) -> int:
    """A gateway dies; the one that takes its session over dies at each step of that. Returns how many did end there."""
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    common = ["--store", redis.url, "--takeover-after", "1.5s", "--snapshots", f"file://{tmp_path}/snapshots"]
    died = 0
    try:
        for step in steps:
            (first, second) = (tmp_path / f"{step}a", tmp_path / f"{step}b")
            for folder in (first, second):
                folder.mkdir()
            with life(first, *common) as owner:
                session = _native(owner.client).json()["id"]
                assert owner.run(session, "echo kept > note").status_code == 200
                assert owner.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
                assert owner.run(session, "true").status_code == 200
                owner.kill()
            with life(second, *common) as heir:
                arm(heir, second / "state", "kill", step)
                try:
                    taken = heir.run(session, "cat note")
                    assert (taken.status_code, taken.json()["stdout"]) == (200, "kept\n"), f"step {step}"
                except httpx.TransportError:
                    died += 1
                heir.kill()
            with life(second, *common) as heir:
                wait_until(partial(answers, heir, session), "it is back")
                assert heir.run(session, "cat note").json()["stdout"] == "kept\n", f"step {step}"
                require_nothing_left(heir, second / "state", quota=False)
    finally:
        redis.kill()
    return died


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 9))
def test_kill_at_a_step_of_a_takeover_loses_nothing(tmp_path: Path, step: int) -> None:
    """The heir's sandbox is claimed, named by the record, or has the files: the next life has the last snapshot."""
    assert take_over_at(tmp_path, range(step, step + 1)) == 1 or step > 6
