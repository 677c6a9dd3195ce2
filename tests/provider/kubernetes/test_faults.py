"""What the local engine's tests of sleep, herds and faults promise, over pods."""

from __future__ import annotations

import threading
from typing import Any

import httpx

from tests.support.herd import all_at_once, asleep, claims, said
from tests.support.kept_files import hibernate_and_compare
from tests.support.kube.keys import ask, private_keys, token
from tests.support.kube.simulator import Cluster
from tests.support.serve import Server
from tests.support.waiting import wait_until


def pod_of(server: Server, cluster: Cluster, session: str) -> Any:
    """The pod that a session has."""
    uid = server.state(session)["sandboxId"]
    (pod,) = [pod for pod in cluster.call(cluster.pods) if pod["metadata"]["uid"] == uid]
    return pod


def test_hibernation_keeps_every_byte(server: Server) -> None:
    """Files, modes, times and links are the same on another pod, and the wake says what it was."""
    hibernate_and_compare(server)


async def test_herd_at_a_hibernated_session_causes_one_wake(server: Server) -> None:
    """A hundred requests at once: one pod is claimed, every request is answered, and each sees the file."""
    session = asleep(server, "kept")
    before = claims(server)
    answers = await all_at_once([(server.url, session)] * 100)
    assert said(answers) == ["kept"] * 100
    assert claims(server) == before + 1


async def test_more_sessions_wake_at_once_than_the_pool_holds(server: Server) -> None:
    """Six hibernated sessions, a pool of two: each request waits until its own file is there; none is refused."""
    sessions = [asleep(server, f"note-{index}") for index in range(6)]
    before = claims(server)
    answers = await all_at_once([(server.url, each) for each in sessions])
    assert said(answers) == [f"note-{index}" for index in range(6)]
    assert claims(server) == before + 6


def test_sandbox_killed_mid_request_is_502_once_and_keeps_its_files(server: Server, cluster: Cluster) -> None:
    """The request under way gets an error with its session's id; the next one gets a fresh pod and the files."""
    session = server.session()
    server.run(session, "echo kept > note")
    cluster.kubelet.notice_time = 0.5  # the gateway knows before the API server does
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(server.run(session, "touch started; sleep 60")))
    asking.start()
    uid = pod_of(server, cluster, session)["metadata"]["uid"]
    wait_until((cluster.kubelet.volume(uid, "workspace") / "started").exists, "the command runs")
    cluster.call(lambda: cluster.kubelet.kill(uid))
    asking.join()
    assert (answers[0].status_code, answers[0].headers["x-session-id"]) == (502, session)
    told = server.run(session, "cat note")
    assert told.status_code == 200, told.text
    assert told.json()["stdout"] == "kept\n"
    assert told.headers["x-wakegate-restored"].startswith("20")


def test_token_for_one_pod_is_refused_by_another(server: Server, cluster: Cluster) -> None:
    """Even one that the gateway's own key signed: the audience is the pod's UID."""
    one, other = (pod_of(server, cluster, server.session()) for _ in range(2))
    ((name, pem),) = cluster.call(lambda: private_keys(cluster)).items()
    bearer = token(name.removesuffix(".pem"), pem, one["metadata"]["uid"])
    assert [ask(pod["status"]["podIP"], bearer) for pod in (one, other)] == [200, 401]
