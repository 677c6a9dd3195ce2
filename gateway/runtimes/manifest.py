"""Reads runtimes from YAML: AgentCube's manifests, unchanged, with the optional section `spec.wakegate`.

Checks all files and reports all problems at once, each with file, field path and what is expected; if there is one,
nothing starts. Types and bounds of fields are in schema.py; the checks here are those that a schema cannot express.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.core.errors import SettingsError
from gateway.core.model import HibernationMode, Kind, Limits, Requests, Runtime, RuntimeKey
from gateway.runtimes.agent import CONTAINER, first_container, parse_agent, several, target_ports
from gateway.runtimes.documents import find_files, read_documents
from gateway.runtimes.fields import Reader, named
from gateway.runtimes.files import Files
from gateway.runtimes.invocation import read_invocations
from gateway.runtimes.mounts import read_mounts
from gateway.runtimes.schema import API_VERSION
from gateway.runtimes.secrets import read_secrets
from gateway.runtimes.sections import (
    NO_PROCESSES,
    check_reserved,
    is_module,
    read_egress,
    read_egress_limits,
    read_environment,
    read_limits,
    read_max_resources,
    read_pool,
    read_ports,
    read_preload,
    read_public_ports,
    read_python,
    read_requests,
)
from gateway.runtimes.skills import read_skills
from gateway.runtimes.tools import parse_tools
from gateway.runtimes.validation import checked


def parse_modules(text: str) -> tuple[str, ...]:
    """Parse names of modules such as `numpy,matplotlib.pyplot`. Raises ValueError with the first invalid one."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if not is_module(name):
            raise ValueError(f"expected Python modules such as numpy,pandas, not {name[:80]!r}")
    return names


def load_runtimes(
    paths: Iterable[Path],
    *,
    engine: str = "local",
    sources: Iterable[Path] = (),
    environment: Path | None = None,
    private: Iterable[Path] = (),
) -> list[Runtime]:
    """Read manifests from files and folders (*.yaml, *.yml, by name; folders are not entered recursively).

    `sources`: folders besides the manifest's own from which it may take files. `environment`: the operator's own Python
    environment, which manifests may name. `private`: folders that no manifest may show to sandboxes.

    Documents of other kinds in the same files are skipped: a manifest often includes a Namespace or a Secret.

    Raises:
        SettingsError: with every problem in every file.
    """
    problems: list[str] = []
    found: dict[RuntimeKey, tuple[str, Runtime]] = {}
    allowed, hidden = tuple(sources), tuple(private)
    for file in find_files(paths, problems):
        for where, document in read_documents(file, problems):
            files = Files(file.parent, allowed, environment, hidden)
            runtime = parse_runtime(document, where, problems, engine=engine, files=files)
            if runtime is None:
                continue
            if runtime.key in found:
                problems.append(f"{where}: metadata.name: {runtime.key} is already defined in {found[runtime.key][0]}")
            else:
                found[runtime.key] = (where, runtime)
    if not problems and not found:
        problems.append(
            f"{', '.join(map(str, paths))}: no runtime found; expected kind: CodeInterpreter or kind: AgentRuntime"
        )
    if problems:
        raise SettingsError(problems)
    return [runtime for _, runtime in found.values()]


def parse_runtime(
    document: Any, where: str, problems: list[str], *, engine: str = "local", files: Files | None = None
) -> Runtime | None:
    """Parse one document for an engine (`local`, `kubernetes`). `files`: those that it may name, None for none.

    Appends to `problems`. Returns None if it is invalid, or of another kind.
    """
    # All checks run whatever they find: a runtime is made only if none of them has added a problem.
    before = len(problems)
    kind = _kind_of(document, where, problems)
    if kind is None:
        return None
    reader = Reader(where, problems)
    clean = checked(document, kind, engine, reader)
    spec, in_cluster = clean["spec"], engine == "kubernetes"
    runtime = _common(clean, kind, files, reader, in_cluster=in_cluster)
    if kind is Kind.CODE_INTERPRETER:
        runtime = _interpreter(runtime, spec, reader, in_cluster=in_cluster)
        if skills := spec.get("wakegate", {}).get("skills"):
            runtime = read_skills(runtime, skills, files, reader)
    elif in_cluster:
        # In a cluster an agent's container has no picod, so nothing there checks tokens or exports files. Its pod is
        # made of the manifest directly (provider/kubernetes/template.py).
        limits = _limits_of_container(spec)
        runtime = replace(runtime, limits=limits, auth=False, hibernation=HibernationMode.OFF, code_context="off")
    else:
        runtime = _local_agent(runtime, spec, files, reader)
    if kind is Kind.AGENT_RUNTIME:
        runtime = replace(runtime, invocations=read_invocations(spec.get("wakegate", {}), reader))
    return replace(runtime, manifest=dict(document)) if len(problems) == before else None


def _kind_of(document: Any, where: str, problems: list[str]) -> Kind | None:
    """The kind of a runtime; None for other kinds. A wrong apiVersion is a problem, but the rest is still checked."""
    if not isinstance(document, Mapping):
        problems.append(f"{where}: expected a mapping, got {named(document)}")
        return None
    kind = document.get("kind")
    # Another kind is not a mistake: one file often has a Namespace, a Secret and a runtime. None at all is one.
    if kind not in (Kind.CODE_INTERPRETER, Kind.AGENT_RUNTIME):
        if "kind" not in document:
            problems.append(f"{where}: kind: missing; expected CodeInterpreter or AgentRuntime")
        return None
    if document.get("apiVersion") != API_VERSION:
        problems.append(f"{where}: apiVersion: expected {API_VERSION}, got {named(document.get('apiVersion'))}")
    return Kind(kind)


def _common(
    document: Mapping[str, Any], kind: Kind, files: Files | None, reader: Reader, *, in_cluster: bool
) -> Runtime:
    """Read the fields that both kinds have."""
    metadata, spec = document["metadata"], document["spec"]
    extra = spec.get("wakegate", {})
    agent = kind is Kind.AGENT_RUNTIME
    check_reserved(spec.get("podTemplate" if agent else "template", {}), kind, reader)
    ports = target_ports(
        spec.get("targetPort" if agent else "ports", ()), "spec.targetPort" if agent else "spec.ports", reader
    )
    reachable = read_ports(extra, reader)
    egress = read_egress(extra.get("egress", ()), reader)
    return Runtime(
        key=RuntimeKey(metadata.get("namespace", "default"), metadata.get("name", "invalid"), kind),
        max_resources=read_max_resources(extra, reader, in_cluster=in_cluster),
        session_timeout=reader.duration(spec, "sessionTimeout", "spec.", 900.0),
        max_session_duration=reader.duration(spec, "maxSessionDuration", "spec.", 28800.0),
        pool=read_pool(spec, extra, reader),
        python=None if in_cluster else read_python(extra.get("python", ""), files, reader),
        python_roots=tuple(map(str, files.roots)) if files else (),
        mounts=read_mounts(extra.get("mounts", ()), files, reader, in_cluster=in_cluster),
        ports=reachable,
        public_ports=read_public_ports(extra, reachable, reader),
        tools=parse_tools(extra.get("tools", ()), "spec.wakegate.tools", files, reader.problem),
        egress=egress,
        secrets=read_secrets(extra.get("secrets", ()), egress, files, reader, in_cluster=in_cluster, agent=agent),
        egress_limits=read_egress_limits(extra, reader),
        target_ports=several(ports),
    )


def _interpreter(runtime: Runtime, spec: Mapping[str, Any], reader: Reader, *, in_cluster: bool) -> Runtime:
    """Read a CodeInterpreter's own fields: image, variables and resources are in `spec.template`."""
    place, template, extra = "spec.template.", spec.get("template", {}), spec.get("wakegate", {})
    if in_cluster and (processes := extra.get("limits", {}).get("processes")) is not None:
        # RLIMIT_NPROC would count all pods of a node that run as the same user, and picod may write no control group.
        reader.problem("spec.wakegate.limits.processes", NO_PROCESSES, processes)
    interval = None
    if "checkpointInterval" in extra:
        interval = reader.duration(extra, "checkpointInterval", "spec.wakegate.", 0.0, zero=True)
    return replace(
        runtime,
        image=template.get("image", ""),
        environment=read_environment(
            template.get("environment", ()), f"{place}environment", reader, references=in_cluster
        ),
        limits=read_limits(template.get("resources", {}), place, extra, reader),
        requests=Requests() if in_cluster else read_requests(template.get("resources", {}), place, reader),
        auth=spec.get("authMode", "picod") == "picod",
        hibernation=HibernationMode(extra.get("hibernation", HibernationMode.STATE)),
        checkpoint_interval=interval,
        preload=read_preload(extra, reader),
        code_context=extra.get("codeContext", ""),
    )


def _limits_of_container(spec: Mapping[str, Any]) -> Limits:
    """The limits of an agent in a cluster, whose pod the API server checks and not our schema: it may be anything."""
    pod = _mapping(_mapping(spec.get("podTemplate")).get("spec"))
    containers = pod.get("containers")
    first = _mapping(containers[0]) if isinstance(containers, list) and containers else {}
    limits = _mapping(_mapping(first.get("resources")).get("limits"))
    # What is no quantity the API server refuses in its own words, and until then the defaults do.
    return read_limits({"limits": limits}, CONTAINER, {}, Reader("", []))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _local_agent(runtime: Runtime, spec: Mapping[str, Any], files: Files | None, reader: Reader) -> Runtime:
    """Read an AgentRuntime for the local engine: image, variables and resources are in its first container."""
    container = first_container(spec)
    ports = target_ports(spec.get("targetPort", ()), "spec.targetPort", Reader("", []))  # noted when first read
    environment = read_environment(container.get("env", ()), f"{CONTAINER}env", reader, references=False)
    return replace(
        runtime,
        image=container.get("image", ""),
        environment=environment,
        limits=read_limits(container.get("resources", {}), CONTAINER, {}, reader),
        requests=read_requests(container.get("resources", {}), CONTAINER, reader),
        auth=True,  # picod runs before the agent
        hibernation=HibernationMode.OFF,
        code_context="off",
        agent=parse_agent(spec, container, ports, environment, files, reader),
    )
