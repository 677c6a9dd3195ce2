"""What agents need of this machine: where the files of their revisions are, and what it has."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from gateway.agents.bundles import BundleStore
from gateway.agents.catalog import AgentCatalog
from gateway.agents.environments import EnvironmentBuilder, PackageIndex, builder_runtime
from gateway.agents.manifests import cluster_compiler, compiler
from gateway.agents.quotas import Machine
from gateway.core.agent_objects import AgentObjects
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller
from gateway.core.model import Runtime
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


def make_cluster_catalog(base: RuntimeCatalog, objects: AgentObjects) -> AgentCatalog:
    """The runtimes of a cluster, and those of agents beside them."""
    return AgentCatalog(base, cluster_compiler(objects.read), hosted=True)


def make_environments(
    settings: Settings, bundles: BundleStore, lifecycle: Lifecycle, caller: SandboxCaller
) -> EnvironmentBuilder:
    """What installs the packages of agents, for the python3 that their sandboxes have."""
    python = os.path.realpath(settings.sandbox_python / "bin" / "python3")
    return EnvironmentBuilder(bundles, lifecycle, caller, PackageIndex(settings.package_index), python)


def make_bundles(settings: Settings) -> BundleStore:
    """Where the files of agents are."""
    return BundleStore(settings.state_dir / "agents")


A_CLUSTER = Machine(math.inf, math.inf, math.inf)
"""Its nodes come and go: what fits none of them stays Pending, with the scheduler's reason."""


def this_machine() -> Machine:
    """Cores, memory in bytes, and GPUs by their device nodes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    nodes = [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]
    return Machine(float(os.cpu_count() or 1), memory, len(nodes))
