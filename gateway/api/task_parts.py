"""The parts, the limits and the rules of visibility that the handlers of agents' tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from gateway.core.errors import NotFoundError
from gateway.core.identity import Identity, Permission, current
from gateway.core.model import DEFAULT_TENANT, Kind, RuntimeKey
from gateway.core.tasks import TaskStore
from gateway.tasks.counts import TaskCounts
from gateway.tasks.document import task_document
from gateway.tasks.model import Task
from gateway.tasks.runner import TaskRunner
from gateway.tasks.schedules import Scheduler
from gateway.tasks.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What limits tasks.

    `max_body`: bytes of a request; `max_open`: tasks of an agent that are not over; `max_bytes`: a tenant's.

    `lifetime`: seconds until a task that could not be run is given up. `retention`: seconds that results are kept.
    """

    max_body: int = 1 << 20
    max_open: int = 1000
    max_bytes: int = 256 << 20
    lifetime: float = 86400.0
    retention: float = 86400.0


@dataclass(frozen=True, slots=True)
class TaskParts:
    """The parts of a gateway that the handlers of tasks use."""

    store: TaskStore
    runner: TaskRunner
    limits: TaskLimits
    webhooks: Webhooks
    counts: TaskCounts
    scheduler: Scheduler


def shown_task(task: Task) -> dict[str, Any]:
    """A task as its caller may see it: what its agent said only to those who may use sessions."""
    return task_document(task, with_content=current().may(Permission.USE_SESSIONS))


def sees_task(caller: Identity, task: Task) -> bool:
    """Whether a task exists as far as a caller is concerned: the rule of sessions."""
    if caller.scope is not None and caller.scope.session_id != task.session:
        return False
    if caller.sees_all_tenants:
        return True
    user = str(task.caller["user"])
    return (
        task.tenant == caller.tenant and (not user or not caller.user or user == caller.user) and caller.uses(task.key)
    )


def place_of(task: Task) -> str:
    """The task's path in the API; with its namespace where that is not the caller's own."""
    place = f"/v1/agents/{task.name}/tasks/{task.id}"
    return place if task.namespace == (current().tenant or DEFAULT_TENANT) else f"{place}?namespace={task.namespace}"


def tenant_of(request: Request) -> str:
    """The tenant whose tasks are asked for. Raises NotFoundError for another's, except for those who see all."""
    caller = current()
    asked = request.query_params.get("tenant")
    if asked is not None and asked != caller.tenant and not caller.sees_all_tenants:
        raise NotFoundError(f"no tenant {asked[:64]}")
    return asked or caller.tenant or DEFAULT_TENANT


def agent_of(request: Request) -> RuntimeKey:
    """The agent that the path names, in the caller's own namespace unless the query names another."""
    namespace = request.query_params.get("namespace") or current().tenant or DEFAULT_TENANT
    return RuntimeKey(namespace, request.path_params["name"], Kind.AGENT_RUNTIME)
