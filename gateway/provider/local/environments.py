"""The environment variables that picod starts with, as picod/wire.py names them. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from gateway.core.model import Agent, Limits, Probe, Runtime, SandboxId
from gateway.provider.local import interpreters
from picod import wire


def for_picod(
    runtime: Runtime,
    name: SandboxId,
    *,
    workspace: str,
    keys_file: str,
    packages: Sequence[str],
    commands: Mapping[str, str],
    code_context: str,
    source: str,
) -> dict[str, str]:
    """picod's whole environment; paths are those that it sees.

    `packages`: folders to import from. `commands`: the whole environment of user code. `code_context`: the setting for
    runtimes that name none. `source`: where an agent's source folder is.
    """
    return {
        "PATH": interpreters.SYSTEM_PATH,
        "LANG": "C.UTF-8",
        "PYTHONPATH": ":".join(packages),
        wire.ENV_AUDIENCE: name,
        wire.ENV_KEYS_FILE: keys_file,
        wire.ENV_AUTH: "jwt" if runtime.auth else "none",
        wire.ENV_WORKSPACE: workspace,
        wire.ENV_CODE_CONTEXT: runtime.code_context or code_context,
        wire.ENV_AGENT: "" if runtime.agent is None else _agent(runtime.agent, source),
        wire.ENV_PRELOAD: ",".join(runtime.preload),
        wire.ENV_PORTS: ",".join(f"{first}-{last}" for first, last in runtime.ports),
        # One variable, not merged with picod's own: PYTHONPATH above would otherwise leak into every command.
        wire.ENV_COMMAND_ENV: json.dumps(dict(commands)),
    }


def for_agent(runtime: Runtime) -> dict[str, str]:
    """Where an agent has to listen, as picod in its sandbox brings the requests; in a cluster at its pod's address."""
    if runtime.agent is None:
        return {}
    probe = runtime.agent.probe
    port = runtime.agent.targets[-1][1] if probe is None or probe.command else probe.port
    return {"AGENT_HOST": "127.0.0.1", "AGENT_PORT": str(port)}


def thread_count(limits: Limits) -> dict[str, str]:
    """For numerical libraries, which start a thread, with 40 MiB of buffers, for each core of the machine."""
    return {} if limits.cpus is None else {"OMP_NUM_THREADS": str(math.ceil(limits.cpus))}


def _agent(agent: Agent, source: str) -> str:
    probe = agent.probe or Probe(port=agent.targets[-1][1])
    return json.dumps({
        "command": agent.command,
        "working_dir": agent.working_dir or (source if agent.source else ""),
        "targets": agent.targets,
        "probe": asdict(probe),
    })  # fmt: skip
