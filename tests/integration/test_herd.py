"""Many at once: requests to one sleeping session, and sleeping sessions, through real gateways with real sandboxes."""

from __future__ import annotations

from pathlib import Path

from tests.support.herd import all_at_once, asleep, claims, said
from tests.support.redis_server import RedisServer
from tests.support.serve import serve


async def test_herd_at_a_hibernated_session_causes_one_wake(tmp_path: Path) -> None:
    """A hundred requests at once: one sandbox is claimed, every request is answered, and each sees the file."""
    with serve(tmp_path / "state") as server:
        session = asleep(server, "kept")
        before = claims(server)
        answers = await all_at_once([(server.url, session)] * 100)
        assert said(answers) == ["kept"] * 100
        assert {each.headers["x-wakegate-start"] for each in answers} <= {"wake", "wake-cold", "live"}
        assert claims(server) == before + 1


async def test_more_sessions_wake_at_once_than_the_pool_holds(tmp_path: Path) -> None:
    """Twelve sleepers on a pool of two: each request is held until it sees its own file, and none is refused."""
    with serve(tmp_path / "state", "--warm-pool", "2") as server:
        sessions = [asleep(server, f"note-{index}") for index in range(12)]
        before = claims(server)
        answers = await all_at_once([(server.url, each) for each in sessions])
        assert said(answers) == [f"note-{index}" for index in range(12)]
        assert {each.headers["x-wakegate-start"] for each in answers} <= {"wake", "wake-cold"}
        assert claims(server) == before + 12


async def test_herd_at_two_gateways_causes_one_wake(tmp_path: Path) -> None:
    """Thirty requests, half through each of two gateways on one Redis: one of them wakes the session, both answer."""
    redis = RedisServer(tmp_path / "redis").start()
    try:
        flags = ("--store", redis.url, "--warm-pool", "1")
        with serve(tmp_path / "one", *flags) as one, serve(tmp_path / "two", *flags) as two:
            session = asleep(one, "kept")
            before = claims(one, two)
            answers = await all_at_once([(one.url, session), (two.url, session)] * 15)
            assert said(answers) == ["kept"] * 30
            assert claims(one, two) == before + 1
            assert len({each.state(session)["sandboxId"] for each in (one, two)}) == 1
    finally:
        redis.kill()
