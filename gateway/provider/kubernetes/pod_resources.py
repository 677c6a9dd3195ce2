"""Resource limits and requests of containers in pods. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gateway.core.model import Limits
from gateway.core.units import parse_quantity

Object = dict[str, Any]

# Used where a manifest sets no limit. Processes are limited by the kubelet (podPidsLimit): RLIMIT_NPROC would count all
# pods of a node that run as the same user.
_DEFAULT_RESOURCES = (("memory", "1Gi", "128Mi"), ("cpu", "1", "100m"))  # name, limit, request


def with_limits(resources: Mapping[str, Any], disk: int) -> Object:
    """Add limits on memory, CPU and disk (bytes) where the manifest has none, so that no sandbox exhausts its node.

    A request is added only beside a limit that is added here. Without one, Kubernetes would request the whole limit,
    and a node with 8 GB would hold at most eight idle sandboxes with a limit of 1 GB.
    """
    made = _with_text(resources)
    limits, requests = made.setdefault("limits", {}), made.setdefault("requests", {})
    for name, limit, request in (*_DEFAULT_RESOURCES, ("ephemeral-storage", str(disk), "64Mi")):
        if name in limits:
            continue
        given = requests.setdefault(name, request)
        limits[name] = max(limit, given, key=quantity)
    return made


def with_size(resources: Mapping[str, Any], limits: Limits) -> Object:
    """The same with other limits on memory and CPU.

    A request stays: what the scheduler keeps free for a sandbox is less than its limit by design. One that was equal to
    its limit stays equal (a pod's quality-of-service class cannot change), and none is above its limit.
    """
    made = _with_text(resources)
    had, requests = made.get("limits") or {}, made.get("requests") or {}
    wanted: dict[str, float | None] = {"memory": limits.memory, "cpu": limits.cpus}
    for name, value in wanted.items():
        if value is None or name not in had or quantity(had[name]) == value:
            continue
        text = str(int(value)) if name == "memory" else f"{round(value * 1000)}m"
        if name in requests and (requests[name] == had[name] or quantity(requests[name]) > value):
            requests[name] = text
        had[name] = text
    return made


def quantity(text: str) -> float:
    """The value of a quantity; 0 if it is malformed, which the API server then refuses with its own message."""
    try:
        return parse_quantity(text)
    except ValueError:
        return 0.0


def _with_text(resources: Mapping[str, Any]) -> Object:
    """A copy with quantities as strings, as the API's schema demands; YAML reads `cpu: 1` as a number."""
    made: Object = dict(copy.deepcopy(dict(resources)))
    for kind in ("limits", "requests"):
        if made.get(kind):
            made[kind] = {name: str(value) for name, value in made[kind].items()}
    return made
