"""Reads the sections of a manifest: limits, pool, ports, environment, egress, and names that only gateways may write.

Each function takes the part of the document that validation.py has cleaned, and reports to a `Reader` what a schema
cannot express. manifest.py puts the results together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.model import HIGH_PORTS, Kind, Limits, PoolMode, PoolSpec, Requests, Resources
from gateway.egress.rule_entries import MAX_ENTRIES, Entry, parse_entry
from gateway.runtimes.fields import Reader
from gateway.runtimes.files import Files
from gateway.runtimes.schema_wakegate import PORTS

NO_PROCESSES = "expected no such limit in a cluster, where the kubelet counts processes: set its podPidsLimit"
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_RESERVED_DOMAINS = ("wakegate.io", "agentcube.io", "agentcube.volcano.sh")
_RESERVED = frozenset(("app.kubernetes.io/managed-by", "controller.kubernetes.io/pod-deletion-cost"))
_VARIABLE = re.compile(r"[^=\0]+")  # what execve(2) can pass on; shells and Kubernetes allow less


def read_python(name: str, files: Files | None, reader: Reader) -> str | None:
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


def check_reserved(template: Mapping[str, Any], kind: Kind, reader: Reader) -> None:
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


def read_egress(entries: Sequence[Any], reader: Reader, place: str = "spec.wakegate.egress") -> tuple[Entry, ...]:
    """The entries that the egress service decides by. Others are for a NetworkPolicy (provider/kubernetes/egress.py).

    A wildcard, and `any`, are in it even where a cluster has no egress service: then they open nothing.
    """
    found: list[Entry] = []
    if len(entries) > MAX_ENTRIES:
        reader.note(place, f"expected at most {MAX_ENTRIES} entries, got {len(entries)}")
    for index, entry in enumerate(entries[:MAX_ENTRIES]):
        if entry == "dns" or entry is None or (isinstance(entry, Mapping) and "host" not in entry):
            continue
        try:
            parse_entry(entry)
            found.append(entry)
        except ValueError as error:
            reader.note(f"{place}[{index}]", str(error))
    return tuple(found)


def read_egress_limits(extra: Mapping[str, Any], reader: Reader) -> dict[str, int]:
    """Bounds of what sandboxes may send."""
    given, prefix = extra.get("egressLimits", {}), "spec.wakegate.egressLimits."
    found = {name: reader.quantity(given, field, prefix) for name, field in (("bytes", "bytes"), ("rate", "rate"))}
    if "connections" in given:
        found["connections"] = given["connections"]
    return {name: max(1, int(value)) for name, value in found.items() if value is not None}


def read_environment(entries: Sequence[Any], prefix: str, reader: Reader, *, references: bool) -> dict[str, str]:
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
            continue  # Kubernetes puts the value into the pod: it is never read here, and cannot leak from here
        elif "valueFrom" in entry:
            right = "only plain values work on the local engine; expected `value`"
            reader.problem(f"{path}.valueFrom", right, entry["valueFrom"])
        elif "\0" in value:
            reader.problem(f"{path}.value", "expected text without NUL; put it in quotes", value)
        else:
            environment[name] = value
    return environment


def read_limits(resources: Mapping[str, Any], place: str, extra: Mapping[str, Any], reader: Reader) -> Limits:
    """Limits of one sandbox: resources of the pod's description, and those of spec.wakegate.limits."""
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


def read_requests(resources: Mapping[str, Any], place: str, reader: Reader) -> Requests:
    """What of the machine is kept free for one sandbox. GPUs are whole, and may be among the limits."""
    found = {}
    for kind in ("limits", "requests"):
        given, prefix = resources.get(kind, {}), f"{place}resources.{kind}."
        for name in given:
            if str(name).endswith("/gpu") and (amount := reader.quantity(given, name, prefix)) is not None:
                if amount != int(amount):
                    reader.problem(f"{prefix}{name}", "expected a whole number of GPUs", given[name])
                found[name] = int(amount)
    given, prefix = resources.get("requests", {}), f"{place}resources.requests."
    cpus, memory = reader.quantity(given, "cpu", prefix), reader.quantity(given, "memory", prefix)
    return Requests(
        millicores=max(1, round(cpus * 1000)) if cpus else 0, memory=int(memory or 0), gpus=sum(found.values())
    )


def read_max_resources(extra: Mapping[str, Any], reader: Reader, *, in_cluster: bool) -> Resources:
    """The most that a session may be resized to."""
    most, prefix = extra.get("maxResources", {}), "spec.wakegate.maxResources."
    if in_cluster and "processes" in most:
        reader.problem(f"{prefix}processes", NO_PROCESSES, most["processes"])
    memory = reader.quantity(most, "memory", prefix)
    return Resources(
        cpus=reader.quantity(most, "cpu", prefix),
        memory=None if memory is None else int(memory),
        processes=most.get("processes"),
    )


def read_pool(spec: Mapping[str, Any], extra: Mapping[str, Any], reader: Reader) -> PoolSpec:
    """The size of the warm pool and how it is chosen."""
    size, pool = int(spec.get("warmPoolSize", 0)), extra.get("pool", {})
    least = int(pool.get("min", 0))
    # Not below `min`, which a pool must be able to reach, nor below the size that it begins with.
    most = int(pool.get("max", max(size, least)))
    if most < least:
        reader.problem("spec.wakegate.pool.max", f"must not be below min ({least})", most)
    miss = float(pool.get("targetMissRate", 0.01))
    if not 0 < miss < 1:  # NaN passes the schema, since it is neither below the minimum nor above the maximum
        reader.problem("spec.wakegate.pool.targetMissRate", "expected a number between 0 and 1, e.g. 0.01", miss)
    # AgentCube's manifests have only warmPoolSize, and keep that size. Whoever sets `pool` wants it sized by forecast.
    mode = PoolMode(pool.get("mode", PoolMode.PREDICTIVE if pool else PoolMode.FIXED))
    return PoolSpec(size=size, mode=mode, min=least, max=most, target_miss_rate=miss)


def is_module(name: str) -> bool:
    """Whether it has the form of a module's name, e.g. `matplotlib.pyplot`."""
    return all(part.isidentifier() for part in name.split("."))


def read_preload(extra: Mapping[str, Any], reader: Reader) -> tuple[str, ...]:
    """Names of modules, each once."""
    found = [(index, name) for index, name in enumerate(extra.get("preload", ())) if name is not None]
    for index, name in found:
        if not is_module(name):
            reader.problem(f"spec.wakegate.preload[{index}]", "expected a Python module such as pandas", name)
    return tuple(dict.fromkeys(name for _, name in found))


def read_ports(extra: Mapping[str, Any], reader: Reader) -> tuple[tuple[int, int], ...]:
    """Ranges of ports that clients may reach; all high ones where the manifest names none."""
    return _ranges("ports", extra["ports"], reader) if "ports" in extra else HIGH_PORTS


def read_public_ports(
    extra: Mapping[str, Any], ports: Sequence[tuple[int, int]], reader: Reader
) -> tuple[tuple[int, int], ...]:
    """Ranges that sessions may make public; each lies in one of `ports`."""
    found = _ranges("publicPorts", extra.get("publicPorts", ()), reader)
    for low, high in found:
        if not any(first <= low and high <= last for first, last in ports):
            reader.note("spec.wakegate.publicPorts", f"{low}-{high} is not in spec.wakegate.ports")
    return found


def _ranges(field: str, items: Sequence[Any], reader: Reader) -> tuple[tuple[int, int], ...]:
    found = []
    for index, item in enumerate(items):
        if item is None:
            continue
        # An int by its type: to isinstance True is one, and `ports: [yes]` would be port 1.
        match = _PORTS.fullmatch(item) if isinstance(item, str) else None
        first = int(match[1]) if match else item
        last = int(match[2]) if match else item
        if type(first) is int and type(last) is int and 1 <= first <= last <= 65535:
            found.append((first, last))
        else:
            reader.problem(f"spec.wakegate.{field}[{index}]", f"expected {PORTS}", item)
    return tuple(found)
