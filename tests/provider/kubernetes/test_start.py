"""A gateway of a cluster that starts before its Redis: alive, not ready, and serving once Redis is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from gateway.cli.command import TERMINATED
from tests.support.kube.clusters import in_thread
from tests.support.kube.served import INTERPRETER, enforce_roles, flags_for
from tests.support.kube.simulator import Cluster
from tests.support.redis_server import RedisServer, free_port
from tests.support.serve import serve
from tests.support.waiting import LIMIT_S, wait_until


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with in_thread() as one:
        one.call(lambda: one.create("codeinterpreters", "my-interpreter", namespace="default", spec=INTERPRETER))
        enforce_roles(one)
        yield one


def answers(port: int, path: str) -> httpx.Response | None:
    """What is answered there; None while nobody listens."""
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=LIMIT_S)
    return None


def test_gateway_waits_for_redis_alive_and_not_ready(tmp_path: Path, cluster: Cluster) -> None:
    redis, port = RedisServer(tmp_path / "redis"), free_port()
    try:
        with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
            flags = [*flags_for(cluster, tmp_path), "--store", redis.url]
            opening = pool.submit(stack.enter_context, serve(tmp_path / "state", *flags, port=port))
            wait_until(lambda: answers(port, "/healthz") is not None, "it answers health checks")
            alive, ready, other = (answers(port, path) for path in ("/healthz", "/readyz", "/v1/sessions"))
            assert alive is not None
            assert ready is not None
            assert other is not None
            assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
            assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
            assert f"127.0.0.1:{redis.port}" in ready.json()["reasons"][0]
            assert (other.status_code, other.headers["retry-after"]) == (503, "1")
            assert not opening.done()
            redis.start()
            server = opening.result(LIMIT_S)
            assert server.run(server.session(), "echo here").json()["stdout"] == "here\n"
            assert server.log.read_text().count("waiting for it") == 1
    finally:
        redis.kill()


def test_gateway_that_waits_for_redis_ends_in_order(tmp_path: Path, cluster: Cluster) -> None:
    """SIGTERM ends it at once, and no connection to the API server is left open."""
    port = free_port()
    argv = [sys.executable, "-m", "gateway", "serve", "--port", str(port), "--state-dir", str(tmp_path / "state")]
    argv += [*flags_for(cluster, tmp_path), "--store", f"redis://127.0.0.1:{free_port()}/0"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: answers(port, "/healthz") is not None, "it answers health checks")
            process.terminate()
            _, errors = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == TERMINATED
    assert "nclosed" not in errors
    assert "Traceback" not in errors
