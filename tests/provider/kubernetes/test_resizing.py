"""A pod that runs gets other limits, over the simulator and over a real control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import ResizeError, ResizeUnsupportedError, SandboxGoneError
from gateway.core.model import Limits, Resources, SandboxId, SessionId
from gateway.provider.kubernetes import resizing
from gateway.provider.kubernetes.pod_resources import quantity, with_size
from tests.support.kube.clusters import REAL
from tests.support.kube.opened import KEY, Opened, opened, runtime

GIB = 1 << 30
CLAIMED = {"wakegate.io/pool": "claimed"}
RUNTIME = runtime(1, max_resources=Resources(memory=8 * GIB))
LARGE = replace(RUNTIME.limits, memory=2 * GIB, cpus=1.5)


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Opened]:
    async with opened(tmp_path) as one:
        await one.provider.apply([RUNTIME])
        yield one


async def claimed(kube: Opened) -> SandboxId:
    return (await kube.provider.claim(KEY, SessionId("session-1"))).id


def resources(kube: Opened) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the claimed pod's container is to have, and what its kubelet says that it has."""
    (pod,) = kube.cluster.pods(**CLAIMED)
    return pod["spec"]["containers"][0]["resources"], pod["status"]["containerStatuses"][0]["resources"]


async def test_pod_that_runs_has_its_new_limits_when_the_call_returns(kube: Opened) -> None:
    """Its requests stay, and it is the same pod; the same again writes nothing, and back it is what it was."""
    sandbox = await claimed(kube)
    before, _ = resources(kube)
    await kube.provider.resize_sandbox(sandbox, LARGE)
    wanted, has = resources(kube)
    assert (quantity(wanted["limits"]["memory"]), quantity(wanted["limits"]["cpu"])) == (2 * GIB, 1.5)
    assert has["limits"] == wanted["limits"]
    assert wanted["requests"] == before["requests"]
    version = kube.cluster.pods(**CLAIMED)[0]["metadata"]["resourceVersion"]
    await kube.provider.resize_sandbox(sandbox, LARGE)
    assert kube.cluster.pods(**CLAIMED)[0]["metadata"]["resourceVersion"] == version
    assert await kube.provider.find(sandbox) is not None

    await kube.provider.resize_sandbox(sandbox, RUNTIME.limits)
    _, has = resources(kube)
    for name in ("cpu", "memory"):
        assert quantity(has["limits"][name]) == quantity(before["limits"][name])


async def test_pod_that_its_node_cannot_give_more_is_as_before(kube: Opened) -> None:
    """What the kubelet says is in the refusal, and it is not done later, when nobody expects it."""
    sandbox = await claimed(kube)
    kube.cluster.kubelet.most_memory = 1.5 * GIB
    with pytest.raises(ResizeError, match=r"Infeasible: Node didn't have enough capacity.*hibernate"):
        await kube.provider.resize_sandbox(sandbox, LARGE)
    kube.cluster.kubelet.most_memory = float("inf")
    wanted, has = resources(kube)
    assert wanted["limits"] == has["limits"]


async def test_resize_that_is_put_off_for_too_long_is_taken_back(kube: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have the room on the node."""
    monkeypatch.setattr(resizing, "TIMEOUT_S", 0.5)
    sandbox = await claimed(kube)
    kube.cluster.kubelet.full = True
    with pytest.raises(ResizeError, match=r"Deferred.*try again later"):
        await kube.provider.resize_sandbox(sandbox, LARGE)
    kube.cluster.kubelet.full = False
    wanted, has = resources(kube)
    assert wanted["limits"] == has["limits"]


async def test_resize_is_refused_with_the_reason_where_it_cannot_be(kube: Opened) -> None:
    """Processes, which the kubelet limits; a sandbox that has ended."""
    sandbox = await claimed(kube)
    with pytest.raises(ResizeUnsupportedError, match="podPidsLimit"):
        await kube.provider.resize_sandbox(sandbox, replace(RUNTIME.limits, processes=300))
    await kube.provider.release(sandbox)
    with pytest.raises(SandboxGoneError):
        await kube.provider.resize_sandbox(sandbox, LARGE)


@pytest.mark.skipif(REAL, reason="the control plane is newer")
async def test_older_cluster_says_what_it_lacks(kube: Opened) -> None:
    """The subresource came with 1.33; without the right to it the server's words are in the refusal."""
    sandbox = await claimed(kube)
    kube.cluster.api.resizes = False
    with pytest.raises(ResizeUnsupportedError, match=r"1\.33"):
        await kube.provider.resize_sandbox(sandbox, LARGE)
    kube.cluster.api.denied.add(("patch", "pods/resize"))
    with pytest.raises(ResizeError, match="cannot patch pods/resize"):
        await kube.provider.resize_sandbox(sandbox, LARGE)


async def test_caller_that_leaves_takes_the_resize_back(kube: Opened) -> None:
    """A cancelled call leaves nothing for later."""
    sandbox = await claimed(kube)
    kube.cluster.kubelet.full = True
    before, _ = resources(kube)
    task = asyncio.ensure_future(kube.provider.resize_sandbox(sandbox, LARGE))
    async with asyncio.timeout(20):
        while resources(kube)[0] == before:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert resources(kube)[0] == before


def test_request_follows_only_where_it_must() -> None:
    """One equal to its limit stays equal, as a pod's quality of service cannot change; none is above its limit."""
    burstable = {"limits": {"memory": "1Gi", "cpu": "1"}, "requests": {"memory": "512Mi", "cpu": "100m"}}
    assert with_size(burstable, Limits(memory=2 * GIB, cpus=2.0)) == {
        "limits": {"memory": str(2 * GIB), "cpu": "2000m"},
        "requests": {"memory": "512Mi", "cpu": "100m"},
    }
    assert with_size(burstable, Limits(memory=GIB // 4, cpus=1.0))["requests"]["memory"] == str(GIB // 4)
    guaranteed = {"limits": {"memory": "1Gi", "cpu": "1"}, "requests": {"memory": "1Gi", "cpu": "1"}}
    grown = with_size(guaranteed, Limits(memory=2 * GIB, cpus=2.0))
    assert grown["limits"] == grown["requests"]
    assert with_size({}, Limits()) == {}
