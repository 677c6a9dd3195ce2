"""The flat fields of `/api/v1/agents`, as a spec of an AgentRuntime and back. Pure.

cpu_request and cpu_limit are thousandths of a core, memory_request and memory_limit MiB.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from gateway.core.errors import BadRequestError

_PORT = 8080
_MAX_COMMAND_CHARS = 4096
_POLICIES = ("spread", "pack", "balanced")
FIELDS = (
    "name", "namespace", "image", "command", "args", "env", "port", "cpu_request", "cpu_limit", "memory_request",
    "memory_limit", "gpu_count", "scheduling_policy", "owner", "expose_service", "replicas", "labels",
)  # fmt: skip


def spec_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The spec. Raises BadRequestError for a field that is unknown or of a wrong type."""
    if unknown := sorted(body.keys() - set(FIELDS)):
        raise BadRequestError(f"{str(unknown[0])[:64]}: unknown field; expected {', '.join(FIELDS)}")
    port = _whole(body, "port", 1, 65535) or _PORT
    limits, requests = _resources(body, "limit"), _resources(body, "request")
    gpus = _whole(body, "gpu_count", 0, 64)
    if gpus:
        limits["nvidia.com/gpu"] = gpus
    container: dict[str, Any] = {"name": "agent", "image": _text(body, "image"), "env": _environment(body)}
    for name in ("command", "args"):
        if body.get(name):
            container[name] = _words(body, name)
    container["resources"] = {key: value for key, value in (("limits", limits), ("requests", requests)) if value}
    policy = body.get("scheduling_policy") or "balanced"
    if policy not in _POLICIES:
        raise BadRequestError(f"scheduling_policy: expected one of {', '.join(_POLICIES)}, got {repr(policy)[:64]}")
    return {
        "targetPort": [{"pathPrefix": "/", "port": port, "protocol": "HTTP"}],
        "podTemplate": {"spec": {"containers": [container]}, "labels": _texts(body, "labels")},
        "warmPoolSize": _whole(body, "replicas", 0, 1000) or 0,
        "wakegate": {"pod": {"spread": policy}},
    }


def fields_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The flat fields of a spec."""
    pod = spec.get("podTemplate", {}).get("spec", {})
    container = (pod.get("containers") or [{}])[0]
    return {
        "image": container.get("image", ""),
        "command": container.get("command", []),
        "args": container.get("args", []),
        "env": {each.get("name", ""): each.get("value", "") for each in container.get("env", [])},
        "scheduling_policy": spec.get("wakegate", {}).get("pod", {}).get("spread", "balanced"),
        "replicas": spec.get("warmPoolSize", 0),
    }


def _resources(body: Mapping[str, Any], which: str) -> dict[str, Any]:
    cpu, memory = _whole(body, f"cpu_{which}", 1, 1 << 20), _whole(body, f"memory_{which}", 1, 1 << 30)
    found = {"cpu": f"{cpu}m" if cpu else "", "memory": f"{memory}Mi" if memory else ""}
    return {name: amount for name, amount in found.items() if amount}


def _environment(body: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in _texts(body, "env").items()]


def _texts(body: Mapping[str, Any], name: str) -> dict[str, str]:
    value = body.get(name) or {}
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise BadRequestError(f"{name}: expected an object whose values are text, got {repr(value)[:64]}")
    return dict(value)


def _words(body: Mapping[str, Any], name: str) -> list[str]:
    value = body[name]
    if isinstance(value, str):
        # shlex takes time that grows with the square of a word's length; a cut command would be another one.
        if len(value) > _MAX_COMMAND_CHARS:
            raise BadRequestError(
                f"{name}: {len(value)} characters; one text may have {_MAX_COMMAND_CHARS}, a list of words more"
            )
        try:
            return shlex.split(value)
        except ValueError as error:
            raise BadRequestError(f"{name}: {error}") from None
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    raise BadRequestError(f"{name}: expected a list of words, got {repr(value)[:64]}")


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str):
        raise BadRequestError(f"{name}: expected text, got {repr(value)[:64]}")
    return value


def _whole(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise BadRequestError(f"{name}: expected a whole number from {low} to {high}, got {repr(value)[:64]}")
    return value
