"""What agents need of this machine: where the files of their revisions are, and what it has."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from gateway.agents.bundles import BundleStore
from gateway.agents.catalog import AgentCatalog
from gateway.agents.code import CodeStore, FolderCode
from gateway.agents.environments import BUILDER, EnvironmentBuilder, PackageIndex, builder_runtime
from gateway.agents.manifests import cluster_compiler, compiler
from gateway.agents.quotas import Machine
from gateway.agents.stored_code import StoredCode
from gateway.core.agent_objects import AgentObjects
from gateway.core.clock import Clock
from gateway.core.documents import DocumentStore
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller, SnapshotStore
from gateway.core.model import Runtime, RuntimeKey
from gateway.core.settings import Settings
from gateway.runtimes.catalog import StaticCatalog
from gateway.sessions.lifecycle import Lifecycle


def make_catalog(settings: Settings, runtimes: Sequence[Runtime]) -> AgentCatalog:
    """The runtimes of the manifests, and those of agents beside them."""
    bundles = make_bundles(settings)

    def folder(digest: str) -> str:
        return str(bundles.path(digest))

    hidden = [builder_runtime(PackageIndex(settings.package_index)), *(s for each in runtimes for s in each.skills)]
    return AgentCatalog(StaticCatalog(runtimes), compiler(folder, folder), hidden=hidden)


def make_cluster_catalog(
    settings: Settings, base: RuntimeCatalog, objects: AgentObjects, skills: Sequence[Runtime]
) -> AgentCatalog:
    """The runtimes of a cluster, and those of agents beside them."""
    builder = [builder_runtime(_index(settings), _cluster_builder(objects))] if installs(settings) else []
    hidden = [*skills, *builder]
    return AgentCatalog(base, cluster_compiler(objects.read), hidden=hidden, hosted=True)


def installs(settings: Settings) -> bool:
    """Whether sandboxes of a cluster reach the package index: by name that is the egress service's to do."""
    return bool(settings.egress_port)


def _index(settings: Settings) -> PackageIndex:
    return PackageIndex(settings.package_index)


def _cluster_builder(objects: AgentObjects) -> RuntimeKey:
    """In a namespace where the gateway makes sandboxes."""
    return RuntimeKey(objects.namespaces[0], BUILDER.name)


def make_environments(
    settings: Settings, code: CodeStore, lifecycle: Lifecycle, caller: SandboxCaller
) -> EnvironmentBuilder:
    """What installs the packages of agents, for the python3 that their sandboxes have."""
    python = os.path.realpath(settings.sandbox_python / "bin" / "python3")
    return EnvironmentBuilder(code, lifecycle, caller, _index(settings), python)


def make_cluster_environments(
    settings: Settings, code: CodeStore, lifecycle: Lifecycle, caller: SandboxCaller, objects: AgentObjects
) -> EnvironmentBuilder | None:
    """The same with picod's image, whose python3 agents run on. None where sandboxes reach no index."""
    if not installs(settings):
        return None
    builder = _cluster_builder(objects)
    return EnvironmentBuilder(code, lifecycle, caller, _index(settings), settings.picod_image, builder)


def make_bundles(settings: Settings) -> BundleStore:
    """Where the files of agents are."""
    return BundleStore(settings.state_dir / "agents")


def make_code(settings: Settings) -> CodeStore:
    """The same, as what makes agents uses it."""
    return FolderCode(make_bundles(settings))


def make_stored_code(settings: Settings, store: SnapshotStore, documents: DocumentStore, clock: Clock) -> StoredCode:
    """Where the files of a cluster's agents are."""
    return StoredCode(store, documents, settings.state_dir / "agents", clock)


A_CLUSTER = Machine(math.inf, math.inf, math.inf)
"""Its nodes come and go: what fits none of them stays Pending, with the scheduler's reason."""


def this_machine(settings: Settings) -> Machine:
    """Cores, memory in bytes, GPUs by their device nodes, and what may be requested."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    nodes = [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]
    cpus = float(os.cpu_count() or 1)
    return Machine(cpus, memory, len(nodes), settings.bookable_cpus or cpus, settings.bookable_memory or memory)
