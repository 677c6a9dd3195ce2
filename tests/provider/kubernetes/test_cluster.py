"""What a gateway does in a cluster besides its provider: rights, statuses, keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.clock import SystemClock
from gateway.core.model import Kind, Limits, RuntimeKey, SessionId
from gateway.core.settings import Settings
from gateway.doctor.cluster import check_cluster
from gateway.egress.gate import EgressGate
from gateway.provider.kubernetes import rights
from gateway.provider.kubernetes.egress_authority import SharedAuthority
from gateway.provider.kubernetes.engine import Cluster as Joined
from gateway.testing import ManualClock
from tests.support.kube.clusters import REAL, make_cluster
from tests.support.kube.joined import joined
from tests.support.kube.opened import custom
from tests.support.kube.served import enforce_roles
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.waiting import eventually

INTERPRETERS = BY_PLURAL["codeinterpreters"]
KEY = RuntimeKey("default", "one")
SPEC: dict[str, Any] = {"warmPoolSize": 2, "template": {"image": "wakegate/picod:1"}}


def spec(cluster: Cluster, **changes: Any) -> None:
    """Change a runtime's spec as `kubectl apply` does."""
    new = {"spec": {**SPEC, **changes}}
    cluster.objects.update(INTERPRETERS, "default", "one", lambda present: {**present, **new})


async def pool_is(one: Joined, warm: int) -> None:
    """Wait until the provider serves the runtime and has its pods."""

    def full() -> bool:
        pool = one.provider._pools[KEY]
        return pool.runtime is not None and len(pool.ready) == warm == len(pool.warm)

    await eventually(full, f"{warm} warm pods")


async def renew_authority(one: Joined, folder: Path, gate: EgressGate) -> None:
    """As a gateway that starts five years later does."""
    clock = ManualClock(SystemClock().now() + 5 * 365 * 86400)
    await SharedAuthority(one._api, folder, clock, "wakegate", ["default"], gate.bundle).open()


async def test_gateway_uses_every_right_that_its_roles_give_and_no_other(tmp_path: Path) -> None:
    """A gateway's life in short, under the shipped Roles: nothing is refused, and nothing they grant is left unused."""
    async with make_cluster(hollow=True).running() as cluster:
        enforce_roles(cluster)
        custom(cluster, "one", {**SPEC, "wakegate": {"egress": ["dns"]}})
        custom(cluster, "agent", AGENT, Kind.AGENT_RUNTIME)
        gate = EgressGate(authority=tmp_path / "a" / "egress")
        async with joined(cluster, tmp_path / "a", gate=gate) as one:
            await pool_is(one, 2)
            warm = await one.provider.claim(KEY, SessionId("s1"))
            await one.provider.resize_sandbox(warm.id, Limits(memory=2 << 30, cpus=1.0))
            await pool_is(one, 2)
            await one.provider.resize(KEY, 0)
            await pool_is(one, 0)
            cold = await one.provider.claim(KEY, SessionId("s2"))
            # As for a pod that ended without a reason in its status.
            await one.provider._endings._publish_explained(
                one.provider._pools[KEY], one.provider.pods("default").items[cold.id]
            )
            await one.provider.release(warm.id)
            await one.provider.release(cold.id)
            spec(cluster, wakegate={"egress": ["10.0.0.0/8"]}, template={"image": "wakegate/picod:2"})
            await eventually(lambda: ("update", "deployments") in asked(cluster), "the new version is applied")
            await one.provider.resize(KEY, 1)
            await pool_is(one, 1)
            await stale_claim(one)
            await one._write_statuses(one.provider)
            one.sharing._rotation = 1e-9
            await one.sharing.turn()
            await renew_authority(one, tmp_path / "a" / "egress", gate)
            agent = await one.agents.create("default", "mine", AGENT, {"revision": 1})
            agent = await one.agents.replace(agent, {**agent.spec, "warmPoolSize": 1}, {"revision": 2})
            await one.agents.delete(agent)
            settings = Settings(state_dir=tmp_path / "a", engine="kubernetes", kubeconfig=tmp_path / "a" / "kubeconfig")
            findings = [finding async for finding in check_cluster(settings)]
            assert not [str(finding) for finding in findings if finding.status == "fail"]
            cluster.delete("codeinterpreters", "default", "one")
            await eventually(lambda: ("delete", "deployments") in asked(cluster), "its pool goes")
            await eventually(lambda: ("delete", "networkpolicies") in asked(cluster), "its policy goes")
        used = {(each.group, each.resource, each.verb) for each in cluster.api.asked}
        named = {(each.group, each.resource, each.verb, each.name) for each in cluster.api.asked}
        for right in (*rights.SANDBOXES, *rights.GATEWAY):
            for verb in right.verbs:
                if right.name:
                    assert (right.group, right.resource, verb, right.name) in named, (verb, right)
                assert (right.group, right.resource, verb) in used, (verb, right)


@pytest.mark.skipif(REAL, reason="tests/provider/kubernetes/test_control_plane.py has a real deletion that waits")
async def test_runtime_whose_deletion_waits_is_not_served_and_its_pool_not_made_again(tmp_path: Path) -> None:
    """As with --cascade=foreground: the object is still there, and its Deployment is to go first."""
    async with make_cluster(hollow=True).running() as cluster:
        custom(cluster, "one", SPEC)
        async with joined(cluster, tmp_path / "a") as one:
            await pool_is(one, 2)
            kind = BY_PLURAL["codeinterpreters"]
            ending = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]}
            cluster.objects.update(
                kind, "default", "one", lambda present: {**present, "metadata": {**present["metadata"], **ending}}
            )
            await eventually(lambda: one.catalog.get(KEY) is None, "it is not served")
            await eventually(lambda: not cluster.objects.all(BY_PLURAL["deployments"], "default"), "its pool goes")
            await eventually(lambda: not cluster.pods(**{"wakegate.io/runtime": "one"}), "its warm pods go")


async def test_status_of_an_earlier_leader_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    """A former leader, cut off while another took over, cannot write statuses: its write is refused."""
    async with make_cluster(hollow=True).running() as cluster:
        custom(cluster, "one", SPEC)
        async with joined(cluster, tmp_path / "a") as old, joined(cluster, tmp_path / "b") as new:
            for each in (old, new):
                await pool_is(each, 2)
            await old._write_statuses(old.provider)
            before = old.catalog.declared[KEY]
            await eventually(lambda: new.catalog.declared[KEY].status == status(cluster), "the new one knows it")
            await new.provider.resize(KEY, 0)
            await pool_is(new, 0)
            await new._write_statuses(new.provider)
            newest = status(cluster)
            assert newest["pool"]["target"] == 0
            await eventually(lambda: old.catalog.declared[KEY].status == newest, "the old one would know it, too")
            old.catalog.declared[KEY] = replace(before, status={})  # but was cut off before
            conflicts = cluster.api.conflicts
            with larger(old):
                await old._write_statuses(old.provider)
            assert cluster.api.conflicts == conflicts + 1
            assert status(cluster) == newest


async def test_status_that_cannot_be_written_stops_no_other(tmp_path: Path) -> None:
    """One runtime that changed in this moment, and one that was deleted: the third still gets its status."""
    async with make_cluster(hollow=True).running() as cluster:
        for name in ("a-changed", "b-deleted", "c-well"):
            custom(cluster, name, {**SPEC, "warmPoolSize": 0})
        async with joined(cluster, tmp_path / "a") as one:
            changed = one.catalog.declared[RuntimeKey("default", "a-changed")]
            one.catalog.declared[changed.key] = replace(changed, version="1")
            gone = one.catalog.declared[RuntimeKey("default", "b-deleted")]
            cluster.delete("codeinterpreters", "default", "b-deleted")
            await eventually(lambda: gone.key not in one.catalog.declared, "the deletion is seen")
            one.catalog.declared = {gone.key: gone, **one.catalog.declared}
            await one._write_statuses(one.provider)
            assert status(cluster, "c-well")["conditions"][0]["reason"] == "NoSandboxYet"


def status(cluster: Cluster, name: str = "one") -> Any:
    return cluster.objects.get(INTERPRETERS, "default", name).get("status")


def asked(cluster: Cluster) -> set[tuple[str, str]]:
    return set(cluster.api.counts)


@contextmanager
def larger(one: Joined) -> Iterator[None]:
    """As if the pool were what it was before."""
    pool = one.provider._pools[KEY]
    assert pool.deployment is not None
    now, pool.deployment = pool.deployment, replace(pool.deployment, replicas=2)
    yield
    pool.deployment = now


async def stale_claim(one: Joined) -> None:
    """The only candidate is newer than the watch's copy: it is read again, and then bound."""
    (pod,) = one.provider._pools[KEY].warm.values()
    late = replace(pod, version="1")
    one.provider.pods("default").items[pod.uid] = one.provider._pools[KEY].warm[pod.uid] = late
    assert (await one.provider.claim(KEY, SessionId("s3"))).id == pod.uid


AGENT: dict[str, Any] = {
    "targetPort": [{"port": 80, "protocol": "HTTP"}],
    "podTemplate": {"spec": {"containers": [{"name": "agent", "image": "registry.example/agent:1"}]}},
}
