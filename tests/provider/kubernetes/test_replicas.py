"""Several gateways over one cluster, one Redis and one folder of snapshots, as a Deployment of replicas is."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.herd import all_at_once, asleep, claims, said
from tests.support.kube.clusters import in_thread
from tests.support.kube.served import INTERPRETER, enforce_roles, flags_for
from tests.support.kube.simulator import Cluster
from tests.support.kube.slow_commands import patient, slow_commands
from tests.support.redis_server import RedisServer
from tests.support.serve import RUNTIME, Server, serve
from tests.support.waiting import LIMIT_S, wait_until


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[list[Server], Cluster]]:
    """Two gateways with nothing in common but the cluster, Redis and snapshots; they give notice before they end."""
    redis = RedisServer(tmp_path / "redis").start()
    try:
        with in_thread() as cluster, ExitStack() as stack:
            cluster.call(
                lambda: cluster.create("codeinterpreters", "my-interpreter", namespace="default", spec=INTERPRETER)
            )
            enforce_roles(cluster)
            shared = ["--store", redis.url, "--snapshots", f"file://{tmp_path}/snapshots"]
            flags = [*flags_for(cluster, tmp_path), *shared, "--shutdown-delay", "1s"]
            yield [stack.enter_context(serve(tmp_path / name, *flags)) for name in ("one", "two")], cluster
    finally:
        redis.kill()


class Load:
    """A client per session that asks the gateways in turn, and tries the next one when a connection fails.

    `broken`: requests that were cut off after their connection stood.
    """

    def __init__(self, gateways: list[Server], sessions: list[str]) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.broken = 0
        self._gateways = gateways
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(session,)) for session in sessions]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, session: str) -> None:
        turn = 0
        with httpx.Client(timeout=20) as client:
            while not self._stop.is_set():
                turn += 1
                for attempt in range(len(self._gateways)):
                    url = self._gateways[(turn + attempt) % len(self._gateways)].url
                    try:
                        reply = client.post(
                            f"{url}/api/execute",
                            json={"command": ["cat", "note"]},
                            headers={"x-session-id": session},
                        )
                    except httpx.ConnectError:
                        continue  # it listens no more: a Service would not have sent us there
                    except httpx.TransportError:
                        self.broken += 1  # the dead one: the next is asked at once
                        continue
                    if reply.status_code != 200 or reply.json()["stdout"] != session:
                        self.wrong.append(reply.text)
                    self.answers[url] += 1
                    break
                else:
                    self.wrong.append("no gateway took the request")


def sessions_with_notes(gateways: list[Server]) -> list[str]:
    """Four sessions, two made by each gateway, each with its own id in the file `note`."""
    sessions = [gateways[n % 2].session() for n in range(4)]
    for n, session in enumerate(sessions):
        assert gateways[n % 2].run(session, f"printf {session} > note").status_code == 200
    return sessions


def claimed_pods(cluster: Cluster) -> set[str]:
    """The UIDs of the pods that sessions have."""
    claimed = {"wakegate.io/pool": "claimed"}
    return {pod["metadata"]["uid"] for pod in cluster.call(lambda: cluster.pods(**claimed))}


def test_replica_that_is_killed_fails_no_request(replicas: tuple[list[Server], Cluster]) -> None:
    """kill -9 of one of two gateways under load: no request that reached the other fails, those that ran on the dead
    one break, and succeed when the client sends them to the other, and the pods stay the same."""
    gateways, cluster = replicas
    sessions = sessions_with_notes(gateways)
    before = claimed_pods(cluster)
    with Load(gateways, sessions) as load, ThreadPoolExecutor() as threads:
        wait_until(lambda: min(load.answers[each.url] for each in gateways) >= 20, "both gateways serve")
        cut = [threads.submit(patient, gateways[0], session) for session in sessions]
        wait_until(lambda: slow_commands(cluster) == len(cut), "the slow commands run")
        gateways[0].kill()
        for each in cut:
            with pytest.raises(httpx.TransportError):
                each.result(LIMIT_S)
        again = [threads.submit(patient, gateways[1], session) for session in sessions]
        alone = load.answers[gateways[1].url]
        wait_until(lambda: load.answers[gateways[1].url] >= alone + 40, "the other goes on")
        go_on(cluster)
        assert [each.result(LIMIT_S) for each in again] == ["done\n"] * len(sessions)
    assert load.wrong == []
    assert claimed_pods(cluster) == before


def test_replica_that_drains_fails_no_request(replicas: tuple[list[Server], Cluster]) -> None:
    """SIGTERM to one of two gateways under load: not one request fails or is cut, those that run on it are answered to
    their end, it exits by itself with status 0, and the pods stay the same."""
    gateways, cluster = replicas
    sessions = sessions_with_notes(gateways)
    before = claimed_pods(cluster)
    with Load(gateways, sessions) as load, ThreadPoolExecutor() as threads:
        wait_until(lambda: min(load.answers[each.url] for each in gateways) >= 20, "both gateways serve")
        slow = [threads.submit(patient, gateways[0], session) for session in sessions]
        wait_until(lambda: slow_commands(cluster) == len(slow), "the slow commands run")
        gateways[0].process.send_signal(signal.SIGTERM)
        alone = load.answers[gateways[1].url]
        wait_until(lambda: load.answers[gateways[1].url] >= alone + 40, "the other goes on")
        assert gateways[0].process.poll() is None
        go_on(cluster)
        assert [each.result(LIMIT_S) for each in slow] == ["done\n"] * len(slow)
        assert gateways[0].process.wait(LIMIT_S) == 0
    assert (load.wrong, load.broken) == ([], 0)
    assert claimed_pods(cluster) == before


def go_on(cluster: Cluster) -> None:
    """Let the slow commands of all pods end."""
    for path in cluster.call(lambda: cluster.kubelet.volumes("workspace")):
        (path / "go-on").touch()


async def test_herd_at_two_replicas_causes_one_wake(replicas: tuple[list[Server], Cluster]) -> None:
    """Thirty requests, half through each gateway: one of them wakes the session, both answer, one pod is bound."""
    (one, two), cluster = replicas
    session = asleep(one, "kept")
    before = claims(one, two)
    answers = await all_at_once([(one.url, session), (two.url, session)] * 15)
    assert said(answers) == ["kept"] * 30
    assert claims(one, two) == before + 1
    assert len(cluster.call(lambda: cluster.pods(**{"wakegate.io/pool": "claimed"}))) == 1


def test_session_hibernates_at_one_replica_and_wakes_at_another(replicas: tuple[list[Server], Cluster]) -> None:
    """Any replica makes, uses, puts to sleep and wakes any session; tokens of each are believed by every pod."""
    one, two = replicas[0]
    session = one.session()
    assert one.run(session, "echo kept > note").status_code == 200
    assert two.run(session, "cat note").json()["stdout"] == "kept\n"
    with ThreadPoolExecutor() as threads:
        busy = threads.submit(one.run, session, "touch started; while test ! -e end; do sleep 0.05; done")
        wait_until(lambda: "started" in two.run(session, "ls").json()["stdout"], "it runs")
        assert two.client.post(f"/v1/sessions/{session}/hibernate").status_code == 409
        assert two.run(session, "touch end").status_code == 200
        assert busy.result(LIMIT_S).status_code == 200
    assert two.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
    reply = one.run(session, "cat note")
    assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n"), one.log.read_text()[-2000:]
    assert reply.headers["x-wakegate-start"] in ("wake", "wake-cold")
    assert two.client.get(f"/v1/sessions/{session}").json()["runtime"]["name"] == RUNTIME.partition("/")[2]
