"""kill -9 at every step of going to sleep and of waking, and at random: what was answered is there afterwards."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.redis_server import RedisServer
from tests.support.serve import Server, sandboxes_of, serve
from tests.support.waiting import wait_until

MINED = "tests.support.mined"
# With one warm sandbox a hibernate and a wake take about 26 steps between them; beyond the last nothing happens.
STEPS = 30


def arm(server: Server, state: Path, steps: int) -> None:
    """Let the gateway kill itself so many steps from now."""
    Path(f"{state}.mine").write_text(f"kill {steps}")
    server.process.send_signal(signal.SIGUSR1)


def sleep_and_wake(server: Server, session: str) -> bool:
    """Both; False when the gateway died on the way."""
    try:
        server.client.post(f"/v1/sessions/{session}/hibernate")
        return server.run(session, "true").status_code == 200
    except httpx.TransportError:
        return False


def no_sandbox_leaks(state: Path, sessions: int, warm: int) -> bool:
    """Only the warm sandboxes and those of live sessions run."""
    return len(sandboxes_of(state)) <= sessions + warm


@contextlib.contextmanager
def life(state: Path, *flags: str) -> Iterator[Server]:
    """One life of the gateway, which may end by its own mine."""
    with serve(state, "--warm-pool", "1", *flags, program=MINED) as server:
        yield server


def crash_at(tmp_path: Path, steps: range, *flags: str) -> int:
    """For each number of steps: a life that ends there, and one that finds every byte again. How many did end there."""
    died = 0
    state = tmp_path / "state"
    written = "start"
    with life(state, *flags) as server:
        session = server.session()
        server.run(session, f"echo {written} > note")
    for step in steps:
        with life(state, *flags) as server:
            found = server.run(session, "cat note").json()["stdout"].strip()
            assert found == written, f"after step {step - 1}"
            assert server.run(session, f"echo {step} > note").status_code == 200
            written = str(step)
            arm(server, state, step)
            if sleep_and_wake(server, session):
                server.kill()  # the mine lies further on than that
            else:
                died += 1
    with life(state, *flags) as server:
        assert server.run(session, "cat note").json()["stdout"].strip() == written
        wait_until(lambda: no_sandbox_leaks(state, 1, 1), "only the session's and the warm sandbox run")
        assert server.client.delete(f"/v1/sessions/{session}").status_code == 204
    return died


@pytest.mark.parametrize("step", [3, 8])
def test_kill_during_hibernation_loses_no_answered_write(tmp_path: Path, step: int) -> None:
    """A gateway killed as a session goes to sleep, at a few of the steps: the next life has its files."""
    assert crash_at(tmp_path, range(step, step + 1)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["parked", "snapshots"])
def test_kill_at_each_step_loses_no_answered_write(tmp_path: Path, kept: str) -> None:
    """Every step of sleep and wake, with workspaces that are moved and with ones that are copied."""
    flags = () if kept == "parked" else ("--snapshots", f"file://{tmp_path}/snapshots")
    assert crash_at(tmp_path, range(1, STEPS), *flags) >= 15


def random_crashes(tmp_path: Path, cycles: int, seed: int, *flags: str, redis: RedisServer | None = None) -> None:
    """Several sessions, random verbs, random ends (of Redis too): each session has what was last answered."""
    dice = random.Random(seed)
    state = tmp_path / "state"
    known: dict[str, set[str]] = {}  # what each session's note may say: the answered write, or one that broke off
    for cycle in range(cycles):
        with life(state, *flags) as server, contextlib.suppress(httpx.TransportError):
            if len(known) < 4:
                known[server.session()] = {""}
            for session, possible in known.items():
                found = server.run(session, "cat note 2>/dev/null; true")
                assert found.status_code == 200, f"seed {seed}, cycle {cycle}: {found.text}"
                assert found.json()["stdout"].strip() in possible, f"seed {seed}, cycle {cycle}: session {session}"
                known[session] = {found.json()["stdout"].strip()}
            arm(server, state, dice.randint(1, 60))
            if redis is not None and dice.random() < 0.3:
                redis.kill()
                redis.start()
            for _ in range(8):
                session = dice.choice(list(known))
                if dice.random() < 0.5:
                    server.client.post(f"/v1/sessions/{session}/{dice.choice(['hibernate', 'wake'])}")
                    continue
                text = f"{cycle}-{dice.random()}"
                known[session].add(text)
                if server.run(session, f"echo {text} > note.new && mv note.new note").status_code == 200:
                    known[session] = {text}
            server.kill()
    with life(state, *flags) as server:
        for session in known:
            assert server.run(session, "true").status_code == 200
        wait_until(lambda: no_sandbox_leaks(state, len(known), 1), "no sandbox is left over")


def test_random_kills_lose_no_answered_write(tmp_path: Path) -> None:
    """A gateway with several sessions, killed and restarted a few times at random steps."""
    random_crashes(tmp_path, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["parked", "snapshots"])
def test_two_hundred_random_kills_lose_no_answered_write(tmp_path: Path, kept: str) -> None:
    """200 restarts in all, half with workspaces that are moved and half with ones that are copied."""
    flags = () if kept == "parked" else ("--snapshots", f"file://{tmp_path}/snapshots")
    random_crashes(tmp_path, 100, 2, *flags)


@pytest.mark.slow
def test_random_kills_of_gateway_and_redis_lose_no_answered_write(tmp_path: Path) -> None:
    """The same with records in Redis, which is killed as well now and then."""
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    try:
        random_crashes(tmp_path, 50, 3, "--store", redis.url, redis=redis)
    finally:
        redis.kill()


def racing_gateways(tmp_path: Path, cycles: int, seed: int) -> None:
    """Two gateways over one Redis, both asked for the same sessions; one dies in mid-step, then the other too."""
    dice = random.Random(seed)
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    flags = ("--store", redis.url, "--takeover-after", "60s")  # nobody is taken for dead: each comes back
    answered: dict[str, set[str]] = {}  # the lines that each session's log must have
    try:
        for cycle in range(cycles):
            with life(tmp_path / "a", *flags) as a, life(tmp_path / "b", *flags) as b:
                if len(answered) < 3:
                    answered[dice.choice((a, b)).session()] = set()
                for session, lines in answered.items():
                    found = dice.choice((a, b)).run(session, "cat log 2>/dev/null; true")
                    assert found.status_code == 200, f"seed {seed}, cycle {cycle}: {found.text}"
                    lost = lines - set(found.json()["stdout"].split())
                    assert not lost, f"seed {seed}, cycle {cycle}: session {session} lost {lost}"
                arm(a, tmp_path / "a", dice.randint(1, 40))
                with ThreadPoolExecutor(4) as racers:
                    for race in [racers.submit(_race, dice.random(), a, b, answered, cycle) for _ in range(8)]:
                        race.result()
                a.kill()
                b.kill()
        with life(tmp_path / "a", *flags) as a, life(tmp_path / "b", *flags) as b:
            for session in answered:
                assert dice.choice((a, b)).run(session, "true").status_code == 200
            states = (tmp_path / "a", tmp_path / "b")
            wait_until(
                lambda: sum(len(sandboxes_of(each)) for each in states) <= len(answered) + 2, "none is left over"
            )
    finally:
        redis.kill()


def _race(chance: float, a: Server, b: Server, answered: dict[str, set[str]], cycle: int) -> None:
    """One verb on one session through one of the gateways."""
    dice = random.Random(chance)
    session, server = dice.choice(sorted(answered)), dice.choice((a, b))
    # A client of its own: connections of a dead gateway must not be taken for the next one's.
    with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=server.url, timeout=5.0) as client:
        if dice.random() < 0.5:
            client.post(f"/v1/sessions/{session}/{dice.choice(['hibernate', 'wake'])}")
            return
        line = f"{cycle}-{chance}"
        body = {"command": ["sh", "-c", f"echo {line} >> log"]}
        reply = client.post("/api/execute", json=body, headers={"x-session-id": session})
        if reply.status_code == 200:
            answered[session].add(line)


@pytest.mark.slow
def test_racing_gateways_that_are_killed_lose_no_answered_write(tmp_path: Path) -> None:
    """Verbs on the same sessions through both of two gateways, which die again and again."""
    racing_gateways(tmp_path, 40, 4)
