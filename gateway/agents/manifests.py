"""Makes manifests of what the API takes, checks them, and makes runtimes of them. Pure.

An agent of the API comes from whoever may create one, and not from the operator's files: it can name no file of this
machine, no secret of the gateway's, and no more egress than its tenant was given (gateway/api/agents.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from gateway.agents.model import MAX_MANIFEST_BYTES, Agent, Revision
from gateway.core.errors import BadRequestError
from gateway.core.model import Kind, Mount, Runtime
from gateway.runtimes.manifest import parse_runtime
from gateway.runtimes.schema import API_VERSION

PACKAGES_FOLDER = "/opt/agent"  # where an agent sees the packages of its environment
FILES_FOLDER = "/app"  # and its files
# As the schema's: these two are required there, since AgentCube's controller wants them.
_DEFAULTS: Mapping[str, Any] = {"sessionTimeout": "15m", "maxSessionDuration": "8h"}


def manifest_of(namespace: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """An AgentRuntime's document."""
    return {
        "apiVersion": API_VERSION,
        "kind": Kind.AGENT_RUNTIME.value,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {**_DEFAULTS, **spec},
    }


def compiled(manifest: Mapping[str, Any]) -> Runtime:
    """The runtime that a manifest describes. Raises BadRequestError with every problem."""
    if len(orjson.dumps(manifest)) > MAX_MANIFEST_BYTES:
        raise BadRequestError(f"spec: larger than {MAX_MANIFEST_BYTES} bytes")
    problems: list[str] = []
    runtime = parse_runtime(manifest, "agent", problems, engine="local", files=None)
    if runtime is None or problems:
        raise BadRequestError("; ".join(problem.removeprefix("agent: ") for problem in problems) or "spec: no agent")
    return runtime


def compiler(bundle_folder: Callable[[str], str], packages_folder: Callable[[str], str]) -> Callable[..., Runtime]:
    """What makes a revision's runtime. The two name the folders of this machine that have a digest's files."""

    def compile_revision(_: Agent, revision: Revision) -> Runtime:
        runtime = compiled(revision.manifest)
        if revision.bundle:
            assert runtime.agent is not None
            runtime = replace(runtime, agent=replace(runtime.agent, source=bundle_folder(revision.bundle)))
        if revision.environment:
            runtime = replace(
                runtime,
                mounts=(*runtime.mounts, Mount(PACKAGES_FOLDER, source=packages_folder(revision.environment))),
                environment={"PYTHONPATH": PACKAGES_FOLDER, **runtime.environment},
            )
        return runtime

    return compile_revision


def cluster_compiler(read: Callable[[Mapping[str, Any]], Runtime]) -> Callable[..., Runtime]:
    """What makes a revision's runtime in a cluster, where its pods are the custom resource's. `read`: a manifest's."""

    def compile_revision(agent: Agent, revision: Revision) -> Runtime:
        metadata = {**revision.manifest["metadata"], "uid": agent.uid}
        runtime = read({**revision.manifest, "metadata": metadata})
        code = ((FILES_FOLDER, revision.bundle), (PACKAGES_FOLDER, revision.environment))
        runtime = replace(runtime, code=tuple(each for each in code if each[1]))
        if revision.environment:
            runtime = replace(runtime, environment={"PYTHONPATH": PACKAGES_FOLDER, **runtime.environment})
        return runtime

    return compile_revision


def merged(old: Any, change: Any) -> Any:
    """A JSON merge patch (RFC 7396): null removes a field, lists are replaced whole."""
    if not isinstance(change, Mapping):
        return change
    result = dict(old) if isinstance(old, Mapping) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result
