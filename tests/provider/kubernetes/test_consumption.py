"""What pods use, as the cluster's metrics tell it: each sample once, and none made up."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import SessionId
from gateway.core.usage import SandboxUsage
from gateway.doctor.cluster import check_metrics
from gateway.provider.kubernetes import connect, consumption
from gateway.provider.kubernetes.consumption import read_samples
from tests.support.kube.clusters import REAL
from tests.support.kube.opened import KEY, Opened, opened, runtime
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(REAL, reason="the real control plane has no metrics-server")
LATER = 4e9  # after any pod's creation


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Opened]:
    async with opened(tmp_path) as made:
        await made.provider.apply([runtime(1)])
        await made.full()
        yield made


async def test_sample_counts_once_and_the_next_one_again(one: Opened) -> None:
    """By pod and time, whatever stands there for how many readings; several containers are one sandbox."""
    metrics = one.cluster.api.metrics
    assert metrics is not None
    sandbox = await one.provider.claim(KEY, SessionId("s"))
    metrics.fixed = {sandbox.id: (1.0, "1", "1Mi")}
    assert await one.provider.usage([sandbox.id]) == {}  # from before it was made: of another pod
    metrics.fixed = {sandbox.id: (LATER, "250000000n", "20Ki")}
    assert await one.provider.usage([sandbox.id]) == {sandbox.id: SandboxUsage(cores=0.25, memory_bytes=20480.0)}
    assert await one.provider.usage([sandbox.id]) == {}
    metrics.fixed = {sandbox.id: (LATER - 5, "1", "1Mi")}
    assert await one.provider.usage([sandbox.id]) == {}  # of another replica of metrics-server
    metrics.fixed = {sandbox.id: (LATER + 15, "1500m", "1Mi")}
    assert await one.provider.usage([sandbox.id]) == {sandbox.id: SandboxUsage(cores=1.5, memory_bytes=2.0**20)}
    await one.provider.release(sandbox.id)
    await eventually(lambda: not one.cluster.pods(**{"wakegate.io/pool": "claimed"}), "it is gone")
    assert await one.provider.usage([sandbox.id]) == {sandbox.id: SandboxUsage(cores=1.5)}
    assert await one.provider.usage([sandbox.id]) == {}


async def test_cluster_without_metrics_is_said_once_and_asked_again_later(
    one: Opened, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Metering goes on without, `wakegate doctor` says what is missing."""
    api, metrics = one.cluster.api, one.cluster.api.metrics
    api.metrics = None
    sandbox = await one.provider.claim(KEY, SessionId("s"))
    api.asked.clear()
    with caplog.at_level(logging.INFO, "gateway.provider.kubernetes.consumption"):
        for _ in range(3):
            monkeypatch.setattr(one.provider._consumption, "_asks_again", 0.0)
            assert await one.provider.usage([sandbox.id]) == {}
        assert len([line for line in caplog.messages if "are not counted" in line]) == 1
        client = await connect(one.cluster.kubeconfig(tmp_path))
        try:
            assert "warn  metrics of pods in default: metrics.k8s.io: the server could not" in str(
                await check_metrics(client, "default")
            )
            api.metrics = metrics
            assert "ok    metrics of pods in default: can be read" in str(await check_metrics(client, "default"))
        finally:
            await client.aclose()
        assert metrics is not None
        metrics.fixed = {sandbox.id: (LATER, "1", "1Mi")}
        assert await one.provider.usage([sandbox.id]) == {}  # not asked so soon
        monkeypatch.setattr(one.provider._consumption, "_asks_again", 0.0)
        assert len(await one.provider.usage([sandbox.id])) == 1
        assert "are counted" in caplog.messages[-1]


async def test_metrics_that_do_not_answer_stop_nothing(one: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usage is written every few seconds, and does not wait for them."""
    monkeypatch.setattr(consumption, "_TIMEOUT_S", 0.05)
    sandbox = await one.provider.claim(KEY, SessionId("s"))
    one.cluster.api.latency = 30.0
    try:
        assert await one.provider.usage([sandbox.id]) == {}
    finally:
        one.cluster.api.latency = 0.0


def item(cpu: Any, memory: Any, at: Any = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"metadata": {"name": "a"}, "timestamp": at, "containers": [{"usage": {"cpu": cpu, "memory": memory}}]}


@pytest.mark.parametrize(
    "bad", [{}, 5, item("-1", "1"), item("1e999", "1"), item("1", None), item("1", "1", "soon"), item("1", "1", 5)]
)
def test_items_that_cannot_be_read_are_left_out(bad: Any) -> None:
    """Beside those that can."""
    usage = {"cpu": "1", "memory": "1Ki"}
    good = {"metadata": {"name": "b"}, "timestamp": "2026-01-01T00:00:00Z", "containers": [{"usage": usage}] * 2}
    ((name, sample),) = read_samples({"items": [bad, good]})
    assert (name, sample.cores, sample.memory_bytes) == ("b", 2.0, 2048.0)
