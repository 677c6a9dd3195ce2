"""A user's way through the quickstart on real nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from agentcube import CodeInterpreterClient

from tests.cluster.gateway import Gateway
from tests.support.kube.whole.cluster import SANDBOXES, WholeCluster
from tests.support.waiting import wait_until

_KILOBYTES = 2_000


def test_sdk_creates_runs_hibernates_wakes_and_ends(
    cluster: WholeCluster, gateway: Gateway, figures: dict[str, object], tmp_path: Path
) -> None:
    """AgentCube's published SDK, unmodified, with a member's key as docs/kubernetes.md makes one."""
    made = gateway.client.post("/v1/keys", json={"role": "member", "tenant": "acme"})
    key = made.raise_for_status().json()["key"]
    with CodeInterpreterClient(
        name="my-interpreter", namespace=SANDBOXES, auth_token=key,
        router_url=cluster.url.replace("//", f"//key:{key}@"), workload_manager_url=cluster.url,
    ) as client:  # fmt: skip
        assert client.run_code("python", "print('Hello')") == "Hello\n"
        assert client.run_code("bash", "echo $((6*7))") == "42\n"
        source, back = tmp_path / "blob", tmp_path / "back"
        source.write_bytes(bytes(range(256)) * 4 * _KILOBYTES)
        client.upload_file(str(source), "data/blob.bin")
        client.download_file("data/blob.bin", str(back))
        assert back.read_bytes() == source.read_bytes()
        client.write_file("kept", "note.txt")
        session = str(client.session_id)
        slept = _timed(lambda: gateway.client.post(f"/v1/sessions/{session}/hibernate").raise_for_status())
        woke = _timed(lambda: client.execute_command("cat note.txt"))
        assert client.execute_command("cat note.txt") == "kept"
        figures["hibernate with 2 MB of files, s"] = slept
        figures["wake with 2 MB of files, s"] = woke


def test_claims_of_warm_pods_and_cold_starts(gateway: Gateway, figures: dict[str, object]) -> None:
    """How long a session takes to begin, each way."""
    warm, cold = [], []
    for _ in range(5):
        gateway.wait_for_pool()
        began = time.perf_counter()
        session = gateway.session()
        warm.append(time.perf_counter() - began)
        gateway.end(session)
    gateway.wait_for_pool()
    sessions = []
    for _ in range(6):
        began = time.perf_counter()
        sessions.append(gateway.session())
        cold.append(time.perf_counter() - began)
    gateway.end(*sessions)
    figures["session from the warm pool, median of 5, ms"] = round(sorted(warm)[2] * 1000)
    figures["six sessions in a row, slowest, s"] = round(max(cold), 2)


def test_kubectl_shows_the_runtime_and_its_pool(cluster: WholeCluster, gateway: Gateway) -> None:
    """As the documentation says, once the runtime is applied as an object."""

    def shown() -> bool:
        lines = cluster.kubectl("get", "codeinterpreters", "-n", SANDBOXES).splitlines()
        return len(lines) == 2 and lines[1].split()[:2] == ["my-interpreter", "True"]

    gateway.wait_for_pool()
    wait_until(shown, "kubectl shows that the runtime is ready", within=60)


def _timed(does: Callable[[], object]) -> float:
    began = time.perf_counter()
    does()
    return round(time.perf_counter() - began, 2)
