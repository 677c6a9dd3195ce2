"""What agents need of this machine: where the files of their revisions are, and what it has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gateway.agents.catalog import AgentCatalog
from gateway.agents.manifests import compiler
from gateway.agents.quotas import Machine
from gateway.core.model import Runtime
from gateway.core.settings import Settings
from gateway.runtimes.catalog import StaticCatalog


def make_catalog(settings: Settings, runtimes: Sequence[Runtime]) -> AgentCatalog:
    """The runtimes of the manifests, and those of agents beside them."""
    return AgentCatalog(
        StaticCatalog(runtimes),
        compiler(lambda digest: folder(settings, digest), lambda digest: folder(settings, digest)),
    )


def folder(settings: Settings, digest: str) -> str:
    """Where the files of a digest are."""
    return str((settings.state_dir / "agents" / digest.removeprefix("sha256:")).absolute())


def has_files(settings: Settings, digest: str) -> bool:
    """Whether they are all there: a folder has its name only once it is complete."""
    return Path(folder(settings, digest)).is_dir()


def this_machine() -> Machine:
    """Cores, memory in bytes, and GPUs by their device nodes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    nodes = [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]
    return Machine(float(os.cpu_count() or 1), memory, len(nodes))
