"""Whether an agent fits its tenant's limits and this machine, before it is created. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.agents.model import Agent
from gateway.core.errors import BadRequestError, PermissionDeniedError, QuotaExceededError, QuotaForbiddenError
from gateway.core.model import Runtime
from gateway.core.quota import Resource
from gateway.core.units import parse_quantity, readable_size
from gateway.egress.grants import by_name
from gateway.identity.tenant_limits import TenantLimits

MAX_AGENTS = 200  # of one tenant
MAX_WARM = 20  # sandboxes that an agent of the API keeps ready; they count against no tenant's sessions


@dataclass(frozen=True, slots=True)
class Machine:
    """What sandboxes of this machine can have at most. `memory` in bytes. Of a cluster: no bound that is known here.

    `bookable_cpus`, `bookable_memory`: what they may request of it; more than it has where an operator overcommits.
    """

    cpus: float
    memory: float
    gpus: float = 0
    bookable_cpus: float = math.inf
    bookable_memory: float = math.inf


def check_count(agents: Sequence[Agent], tenant: str) -> None:
    """Raises QuotaExceededError."""
    held = sum(agent.tenant == tenant for agent in agents)
    if held >= MAX_AGENTS:
        raise QuotaExceededError(
            f"agents: this tenant has {held} of {MAX_AGENTS}; delete one", limit="agents", value=MAX_AGENTS, used=held
        )


def check_fit(runtime: Runtime, limits: TenantLimits, machine: Machine) -> None:
    """Raises QuotaForbiddenError with what is short."""
    if not limits.allows(runtime.key):
        name = f"{runtime.key.namespace}/{runtime.key.name}"
        raise QuotaForbiddenError(f"runtimes: this tenant may not have {name}", limit="runtimes", value=name)
    # One at least is kept ready, since a revision is judged by whether it starts (catalog.py).
    warm = max(runtime.pool.size, runtime.pool.min, 1)
    _at_most("warmPoolSize", max(warm, runtime.pool.max), MAX_WARM, "sandboxes that an agent keeps ready")
    cpus, memory, gpus = runtime.limits.cpus or 0.0, runtime.limits.memory or 0, gpus_of(runtime.manifest)
    _at_most("gpus", gpus, machine.gpus, "GPUs of this machine")
    _at_most("vcpu", cpus, machine.cpus, "cores of this machine")
    _at_most("memory", memory, machine.memory, "of this machine")
    # Refused now: it would be accepted, wait for room that the machine never has, and fail to become ready.
    requested = runtime.requests
    _at_most("vcpu", requested.millicores / 1000, machine.bookable_cpus, "cores that may be requested of this machine")
    _at_most("memory", requested.memory, machine.bookable_memory, "that may be requested of this machine")
    amounts = limits.amounts
    wanted = ((Resource.VCPU, cpus, "cores "), (Resource.MEMORY, memory, ""), (Resource.GPUS, gpus, ""))
    for resource, each, unit in wanted:
        most = amounts.get(resource)
        if most is not None:
            bound = most / 1000 if resource is Resource.VCPU else most
            _at_most(resource.value, each * warm, bound, f"{unit}of this tenant, with {warm} kept ready")
    most = amounts.get(Resource.SANDBOXES)
    if most is not None:
        _at_most(Resource.SANDBOXES.value, warm, most, "sandboxes of this tenant")


def check_rights(spec: Mapping[str, Any], limits: TenantLimits, *, operator: bool) -> None:
    """Refuse what only the operator decides. Raises PermissionDeniedError."""
    extra = spec.get("wakegate")
    # A malformed section is refused by the schema, with its place; here it has nothing to ask for.
    if operator or not isinstance(extra, Mapping):
        return
    if extra.get("secrets"):
        raise PermissionDeniedError(
            "spec.wakegate.secrets: only an administrator may give agents the gateway's secrets"
        )
    if extra.get("egress") and limits.egress is None:
        raise PermissionDeniedError(
            "spec.wakegate.egress: this tenant's limits name no egress; an administrator sets that (PUT /v1/tenants)"
        )


def check_reach(runtime: Runtime) -> None:
    """Refuse what agents of a cluster cannot be given: names are picod's to reach, which their pods have none of.

    Not where manifests are read: an agent that was made before would then stop being served. Raises BadRequestError.
    """
    # Else `--egress api.example.com` would look like a permission and open nothing.
    if runtime.secrets or by_name(runtime):
        raise BadRequestError(
            "spec.wakegate.egress, spec.wakegate.secrets: in a cluster agents reach no names through the gateway; give"
            " networks, such as 203.0.113.0/24, and `dns`"
        )


def gpus_of(manifest: Mapping[str, Any]) -> float:
    """The GPUs that the containers of a manifest have."""
    pod = manifest.get("spec", {}).get("podTemplate", {}).get("spec", {})
    total = 0.0
    for container in pod.get("containers") or ():
        for name, amount in ((container.get("resources") or {}).get("limits") or {}).items():
            if str(name).endswith("/gpu"):
                total += parse_quantity(str(amount))
    return total


def _at_most(limit: str, wanted: float, most: float, what: str) -> None:
    if wanted > most:
        shown = [readable_size(int(each)) if limit == "memory" else f"{each:g}" for each in (wanted, most)]
        raise QuotaForbiddenError(
            f"{limit}: {shown[0]} asked for, at most {shown[1]} {what}", limit=limit, value=most, used=0
        )
