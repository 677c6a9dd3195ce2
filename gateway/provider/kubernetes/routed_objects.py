"""Sandboxes that agent-sandbox's own controllers manage, as their router reads and changes them. Pure.

Source: its CRDs v1beta1 and v1alpha1, and sandbox controller. Whether a pod is to be there is `spec.operatingMode`, in
v1alpha1 `spec.replicas`; `status` follows it: a condition Ready, which names the generation that it was observed of,
and the pod's addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gateway.core.agent_sandbox import FORMER_VERSION, RUNNING, SUSPENDED, VERSION
from gateway.core.units import parse_duration
from gateway.provider.kubernetes import pod_addresses

Object = dict[str, Any]

# Annotations. How long it may go without a request before it is suspended, as "15m"; and until when it is in use at
# least, which gateways write, so that each knows what the others need.
IDLE_TIMEOUT, IN_USE_UNTIL = "wakegate.io/idle-timeout", "wakegate.io/in-use-until"
_SHORTEST_IDLE_S = 2.0  # gateways look twice a second at what they use
_MAX_REASON_CHARS = 100


@dataclass(frozen=True, slots=True)
class RoutedObject:
    """A Sandbox. `address`: its pod's, empty while it is not ready; `why` then says what it lacks.

    `idle_timeout` in seconds, None: it is not suspended; `fault`: what is wrong with the annotation that says so.
    `in_use_until` in epoch seconds, 0: nobody has used it.
    """

    uid: str
    version: str
    namespace: str
    name: str
    is_suspended: bool
    address: str
    why: str
    idle_timeout: float | None
    fault: str
    in_use_until: float
    api: str = VERSION


def read(obj: Mapping[str, Any]) -> RoutedObject | None:
    """A Sandbox as the server gives it; None for one that goes. Of a shape that is none of theirs, it is not ready."""
    metadata = obj["metadata"]
    if "deletionTimestamp" in metadata:
        return None
    api = str(obj.get("apiVersion") or VERSION).rpartition("/")[2]
    spec = _fields(obj.get("spec"))
    is_suspended = spec.get("replicas") == 0 if api == FORMER_VERSION else spec.get("operatingMode") == SUSPENDED
    notes = _fields(metadata.get("annotations"))
    idle_timeout, fault = _idle_timeout(notes.get(IDLE_TIMEOUT))
    address, why = _address(_fields(obj.get("status")), int(metadata.get("generation") or 1))
    return RoutedObject(
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        is_suspended=is_suspended,
        address="" if is_suspended else address,
        why="suspended" if is_suspended else why,
        idle_timeout=idle_timeout,
        fault=fault,
        in_use_until=_epoch(notes.get(IN_USE_UNTIL)),
        api=api,
    )


def wake_patch(sandbox: RoutedObject, now: float) -> Object:
    """Has it run; refused where it is another object by now, or was changed."""
    metadata = _same(sandbox)
    if sandbox.idle_timeout is not None:
        metadata |= _in_use(sandbox.idle_timeout, now)
    return {"metadata": metadata, "spec": _mode(sandbox, runs=True)}


def suspend_patch(sandbox: RoutedObject) -> Object:
    """Takes its pod away; refused where it was changed: another gateway may have said that it is in use."""
    return {"metadata": _same(sandbox), "spec": _mode(sandbox, runs=False)}


def use_patch(sandbox: RoutedObject, now: float) -> Object:
    """Says that it is in use; refused where it is another object by now."""
    assert sandbox.idle_timeout is not None
    return {"metadata": {"uid": sandbox.uid, **_in_use(sandbox.idle_timeout, now)}}


def _in_use(idle_timeout: float, now: float) -> Object:
    # Half as long again as it must be left alone: it is written twice per idle timeout then, and not per request.
    until = datetime.fromtimestamp(now + 1.5 * idle_timeout, UTC).isoformat(timespec="milliseconds")
    return {"annotations": {IN_USE_UNTIL: until}}


def _mode(sandbox: RoutedObject, *, runs: bool) -> Object:
    if sandbox.api == FORMER_VERSION:
        return {"replicas": int(runs)}
    return {"operatingMode": RUNNING if runs else SUSPENDED}


def _same(sandbox: RoutedObject) -> Object:
    return {"uid": sandbox.uid, "resourceVersion": sandbox.version}


def _address(status: Mapping[str, Any], generation: int) -> tuple[str, str]:
    """The address of its pod, or why there is none that can be dialled."""
    conditions = status.get("conditions")
    found = (
        [each for each in conditions if _fields(each).get("type") == "Ready"] if isinstance(conditions, list) else []
    )
    ready = _fields(found[0]) if found else {}
    if ready.get("status") != "True":
        return "", str(ready.get("reason") or "no condition Ready yet")[:_MAX_REASON_CHARS]
    observed = ready.get("observedGeneration")
    # Of before it was suspended and woken, say: the address may be another pod's by now.
    if isinstance(observed, int) and observed < generation:
        return "", "its controller has not seen its last change yet"
    addresses = status.get("podIPs")
    if not isinstance(addresses, list) or not addresses:
        return "", "its status names no address of a pod"
    problem = ""
    for each in addresses[:2]:  # one of each family
        if isinstance(each, str) and not (problem := pod_addresses.problem(each)):
            return each, ""
    return "", problem or "its status names no address of a pod"


def _idle_timeout(text: Any) -> tuple[float | None, str]:
    if text is None:
        return None, ""
    try:
        seconds = parse_duration(str(text))
    except ValueError as error:
        return None, str(error)
    if seconds < _SHORTEST_IDLE_S:
        return None, f"the shortest is {_SHORTEST_IDLE_S:g}s"
    return seconds, ""


def _epoch(text: Any) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _fields(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
