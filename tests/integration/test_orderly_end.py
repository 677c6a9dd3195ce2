"""One of two gateways over one Redis ends in order: its sessions go on at the other as if nothing had happened."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.redis_server import RedisServer
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until


class Writer:
    """A client of one session through one gateway: appends line after line to a file, each with an answer awaited."""

    def __init__(self, url: str, session: str) -> None:
        self.session = session
        self.answered: list[str] = []
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self._url = url

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0) as client:
            while not self.stop.is_set():
                line = f"line-{len(self.answered)}"
                self.send(client, f"sleep 0.05; echo {line} >> log", line)

    def send(self, client: httpx.Client, script: str, line: str) -> None:
        body = {"command": ["sh", "-c", script]}
        reply = client.post("/api/execute", json=body, headers={"x-session-id": self.session})
        if reply.status_code != 200 or "x-wakegate-restored" in reply.headers:
            self.wrong.append(f"{reply.status_code} {dict(reply.headers)} {reply.text[:200]}")
        else:
            self.answered.append(line)


def check(server: Server, writer: Writer) -> None:
    assert not writer.wrong, writer.wrong[:3]
    found = server.run(writer.session, "cat log").json()["stdout"].split()
    assert found == writer.answered


@pytest.mark.parametrize("notice", ["0", "1s"])
def test_sessions_of_a_gateway_that_stops_continue_at_the_other(tmp_path: Path, notice: str) -> None:
    """A long command at the owner ends as usual; clients at the other gateway see slower answers, and nothing else."""
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    common = ["--store", redis.url, "--takeover-after", "8s", "--warm-pool", "1"]
    common += ["--snapshots", f"file://{tmp_path}/snapshots", "--shutdown-delay", notice]
    try:
        with serve(tmp_path / "a", *common) as a, serve(tmp_path / "b", *common) as b, ThreadPoolExecutor(8) as threads:
            writers = [Writer(b.url, a.session()) for _ in range(3)]
            for writer in writers:
                assert a.client.post(f"/v1/sessions/{writer.session}/hibernate").status_code == 200  # an older snapshot
                assert a.run(writer.session, "true").status_code == 200
                threads.submit(writer.run)
            quiet = Writer(b.url, a.session())
            assert a.run(quiet.session, "echo kept > log").status_code == 200
            quiet.answered.append("kept")
            wait_until(lambda: all(len(each.answered) > 3 for each in writers), "all write through the other gateway")
            busy = Writer(b.url, writers[0].session)
            with httpx.Client(base_url=b.url, timeout=60.0) as client:
                long = threads.submit(busy.send, client, "touch began; sleep 4; echo done > long", "done")
                wait_until(lambda: b.run(busy.session, "test -e began").json()["exit_code"] == 0, "it runs")
                a.process.send_signal(signal.SIGTERM)
                assert a.process.wait(40) == 0
                long.result()
            count = [len(each.answered) for each in writers]
            wait_until(
                lambda: all(len(w.answered) > n + 3 or w.wrong for w, n in zip(writers, count, strict=True)),
                "all write on at the other gateway",
            )
            for writer in writers:
                writer.stop.set()
            threads.shutdown()
            assert not busy.wrong, busy.wrong
            assert b.run(busy.session, "cat long").json()["stdout"] == "done\n"
            for writer in [*writers, quiet]:
                check(b, writer)
    finally:
        redis.kill()


def test_session_that_cannot_be_copied_waits_for_its_gateway_and_is_not_taken_back(tmp_path: Path) -> None:
    """Its workspace is over the limit of snapshots by the time its gateway ends: nobody wakes it from an older one."""
    redis = RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    common = ["--store", redis.url, "--takeover-after", "1s", "--warm-pool", "1"]
    common += ["--snapshots", f"file://{tmp_path}/snapshots", "--snapshot-max-size", "1Mi"]
    try:
        with serve(tmp_path / "b", *common) as b:
            with serve(tmp_path / "a", *common) as a:
                session = a.session()
                assert a.run(session, "echo older > note").status_code == 200
                assert a.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
                assert a.run(session, "echo newer > note; head -c 3000000 /dev/urandom > big").status_code == 200
                assert a.terminate() == 0
                assert f"session {session} is not hibernated as this gateway ends" in a.log.read_text()
            away = b.run(session, "cat note")
            assert (away.status_code, away.json()["code"]) == (503, "OWNER_AWAY"), away.text
            assert "its workspace stayed with its gateway" in away.json()["error"]
            with serve(tmp_path / "a", *common) as again:
                for server in (b, again):
                    reply = server.run(session, "cat note; wc -c < big")
                    assert (reply.status_code, reply.json()["stdout"]) == (200, "newer\n3000000\n"), reply.text
                    assert "x-wakegate-restored" not in reply.headers
    finally:
        redis.kill()
