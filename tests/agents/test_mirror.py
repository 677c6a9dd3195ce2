"""An agent's record and its custom resource, changed at both ends, with a gateway that ends in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.agents import rollout
from gateway.agents.catalog import AgentCatalog
from gateway.agents.directory import AgentDirectory
from gateway.agents.manifests import cluster_compiler, manifest_of, merged
from gateway.agents.mirror import Mirror
from gateway.agents.model import Agent, Revision, Strategy
from gateway.core.clock import SystemClock
from gateway.core.errors import ConflictError, PermissionDeniedError, StaleWriteError
from gateway.core.interfaces import SessionStore
from gateway.core.model import Kind, RuntimeKey
from gateway.store.sqlite import SqliteStore
from tests.support.kube.clusters import REAL, make_cluster
from tests.support.kube.joined import joined
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.waiting import eventually

AGENTS = BY_PLURAL["agentruntimes"]
SPEC: dict[str, Any] = {
    "targetPort": [{"port": 8080, "protocol": "HTTP"}],
    "podTemplate": {"spec": {"containers": [{"name": "agent", "image": "registry.example/agent:1"}]}},
}
WRITER = "python-httpx" if REAL else "kubectl"  # what a real server calls who edits
KEY = RuntimeKey("default", "greeter", Kind.AGENT_RUNTIME)


@dataclass
class Place:
    """A gateway's agents, without the loop that follows the cluster: each test says when it looks."""

    cluster: Cluster
    mirror: Mirror
    directory: AgentDirectory
    catalog: AgentCatalog

    def resource(self) -> dict[str, Any]:
        return self.cluster.objects.get(AGENTS, "default", "greeter")

    def edit(self, change: dict[str, Any]) -> None:
        """As `kubectl edit` does, of the spec."""

        def edited(obj: dict[str, Any]) -> dict[str, Any]:
            return {**obj, "spec": merged(obj["spec"], change)}

        self.cluster.objects.update(AGENTS, "default", "greeter", edited)

    @property
    def agent(self) -> Agent:
        (found,) = self.directory.all()
        return found


@asynccontextmanager
async def opened(cluster: Cluster, folder: Path) -> AsyncIterator[Place]:
    """One gateway's."""
    clock = SystemClock()
    store: SessionStore = SqliteStore(folder / "store.db", clock)
    await store.start()
    try:
        async with joined(cluster, folder) as one:
            catalog = AgentCatalog(one.catalog, cluster_compiler(one.agents.read), hosted=True)
            mirror = Mirror(one.agents, clock)

            async def applied() -> None:
                await one.agents.serve(catalog.revisions())

            directory = AgentDirectory(store.documents, catalog, applied, mirror)
            await directory.load()
            yield Place(cluster, mirror, directory, catalog)
    finally:
        await store.aclose()


def revision(number: int, change: dict[str, Any], reason: str = "") -> Revision:
    return Revision(number, manifest_of("default", "greeter", merged(SPEC, change)), 1.0, "ada", reason)


def begun() -> Agent:
    return rollout.begin(Agent("default", "greeter", "acme", 1.0, "ada"), revision(1, {}), Strategy(), 1.0)


def with_size(size: int) -> Any:
    """A change of the warm pool's size, of whatever the agent is when it is written."""

    def decide(agent: Agent) -> Agent:
        manifest = manifest_of("default", "greeter", merged(agent.latest.manifest["spec"], {"warmPoolSize": size}))
        number = rollout.next_number(agent)
        return rollout.begin(agent, Revision(number, manifest, 2.0, "bob"), Strategy(), 2.0)

    return decide


async def test_a_change_never_writes_over_what_kubectl_changed_meanwhile(tmp_path: Path) -> None:
    """It is merged with that, as a revision after it: also where this gateway has not heard of the edit yet."""
    async with make_cluster(hollow=True).running() as cluster, opened(cluster, tmp_path) as one:
        first = await one.directory.create(begun())
        assert first.uid == one.resource()["metadata"]["uid"]
        one.edit({"sessionTimeout": "5m"})
        changed = await one.directory.change(first, with_size(3))
        assert [(each.number, each.by) for each in changed.revisions] == [(1, "ada"), (2, WRITER), (3, "bob")]
        spec = one.resource()["spec"]
        assert (spec["sessionTimeout"], spec["warmPoolSize"]) == ("5m", 3)
        served = one.catalog.get(replace(KEY, revision=3))
        assert served is not None
        assert served.session_timeout == 300.0


async def test_a_gateway_that_ends_between_its_two_writes_leaves_nothing_undone(tmp_path: Path) -> None:
    """The custom resource is ahead of the record: who looks next finishes it, with who made the revision and why."""
    async with make_cluster(hollow=True).running() as cluster:
        async with opened(cluster, tmp_path) as one:
            await one.mirror.create(begun())  # and no record is written
        async with opened(cluster, tmp_path) as two:
            await two.directory.follow()
            assert (two.agent.tenant, two.agent.created_by, two.agent.stable) == ("acme", "ada", 1)
            next_one = rollout.begin(two.agent, revision(2, {"warmPoolSize": 2}, "more"), Strategy(), 2.0)
            await two.mirror.write(next_one)
        async with opened(cluster, tmp_path) as three:
            await three.directory.follow()
            latest = three.agent.latest
            assert (latest.number, latest.by, latest.reason) == (2, "ada", "more")
            before = three.resource()["metadata"]["resourceVersion"]
            await three.directory.follow()
            assert three.resource()["metadata"]["resourceVersion"] == before, "it is written without need"


async def test_a_rollback_is_written_and_an_edit_that_cannot_be_served_is_not_taken_over(tmp_path: Path) -> None:
    """The object shows the revision of new sessions; a spec with a mistake leaves the agent as it was."""
    async with make_cluster(hollow=True).running() as cluster, opened(cluster, tmp_path) as one:
        agent = await one.directory.create(begun())
        agent = await one.directory.change(agent, with_size(4))
        assert one.resource()["spec"]["warmPoolSize"] == 4
        agent = await one.directory.change(agent, lambda each: rollout.go_back(each, "it fails", 3.0))
        assert "warmPoolSize" not in one.resource()["spec"]
        one.edit({"podTemplate": {"spec": {"hostNetwork": True}}})
        await eventually(lambda: _sees(one, "hostNetwork"), "the edit is seen")
        await one.directory.follow()
        assert (one.agent.stable, len(one.agent.revisions)) == (1, 2)
        with pytest.raises(ConflictError, match="hostNetwork"):
            one.directory.require_sound(one.agent)
        undone = await one.directory.change(one.agent, lambda each: rollout.undo(each, 2, "ada", Strategy(), 4.0))
        assert undone.latest.number == 3
        assert one.resource()["spec"]["podTemplate"]["spec"]["hostNetwork"], "it is written over"
        await one.directory.delete(one.agent)
        assert one.cluster.objects.all(AGENTS, "default") == []


async def test_an_agent_that_kubectl_deleted_and_one_of_its_name_that_it_made_are_no_agents(tmp_path: Path) -> None:
    """Also while no gateway looks. A name that is taken is told, and so is a right that is missing."""
    async with make_cluster(hollow=True).running() as cluster:
        async with opened(cluster, tmp_path) as one:
            await one.directory.create(begun())
        cluster.delete("agentruntimes", "default", "greeter")
        cluster.create("agentruntimes", "greeter", namespace="default", spec=SPEC)
        async with opened(cluster, tmp_path) as two:
            assert len(two.directory.all()) == 1
            await two.directory.follow()
            assert two.directory.all() == []
            with pytest.raises(StaleWriteError, match="already"):
                await two.directory.create(begun())
            cluster.delete("agentruntimes", "default", "greeter")
            cluster.api.denied.add(("create", "agentruntimes"))
            with pytest.raises(PermissionDeniedError, match=r"access\.yaml"):
                await two.directory.create(begun())


def _sees(one: Place, word: str) -> bool:
    seen = one.mirror.find(one.agent)
    return seen is not None and word in str(seen.spec)
