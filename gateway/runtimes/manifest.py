"""Reads runtimes from YAML: AgentCube's manifests, unchanged, with the optional section `spec.wakegate`.

Checks all files and reports all problems at once, each with file, field path and what is expected; if there is one,
nothing starts. Types and bounds of fields are in schema.py; the checks here are those that a schema cannot express.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.core.errors import SettingsError
from gateway.core.model import HIGH_PORTS, HibernationMode, Kind, Limits, PoolMode, PoolSpec, Runtime, RuntimeKey
from gateway.egress.policy import MAX_ENTRIES, Entry, parse_entry
from gateway.runtimes.agent import CONTAINER, first_container, parse_agent, several, target_ports
from gateway.runtimes.documents import find_files, read_documents
from gateway.runtimes.fields import Reader, named
from gateway.runtimes.files import Files
from gateway.runtimes.schema import API_VERSION, PORTS
from gateway.runtimes.tools import parse_tools
from gateway.runtimes.validation import checked

_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_RESERVED_DOMAINS = ("wakegate.io", "agentcube.io", "agentcube.volcano.sh")
_RESERVED = frozenset(("app.kubernetes.io/managed-by", "controller.kubernetes.io/pod-deletion-cost"))
_VARIABLE = re.compile(r"[^=\0]+")


def parse_modules(text: str) -> tuple[str, ...]:
    """Parse names of modules such as `numpy,matplotlib.pyplot`. Raises ValueError with the first invalid one."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if not _is_module(name):
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
    elif in_cluster:
        # In a cluster an agent's container has no picod, so nothing there checks tokens or exports files. Its pod is
        # made of the manifest directly (provider/kubernetes/template.py).
        runtime = replace(runtime, auth=False, hibernation=HibernationMode.OFF, code_context="off")
    else:
        runtime = _local_agent(runtime, spec, files, reader)
    return replace(runtime, manifest=dict(document)) if len(problems) == before else None


def _kind_of(document: Any, where: str, problems: list[str]) -> Kind | None:
    """The kind of a runtime; None for other kinds. A wrong apiVersion is a problem, but the rest is still checked."""
    if not isinstance(document, Mapping):
        problems.append(f"{where}: expected a mapping, got {named(document)}")
        return None
    kind = document.get("kind")
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
    _check_reserved(spec.get("podTemplate" if agent else "template", {}), kind, reader)
    ports = target_ports(
        spec.get("targetPort" if agent else "ports", ()), "spec.targetPort" if agent else "spec.ports", reader
    )
    return Runtime(
        key=RuntimeKey(metadata.get("namespace", "default"), metadata.get("name", "invalid"), kind),
        session_timeout=reader.duration(spec, "sessionTimeout", "spec.", 900.0),
        max_session_duration=reader.duration(spec, "maxSessionDuration", "spec.", 28800.0),
        pool=_pool(spec, extra, reader),
        python=None if in_cluster else _python(extra.get("python", ""), files, reader),
        python_roots=tuple(map(str, files.roots)) if files else (),
        ports=_ports(extra, reader),
        tools=parse_tools(extra.get("tools", ()), "spec.wakegate.tools", files, reader.problem),
        egress=_egress(extra.get("egress", ()), reader),
        egress_limits=_egress_limits(extra, reader),
        target_ports=several(ports),
    )


def _interpreter(runtime: Runtime, spec: Mapping[str, Any], reader: Reader, *, in_cluster: bool) -> Runtime:
    """Read a CodeInterpreter's own fields: image, variables and resources are in `spec.template`."""
    place, template, extra = "spec.template.", spec.get("template", {}), spec.get("wakegate", {})
    return replace(
        runtime,
        image=template.get("image", ""),
        environment=_environment(template.get("environment", ()), f"{place}environment", reader, references=in_cluster),
        limits=_limits(template.get("resources", {}), place, extra, reader),
        auth=spec.get("authMode", "picod") == "picod",
        hibernation=HibernationMode(extra.get("hibernation", HibernationMode.STATE)),
        checkpoint_interval=reader.duration(extra, "checkpointInterval", "spec.wakegate.", 0.0) or None,
        preload=_preload(extra, reader),
        code_context=extra.get("codeContext", ""),
    )


def _local_agent(runtime: Runtime, spec: Mapping[str, Any], files: Files | None, reader: Reader) -> Runtime:
    """Read an AgentRuntime for the local engine: image, variables and resources are in its first container."""
    container = first_container(spec)
    ports = target_ports(spec.get("targetPort", ()), "spec.targetPort", Reader("", []))  # noted when first read
    environment = _environment(container.get("env", ()), f"{CONTAINER}env", reader, references=False)
    return replace(
        runtime,
        image=container.get("image", ""),
        environment=environment,
        limits=_limits(container.get("resources", {}), CONTAINER, {}, reader),
        auth=True,  # picod runs before the agent
        hibernation=HibernationMode.OFF,
        code_context="off",
        agent=parse_agent(spec, container, ports, environment, files, reader),
    )


def _python(name: str, files: Files | None, reader: Reader) -> str | None:
    """The folder of the Python environment as an absolute path without symbolic links; None if none is named."""
    if not name:
        return None
    if files is None:
        reader.problem("spec.wakegate.python", "there are no files beside this manifest; expected none", name)
        return None
    try:
        return str(files.resolve_environment(name))
    except (OSError, ValueError) as error:
        reader.problem("spec.wakegate.python", str(error), name)
        return None


def _check_reserved(template: Mapping[str, Any], kind: Kind, reader: Reader) -> None:
    """Refuse labels and annotations that gateways write: a new pod with them would look like a claimed one."""
    place = "spec.podTemplate" if kind is Kind.AGENT_RUNTIME else "spec.template"
    for field in ("labels", "annotations"):
        for key in template.get(field, {}):
            if is_reserved(str(key)):
                reader.note(f"{place}.{field}.{str(key)[:100]}", "a name that Wakegate or AgentCube writes; remove it")


def is_reserved(key: str) -> bool:
    """Whether only gateways may write a label or annotation.

    Those are the domains of Wakegate and AgentCube with their subdomains, the label that names a pod's manager, and the
    deletion cost, by which a ReplicaSet chooses the pods to delete first (provider/kubernetes/names.py).
    """
    prefix = key.partition("/")[0] if "/" in key else ""
    return key in _RESERVED or any(prefix == each or prefix.endswith(f".{each}") for each in _RESERVED_DOMAINS)


def _egress(entries: Sequence[Any], reader: Reader) -> tuple[Entry, ...]:
    """The entries that the egress service decides by. Others are for a NetworkPolicy (provider/kubernetes/egress.py).

    A wildcard, and `any`, are in it even where a cluster has no egress service: then they open nothing.
    """
    found: list[Entry] = []
    if len(entries) > MAX_ENTRIES:
        reader.note("spec.wakegate.egress", f"expected at most {MAX_ENTRIES} entries, got {len(entries)}")
    for index, entry in enumerate(entries[:MAX_ENTRIES]):
        if entry == "dns" or entry is None or (isinstance(entry, Mapping) and "host" not in entry):
            continue
        try:
            parse_entry(entry)
            found.append(entry)
        except ValueError as error:
            reader.note(f"spec.wakegate.egress[{index}]", str(error))
    return tuple(found)


def _egress_limits(extra: Mapping[str, Any], reader: Reader) -> dict[str, int]:
    given, prefix = extra.get("egressLimits", {}), "spec.wakegate.egressLimits."
    found = {name: reader.quantity(given, field, prefix) for name, field in (("bytes", "bytes"), ("rate", "rate"))}
    if "connections" in given:
        found["connections"] = given["connections"]
    return {name: max(1, int(value)) for name, value in found.items() if value is not None}


def _environment(entries: Sequence[Any], prefix: str, reader: Reader, *, references: bool) -> dict[str, str]:
    """The plain values of a list at `prefix`. `references`: `valueFrom` is allowed, as Kubernetes resolves it."""
    environment: dict[str, str] = {}
    for index, entry in enumerate(entries):
        path = f"{prefix}[{index}]"
        if entry is None or "name" not in entry:
            continue
        name, value = entry["name"], entry.get("value", "")
        if not _VARIABLE.fullmatch(name):
            reader.problem(path, "expected a mapping with a name and a value", entry)
        elif "valueFrom" in entry and references:
            continue
        elif "valueFrom" in entry:
            right = "only plain values work on the local engine; expected `value`"
            reader.problem(f"{path}.valueFrom", right, entry["valueFrom"])
        elif "\0" in value:
            reader.problem(f"{path}.value", "expected text without NUL; put it in quotes", value)
        else:
            environment[name] = value
    return environment


def _limits(resources: Mapping[str, Any], place: str, extra: Mapping[str, Any], reader: Reader) -> Limits:
    limits, prefix = resources.get("limits", {}), f"{place}resources.limits."
    own, own_prefix = extra.get("limits", {}), "spec.wakegate.limits."
    defaults = Limits()
    memory = reader.quantity(limits, "memory", prefix)
    workspace = reader.quantity(own, "workspaceSize", own_prefix)
    return Limits(
        memory=int(memory) if memory is not None else defaults.memory,
        cpus=reader.quantity(limits, "cpu", prefix) or defaults.cpus,
        processes=int(own.get("processes", defaults.processes)),
        file_size=int(reader.quantity(own, "fileSize", own_prefix) or defaults.file_size),
        tmp_size=int(reader.quantity(own, "tmpSize", own_prefix) or defaults.tmp_size),
        workspace_size=int(workspace) if workspace is not None else defaults.workspace_size,
    )


def _pool(spec: Mapping[str, Any], extra: Mapping[str, Any], reader: Reader) -> PoolSpec:
    size, pool = int(spec.get("warmPoolSize", 0)), extra.get("pool", {})
    least = int(pool.get("min", 0))
    most = int(pool.get("max", max(size, least)))
    if most < least:
        reader.problem("spec.wakegate.pool.max", f"must not be below min ({least})", most)
    miss = float(pool.get("targetMissRate", 0.01))
    if not 0 < miss < 1:  # NaN passes the schema, since it is neither below the minimum nor above the maximum
        reader.problem("spec.wakegate.pool.targetMissRate", "expected a number between 0 and 1, e.g. 0.01", miss)
    # AgentCube's manifests have only warmPoolSize, and keep that size. Whoever sets `pool` wants it sized by forecast.
    mode = PoolMode(pool.get("mode", PoolMode.PREDICTIVE if pool else PoolMode.FIXED))
    return PoolSpec(size=size, mode=mode, min=least, max=most, target_miss_rate=miss)


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _preload(extra: Mapping[str, Any], reader: Reader) -> tuple[str, ...]:
    found = [(index, name) for index, name in enumerate(extra.get("preload", ())) if name is not None]
    for index, name in found:
        if not _is_module(name):
            reader.problem(f"spec.wakegate.preload[{index}]", "expected a Python module such as pandas", name)
    return tuple(dict.fromkeys(name for _, name in found))


def _ports(extra: Mapping[str, Any], reader: Reader) -> tuple[tuple[int, int], ...]:
    if "ports" not in extra:
        return HIGH_PORTS
    found = []
    for index, item in enumerate(extra["ports"]):
        if item is None:
            continue
        match = _PORTS.fullmatch(item) if isinstance(item, str) else None
        first = int(match[1]) if match else item
        last = int(match[2]) if match else item
        if type(first) is int and type(last) is int and 1 <= first <= last <= 65535:
            found.append((first, last))
        else:
            reader.problem(f"spec.wakegate.ports[{index}]", f"expected {PORTS}", item)
    return tuple(found)
