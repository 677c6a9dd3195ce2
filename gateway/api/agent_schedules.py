"""When an agent is asked something by itself, and what came of it. Errors: `{"error": text, "code": CODE}`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.api.task_parts import agent_of, sees_task
from gateway.core.clock import Clock
from gateway.core.errors import RuntimeNotFoundError
from gateway.core.identity import current
from gateway.core.interfaces import RuntimeCatalog
from gateway.tasks.schedules import Plan, Scheduler


class AgentSchedulesAPI:
    """The handler that lists an agent's schedules. `retention`: seconds for which tasks that are over are kept."""

    def __init__(self, scheduler: Scheduler, catalog: RuntimeCatalog, clock: Clock, retention: float) -> None:
        self._scheduler = scheduler
        self._catalog = catalog
        self._clock = clock
        self._retention = retention

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"list_agent_schedules": self._list}

    async def _list(self, request: Request) -> Response:
        key = agent_of(request)
        runtime = self._catalog.choose(key)  # raises for one that is stopped, which misses its firings
        if runtime is None or not current().sees_runtime(runtime) or not current().uses(key):
            raise RuntimeNotFoundError(f"no agent {key.namespace[:64]}/{key.name[:64]}")
        runtime = self._catalog.get(key) or runtime  # that of most sessions, whose schedules fire
        return JSON({"schedules": [self._document(each) for each in await self._scheduler.plans(runtime)]})

    def _document(self, plan: Plan) -> dict[str, Any]:
        schedule, task = plan.schedule, plan.task
        if task is not None and not sees_task(current(), task):
            task = None
        outcome = None if task is None else str(task.state)
        # A firing that found the queue full made no task. Nor is there one once tasks of that age have been deleted.
        if task is None and plan.last is not None and plan.task is None:
            outcome = "left out" if self._clock.now() - plan.last < self._retention else None
        return {
            "name": schedule.name,
            "cron": schedule.cron,
            "timezone": schedule.timezone,
            "path": schedule.path,
            "next": plan.next,
            "last": plan.last,
            "lastTask": None if task is None else task.id,
            "lastOutcome": outcome,
        }
