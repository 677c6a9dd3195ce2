"""Agents as JSON objects of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.agents.differences import differences
from gateway.agents.model import Agent, Phase, Revision
from gateway.agents.rollout import served
from gateway.core.errors import without_host_paths
from gateway.core.model import PoolStatus
from gateway.core.units import rfc3339
from gateway.observability.counters import Histogram, RuntimeCounters


def phase_of(agent: Agent, pool: PoolStatus | None) -> str:
    """Stopped, Pending, Running, Updating or Failed. `pool`: of the revision of new sessions."""
    if agent.stopped:
        return "Stopped"
    if pool is not None and not pool.ready and not pool.claimed and pool.failures >= 3:
        return "Failed"
    if agent.rollout is not None and agent.rollout.previous:
        return "Updating"
    return "Running" if pool is not None and (pool.ready or pool.claimed) else "Pending"


def agent_document(agent: Agent, pool: PoolStatus | None) -> dict[str, Any]:
    """An agent as lists show it."""
    return {
        "namespace": agent.namespace,
        "name": agent.name,
        "owner": agent.tenant,
        "phase": phase_of(agent, pool),
        "revision": agent.stable,
        "latestRevision": agent.latest.number,
        "createdAt": rfc3339(agent.created_at),
        "createdBy": agent.created_by,
        "updatedAt": rfc3339(agent.latest.at),
        "managedBy": "api",
        "path": f"/v1/namespaces/{agent.namespace}/agent-runtimes/{agent.name}/invocations/",
    }


def conditions(agent: Agent, pool: PoolStatus | None) -> list[dict[str, Any]]:
    """As Kubernetes has them: Available, and Progressing while a rollout is under way."""
    ready = pool is not None and bool(pool.ready or pool.claimed)
    message = "" if pool is None else without_host_paths(pool.last_error)
    found = [_condition("Available", ready and not agent.stopped, "Stopped" if agent.stopped else "", message)]
    if agent.rollout is not None:
        reason = "Paused" if agent.rollout.paused else agent.rollout.phase.value.capitalize()
        found.append(_condition("Progressing", not agent.rollout.paused, reason, ""))
    return found


def _condition(kind: str, holds: bool, reason: str, message: str) -> dict[str, Any]:
    return {"type": kind, "status": str(holds), "reason": reason or ("Ready" if holds else "NotReady"),
            "message": message}  # fmt: skip


def rollout_document(agent: Agent) -> dict[str, Any]:
    """What is in service, the change under way, and what happened before; newest first."""
    rollout = agent.rollout
    under_way = None
    if rollout is not None:
        strategy = rollout.strategy
        under_way = {
            "revision": rollout.revision,
            "previous": rollout.previous,
            "phase": rollout.phase.value,
            "since": rfc3339(rollout.since),
            "paused": rollout.paused,
            "weight": strategy.weight if rollout.phase is Phase.CANARY else 0.0,
            "window": strategy.window,
        }
    return {
        "stable": agent.stable,
        "served": list(served(agent)),
        "draining": list(agent.draining),
        "rollout": under_way,
        "events": [
            {"at": rfc3339(each.at), "revision": each.revision, "text": without_host_paths(each.text)}
            for each in reversed(agent.events)
        ],
    }


def revision_documents(agent: Agent) -> list[dict[str, Any]]:
    """The revisions that are kept with what each changed, the newest first."""
    found: list[dict[str, Any]] = []
    before: Revision | None = None
    for revision in agent.revisions:
        old: Mapping[str, Any] = {} if before is None else _compared(before)
        found.append({
            "revision": revision.number,
            "createdAt": rfc3339(revision.at),
            "createdBy": revision.by,
            "reason": revision.reason,
            "bundle": revision.bundle,
            "environment": revision.environment,
            "spec": revision.manifest.get("spec", {}),
            "diff": [] if before is None else differences(old, _compared(revision)),
        })  # fmt: skip
        before = revision
    return found[::-1]


def _compared(revision: Revision) -> dict[str, Any]:
    return {"spec": revision.manifest.get("spec", {}), "bundle": revision.bundle, "environment": revision.environment}


def metrics_document(counted: Iterable[RuntimeCounters], usage: Mapping[str, Any]) -> dict[str, Any]:
    """Requests that this gateway has answered since it started, and what the tenant's usage of a day says."""
    requests = errors = 0
    times = Histogram()
    for each in counted:
        for (_, status), count in each.requests().items():
            requests += count
            errors += count if status.startswith("5") else 0
        for histogram in each.times().values():
            times = times.plus(histogram)
    wanted = ("cpuSeconds", "memoryByteSeconds", "gpuSeconds", "sandboxSeconds", "requests", "cost")
    return {
        "requests": requests,
        "errors": errors,
        "p95Seconds": _quantile(times, 0.95),
        "lastDay": {name: usage[name] for name in wanted if name in usage},
    }


def _quantile(histogram: Histogram, share: float) -> float | None:
    """The upper bound of the bucket in which that share of the observations lies; None without any."""
    total = sum(histogram.counts)
    seen = 0
    for bound, count in zip((*histogram.bounds, histogram.bounds[-1]), histogram.counts, strict=False):
        seen += count
        if total and seen >= share * total:
            return bound
    return None
