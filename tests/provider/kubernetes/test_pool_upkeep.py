"""What keeps warm pools as they are wanted, where several of its hands meet, and what a look at a large pool costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.model import Runtime
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.pod import Pod, read_pod
from gateway.provider.kubernetes.pool import Deployment, Pool
from tests.support.kube.opened import KEY, Opened, opened, runtime
from tests.support.kube.simulator.kubelet import hollow_pod
from tests.support.kube.simulator.objects import DEPLOYMENTS
from tests.support.waiting import eventually

NAME = names.deployment_name(KEY)


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Opened]:
    async with opened(tmp_path) as one:
        yield one


@pytest.mark.parametrize("wanted", [[], [runtime(1, image="other:2")]], ids=["dropped", "changed"])
async def test_missing_deployment_is_made_as_it_is_wanted_when_its_turn_comes(
    kube: Opened, wanted: list[Runtime]
) -> None:
    """A Deployment was deleted by hand while its runtime was dropped or changed: the old one does not come back."""
    await kube.provider.apply([runtime(1)])
    pool = kube.provider._pools[KEY]
    await pool.changing.acquire()
    kube.cluster.delete("deployments", "default", NAME)
    await eventually(lambda: pool.deployment is None, "the watch says that it is gone")
    applied = asyncio.create_task(kube.provider.apply(wanted))
    await asyncio.sleep(0)  # so that it waits for its turn
    pool.changing.release()
    await kube.provider._deployments.restore(KEY, pool)  # which is now, before the other has run
    await applied
    there = kube.cluster.objects.all(DEPLOYMENTS)
    images = [each["spec"]["template"]["spec"]["containers"][0]["image"] for each in there]
    assert images == [each.image for each in wanted]


async def test_deployment_that_is_being_made_is_not_missing(kube: Opened, caplog: pytest.LogCaptureFixture) -> None:
    """The housekeeping looks while the API server is slow with a new Deployment: it leaves that alone, and is quiet."""
    kube.cluster.api.hanging = asyncio.Event()
    applied = asyncio.create_task(kube.provider.apply([runtime(1)]))
    pool = kube.provider._pools[KEY]
    await eventually(lambda: pool.runtime is not None, "it is being made")
    looked = asyncio.create_task(kube.provider._deployments.restore(KEY, pool))
    await asyncio.sleep(0)
    kube.cluster.api.hanging.set()
    await asyncio.gather(applied, looked)
    assert "making it again" not in caplog.text


class Seen(dict[str, Pod]):
    """Pods that count how often all of them are gone through."""

    walks = 0

    def values(self):  # type: ignore[no-untyped-def]
        self.walks += 1
        return super().values()


def warm(number: int, template: str) -> Pod:
    """A warm, ready pod of a template."""
    pod = read_pod({**(made := hollow_pod(KEY.name, number)), "metadata": {**made["metadata"], "resourceVersion": "1"}})
    assert pod is not None
    return replace(pod, claimed=False, template=template, created_at=float(number))


def test_pool_without_a_roll_is_not_gone_through_at_each_event() -> None:
    """Whether pods are outdated is asked at each event: it costs a walk over the pool only while there are some."""
    pool, pods = Pool(), [warm(number, "old") for number in range(20)]
    pool.warm = seen = Seen()
    pool.deployment = Deployment("uid", "default", NAME, "1", 20, "old", "old", "")
    for pod in pods:
        pool.note(None, pod, 0.0, live=True)
        assert pool.outdated() == []
    assert seen.walks == 0
    pool.deployment = replace(pool.deployment, template="new", replicas=22)
    assert pool.outdated() == []  # none of the new version yet, and fewer than wanted of the old one
    pool.deployment = replace(pool.deployment, replicas=20)
    fresh = warm(99, "new")
    pool.note(None, fresh, 0.0, live=True)
    assert pool.outdated() == [pods[-1]]  # as many as are there of the new version, the youngest first
    for _ in pods:
        chosen = pool.take({})
        assert chosen is not None
        assert chosen.template == "old"  # they are about to end anyway
        pool.note(chosen, replace(chosen, claimed=True), 0.0, live=True)
    before = seen.walks
    assert pool.outdated() == []
    assert seen.walks == before
    assert pool.take({}) == fresh
