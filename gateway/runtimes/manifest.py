"""Runtimes from YAML: AgentCube's manifests as they are, plus our optional `spec.wakegate`.

Reads files or folders, checks everything, and reports every problem at once with file, field path and what would be
right; nothing starts half. Field names and defaults: group runtime.agentcube.volcano.sh/v1alpha1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.core.errors import SettingsError
from gateway.core.model import HIGH_PORTS, HibernationMode, Kind, Limits, PoolMode, PoolSpec, Runtime, RuntimeKey
from gateway.runtimes.agent import first_container, parse_agent, several, target_ports
from gateway.runtimes.documents import find_files, read_documents
from gateway.runtimes.fields import Reader, named
from gateway.runtimes.files import Files
from gateway.runtimes.tools import parse_tools

API_VERSION = "runtime.agentcube.volcano.sh/v1alpha1"
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_VARIABLE = re.compile(r"[^=\0]+")
_MAX_WARM = 10_000


def parse_modules(text: str) -> tuple[str, ...]:
    """Modules as in `numpy,matplotlib.pyplot`. Raises ValueError that names what is none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if not _is_module(name):
            raise ValueError(f"expected Python modules such as numpy,pandas, not {name[:80]!r}")
    return names


def load_runtimes(paths: Iterable[Path], *, engine: str = "local", sources: Iterable[Path] = ()) -> list[Runtime]:
    """Read manifests from files and folders (*.yaml, *.yml, by name; folders are not entered recursively).

    `sources`: folders besides the manifest's own from which it may take files.

    Documents of other kinds in the same files are passed over: a manifest often brings a Namespace or a Secret along.

    Raises:
        SettingsError: with every problem in every file.
    """
    problems: list[str] = []
    found: dict[RuntimeKey, tuple[str, Runtime]] = {}
    allowed = tuple(sources)
    for file in find_files(paths, problems):
        for where, document in read_documents(file, problems):
            files = Files(file.parent, allowed)
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
    """One manifest document for an engine (`local`, `kubernetes`). `files`: those that it may name, None for none.

    Appends to `problems`; None if it is not a runtime or is wrong.
    """
    if not isinstance(document, Mapping):
        problems.append(f"{where}: expected a mapping, got {named(document)}")
        return None
    kind = document.get("kind")
    if kind not in (Kind.CODE_INTERPRETER, Kind.AGENT_RUNTIME):
        if "kind" not in document:
            problems.append(f"{where}: kind: missing; expected CodeInterpreter or AgentRuntime")
        return None
    before = len(problems)
    if document.get("apiVersion") != API_VERSION:
        problems.append(f"{where}: apiVersion: expected {API_VERSION}, got {named(document.get('apiVersion'))}")
    reader = Reader(where, problems)
    metadata = reader.mapping(document, "metadata")
    spec = reader.mapping(document, "spec")
    agent = kind == Kind.AGENT_RUNTIME
    # What an image would be told: of an agent its first container, of a code interpreter the template.
    place, variables = ("spec.podTemplate.spec.containers[0].", "env") if agent else ("spec.template.", "environment")
    template = first_container(spec, reader) if agent else reader.mapping(spec, "template", "spec.", required=True)
    extra = reader.mapping(spec, "wakegate", "spec.")
    # In a cluster an agent's container has no picod: nothing that checks a token, nothing that gives its files. What is
    # in its manifest becomes the pod as it is.
    local_agent = agent and engine != "kubernetes"
    if agent and not local_agent:
        template = {}
    environment = _environment(
        reader.sequence(template, variables, place), place + variables, reader, references=engine == "kubernetes"
    )
    runtime = Runtime(
        key=RuntimeKey(
            reader.label(metadata, "namespace", "metadata.", default="default"),
            reader.label(metadata, "name", "metadata."),
            Kind(kind),
        ),
        image=reader.text(template, "image", place),
        environment=environment,
        limits=_limits(reader.mapping(template, "resources", place), place, extra, reader),
        session_timeout=reader.duration(spec, "sessionTimeout", "spec.", 900.0),
        max_session_duration=reader.duration(spec, "maxSessionDuration", "spec.", 28800.0),
        pool=_pool(spec, extra, reader),
        auth=local_agent
        or (not agent and reader.choice(spec, "authMode", "spec.", ("picod", "none"), "picod") == "picod"),
        hibernation=HibernationMode.OFF
        if agent
        else HibernationMode(
            reader.choice(extra, "hibernation", "spec.wakegate.", tuple(HibernationMode), HibernationMode.STATE)
        ),
        checkpoint_interval=reader.duration(extra, "checkpointInterval", "spec.wakegate.", 0.0) or None,
        python=reader.text(extra, "python", "spec.wakegate.") or None,
        preload=_preload(extra, reader),
        ports=_ports(extra, reader),
        code_context="off" if agent else _code_context(extra, reader),
        tools=parse_tools(
            reader.sequence(extra, "tools", "spec.wakegate."), "spec.wakegate.tools", files, reader.problem
        ),
        target_ports=several(target_ports(reader.sequence(spec, "targetPort" if agent else "ports", "spec."))),
        agent=parse_agent(spec, template, extra, environment, files, reader) if local_agent else None,
        manifest=dict(document),
    )
    return runtime if len(problems) == before else None


def _environment(entries: Sequence[Any], prefix: str, reader: Reader, *, references: bool) -> dict[str, str]:
    """The plain values of a list at `prefix`. With `references`, `valueFrom` passes: manifests make the pods."""
    environment: dict[str, str] = {}
    for index, entry in enumerate(entries):
        path = f"{prefix}[{index}]"
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            reader.problem(path, "expected a mapping with a name and a value", entry)
        elif "valueFrom" in entry and references:
            continue
        elif "valueFrom" in entry:
            reader.problem(
                f"{path}.valueFrom", "only plain values work on the local engine; expected `value`", entry["valueFrom"]
            )
        elif not isinstance(entry.get("value", ""), str) or "\0" in entry.get("value", ""):
            reader.problem(f"{path}.value", "expected text without NUL; put it in quotes", entry["value"])
        else:
            environment[name] = entry.get("value", "")
    return environment


def _limits(resources: Mapping[str, Any], place: str, extra: Mapping[str, Any], reader: Reader) -> Limits:
    limits = reader.mapping(resources, "limits", f"{place}resources.")
    prefix = f"{place}resources.limits."
    own = reader.mapping(extra, "limits", "spec.wakegate.")
    defaults = Limits()
    memory = reader.quantity(limits, "memory", prefix)
    workspace = reader.quantity(own, "workspaceSize", "spec.wakegate.limits.")
    return Limits(
        memory=int(memory) if memory is not None else None,
        cpus=reader.quantity(limits, "cpu", prefix),
        processes=reader.whole(own, "processes", "spec.wakegate.limits.", defaults.processes, low=8, high=1_000_000),
        file_size=int(reader.quantity(own, "fileSize", "spec.wakegate.limits.") or defaults.file_size),
        tmp_size=int(reader.quantity(own, "tmpSize", "spec.wakegate.limits.") or defaults.tmp_size),
        workspace_size=int(workspace) if workspace is not None else None,
    )


def _pool(spec: Mapping[str, Any], extra: Mapping[str, Any], reader: Reader) -> PoolSpec:
    size = reader.whole(spec, "warmPoolSize", "spec.", 0, low=0, high=_MAX_WARM)
    pool = reader.mapping(extra, "pool", "spec.wakegate.")
    prefix = "spec.wakegate.pool."
    least = reader.whole(pool, "min", prefix, 0, low=0, high=_MAX_WARM)
    most = reader.whole(pool, "max", prefix, max(size, least), low=0, high=_MAX_WARM)
    if most < least:
        reader.problem(prefix + "max", f"must not be below min ({least})", most)
    miss = pool.get("targetMissRate", 0.01)
    if isinstance(miss, bool) or not isinstance(miss, int | float) or not 0 < miss < 1:
        reader.problem(prefix + "targetMissRate", "expected a number between 0 and 1, e.g. 0.01", miss)
        miss = 0.01
    modes = tuple(mode.value for mode in PoolMode)
    # A manifest of AgentCube's own keeps the pool it asks for; one that speaks of our pool wants it sized.
    mode = PoolMode(reader.choice(pool, "mode", prefix, modes, PoolMode.PREDICTIVE if pool else PoolMode.FIXED))
    return PoolSpec(size=size, mode=mode, min=least, max=most, target_miss_rate=float(miss))


def _code_context(extra: Mapping[str, Any], reader: Reader) -> str:
    if "codeContext" not in extra:
        return ""
    return reader.choice(extra, "codeContext", "spec.wakegate.", ("warm", "lazy", "off"), "lazy")


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _preload(extra: Mapping[str, Any], reader: Reader) -> tuple[str, ...]:
    if extra.get("preload") is None:
        return ()
    found = []
    for index, item in enumerate(reader.sequence(extra, "preload", "spec.wakegate.")):
        if isinstance(item, str) and _is_module(item):
            found.append(item)
        else:
            reader.problem(f"spec.wakegate.preload[{index}]", "expected a Python module such as pandas", item)
    return tuple(dict.fromkeys(found))


def _ports(extra: Mapping[str, Any], reader: Reader) -> tuple[tuple[int, int], ...]:
    if extra.get("ports") is None:
        return HIGH_PORTS
    found = []
    for index, item in enumerate(reader.sequence(extra, "ports", "spec.wakegate.")):
        match = _PORTS.fullmatch(item) if isinstance(item, str) else None
        first = int(match[1]) if match else item
        last = int(match[2]) if match else item
        if type(first) is int and type(last) is int and 1 <= first <= last <= 65535:
            found.append((first, last))
        else:
            reader.problem(f"spec.wakegate.ports[{index}]", "expected a port (8000) or a range (9000-9100)", item)
    return tuple(found)
