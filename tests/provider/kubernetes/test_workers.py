"""`--workers 2`: two processes on one port over one cluster and one Redis, and what becomes of them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.serving.sockets import reserve
from gateway.serving.supervisor import Supervisor, check, pause_before_restart, settings_of
from tests.support.kube.served import in_cluster
from tests.support.kube.simulator import Cluster
from tests.support.kube.slow_commands import patient, slow_commands
from tests.support.redis_server import RedisServer, free_port
from tests.support.serve import Server
from tests.support.waiting import LIMIT_S, wait_until


def children_of(pid: int) -> list[tuple[int, list[str]]]:
    """(pid, command) of each child that runs; one that has ended and was not waited for yet has no command."""
    seen = [child.as_dict(["pid", "cmdline"], ad_value=[]) for child in psutil.Process(pid).children()]
    return [(child["pid"], child["cmdline"]) for child in seen if child["cmdline"]]


@dataclass
class Workers:
    """A supervisor, and the port that each of its two workers has for itself."""

    server: Server
    cluster: Cluster
    ports: list[int]

    def pids(self) -> list[int]:
        """Of the workers, by number."""
        return [pid for _, pid in sorted((command[-1], pid) for pid, command in children_of(self.server.process.pid))]

    def count(self, number: int) -> int:
        """Answers to /healthz by worker `number` (from 0) since it started."""
        text = httpx.get(f"http://127.0.0.1:{self.ports[number]}/metrics", timeout=LIMIT_S).text
        found = re.search(r'wakegate_control_requests_total\{.*route="/healthz".*\} (\S+)', text)
        return int(float(found[1])) if found else 0

    def ask(self, times: int) -> set[int]:
        """The statuses of requests on the shared port, each on a connection of its own."""
        with httpx.Client(headers={"connection": "close"}, timeout=LIMIT_S) as client:
            return {client.get(f"{self.server.url}/healthz").status_code for _ in range(times)}


@contextmanager
def two_workers(folder: Path) -> Iterator[Workers]:
    redis = RedisServer(folder / "redis").start()
    first = two_free_ports()
    flags = ["--workers", "2", "--worker-port", str(first), "--store", redis.url]
    try:
        with in_cluster(folder, *flags) as (server, cluster):
            yield Workers(server, cluster, [first, first + 1])
    finally:
        redis.kill()


def two_free_ports() -> int:
    """The first of two free ports in a row."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
        return port


def gone(pids: list[int]) -> bool:
    """Whether none of these processes runs."""
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def test_workers_share_port_and_sessions_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    """Both answer on the one port and for any session; after kill -9 of one the other answers all until it is back."""
    with two_workers(tmp_path) as workers:
        one, two = workers.pids()
        assert workers.ask(40) == {200}
        counts = [workers.count(0), workers.count(1)]
        assert min(counts) > 0
        assert sum(counts) >= 40
        session = workers.server.session()
        for port in workers.ports:
            run = {"command": ["sh", "-c", f"echo {port} >> ports; cat ports"]}
            url = f"http://127.0.0.1:{port}/api/execute"
            reply = httpx.post(url, json=run, headers={"x-session-id": session}, timeout=LIMIT_S)
            assert reply.status_code == 200, reply.text
        assert reply.json()["stdout"].split() == [str(port) for port in workers.ports]
        psutil.Process(two).kill()
        wait_until(lambda: gone([two]), "it is dead")
        before = workers.count(0)
        assert workers.ask(20) == {200}
        assert workers.count(0) > before  # the rest may be the new worker's, which is there after a second
        wait_until(lambda: len(workers.pids()) == 2, "another one is started")
        said = workers.server.log
        wait_until(lambda: "answers again" in said.read_text(), "it answers")
        assert workers.pids()[0] == one
        assert workers.ask(40) == {200}
        assert workers.count(1) > 0
        assert re.search(rf"worker 2 \(pid {two}\) ended by signal 9; it starts again in 1 s", said.read_text())


def test_sigterm_drains_all_workers_and_ends_with_status_0(tmp_path: Path) -> None:
    """What runs is answered to its end, by either worker; then no process is left, and the port is free."""
    with two_workers(tmp_path) as workers, ThreadPoolExecutor() as threads:
        pids = workers.pids()
        sessions = [workers.server.session() for _ in pids]
        own = [Server(workers.server.process, f"http://127.0.0.1:{port}", workers.server.client, tmp_path)
               for port in workers.ports]  # fmt: skip
        slow = [threads.submit(patient, *each) for each in zip(own, sessions, strict=True)]
        wait_until(lambda: slow_commands(workers.cluster) == 2, "the slow commands run")
        workers.server.process.terminate()
        wait_until(lambda: not listens(workers.server.url), "nobody takes new connections")
        assert not gone(pids)
        for path in workers.cluster.call(lambda: workers.cluster.kubelet.volumes("workspace")):
            (path / "go-on").touch()
        assert [each.result(LIMIT_S) for each in slow] == ["done\n"] * 2
        assert workers.server.process.wait(LIMIT_S) == 0
        assert gone(pids)
        reserve("127.0.0.1", int(workers.server.url.rpartition(":")[2])).close()


def listens(url: str) -> bool:
    """Whether a connection is taken."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_killed_supervisor_leaves_no_worker(tmp_path: Path) -> None:
    """kill -9 of it: the workers notice, drain and end."""
    with two_workers(tmp_path) as workers:
        pids = workers.pids()
        assert len(pids) == 2
        workers.server.kill()
        wait_until(lambda: gone(pids), "the workers ended")


def test_wrong_settings_are_reported_once_and_end_the_start(tmp_path: Path) -> None:
    """What only a worker finds out ends the supervisor with the status of a wrong setting; nothing is tried again."""
    flags = ["--engine", "kubernetes", "--kubeconfig", str(tmp_path / "none"), "--store", "redis://127.0.0.1:1/0"]
    flags += ["--workers", "2", "--port", "0", "--state-dir", str(tmp_path / "state")]
    ran = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", *flags],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert ran.stderr.count("wakegate: ") == 1
    assert str(tmp_path / "none") in ran.stderr


GOOD = Settings(workers=2, engine="kubernetes", store="redis://h/0", port=8080)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"engine": "local"}, "use --engine kubernetes"),
        ({"store": ""}, "--store redis://HOST/0"),
        ({"store": "sqlite:///a/b"}, "--store redis://HOST/0"),
        ({"workers": 65}, "at most 64"),
        ({"worker_port": 8079}, "does not contain --port 8080"),
        ({"worker_port": 65535}, "ends at 65535 or below"),
    ],
)
def test_workers_are_refused_where_they_could_not_work(changed: dict[str, object], said: str) -> None:
    """With the reason and what to do instead."""
    with pytest.raises(SettingsError) as refused:
        check(Settings(**{**vars(GOOD), **changed}))
    assert len(refused.value.problems) == 1
    assert said in refused.value.problems[0]


def test_workers_are_taken_where_they_work_and_wrong_settings_named_together() -> None:
    """No complaint about what is right; every one at once about what is not."""
    check(GOOD)
    check(Settings(**{**vars(GOOD), "worker_port": 8081}))
    with pytest.raises(SettingsError) as refused:
        check(Settings(workers=2))
    assert len(refused.value.problems) == 2


def test_port_is_not_shared_with_other_programs() -> None:
    """Somebody else who listens there, with SO_REUSEPORT too, would take a part of the connections."""
    with (
        socket.create_server(("127.0.0.1", 0), reuse_port=True) as stranger,
        pytest.raises(SettingsError, match="Address already in use; choose another with --port"),
    ):
        reserve("127.0.0.1", stranger.getsockname()[1])


def test_workers_keep_their_state_apart_and_snapshots_together(tmp_path: Path) -> None:
    """A session that one puts to sleep the other can wake, also where no --snapshots is given."""
    one, two = (settings_of(Settings(state_dir=tmp_path), number) for number in (1, 2))
    assert one.state_dir != two.state_dir
    assert one.snapshots == two.snapshots == str(tmp_path / "snapshots")
    assert settings_of(Settings(state_dir=tmp_path, snapshots="s3://b"), 1).snapshots == "s3://b"


DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(end="hello\\0", flush=True)
time.sleep(60)
"""


async def test_worker_that_does_not_end_is_killed_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    """The supervisor ends all the same, with a status that says that it was not in order."""
    supervisor = asyncio.create_task(Supervisor([sys.executable, "-c", DEAF], 2, grace=0.2).run())
    async with asyncio.timeout(LIMIT_S):
        while "hello" not in capsys.readouterr().out:
            await asyncio.sleep(0.01)
        pids = [pid for pid, command in children_of(os.getpid()) if DEAF in command]
        os.kill(os.getpid(), signal.SIGTERM)
        assert await supervisor == 1
    assert len(pids) == 2
    assert gone(pids)


def test_restarts_slow_down_and_recover_after_a_minute_of_life() -> None:
    """1 s, doubling to 30 s; again 1 s for one that had lived."""
    pauses = [0.0]
    for _ in range(7):
        pauses.append(pause_before_restart(pauses[-1], 0.5))
    assert pauses[1:] == [1, 2, 4, 8, 16, 30, 30]
    assert pause_before_restart(30, 60) == 1
