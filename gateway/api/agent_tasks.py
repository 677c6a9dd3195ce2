"""What became of invocations in the background: reading tasks, cancelling, repeating and deleting them.

Errors: `{"error": text, "code": CODE}`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.api.task_fields import digits_of, seconds_of
from gateway.api.task_parts import TaskParts, agent_of, sees_task, shown_task, tenant_of
from gateway.core import json_depth
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, ConflictError, NotFoundError, RuntimeNotFoundError, StaleWriteError
from gateway.core.identity import Permission, current
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import RuntimeKey
from gateway.tasks import decisions
from gateway.tasks.model import State, Task, from_queued, queue_of, to_queued, with_version

_MAX_WAIT_S = 60.0
_WAIT_STEP_S = 0.02  # between two looks of one who waits: most tasks are short; it grows to the longest
_WAIT_LONGEST_STEP_S = 0.25
_INLINE_BYTES = 64 << 10  # of a result that is shown in the task
_WRITE_ATTEMPTS = 5


class AgentTasksAPI:
    """The handlers of /v1/agents/{name}/tasks."""

    def __init__(self, parts: TaskParts, catalog: RuntimeCatalog, clock: Clock) -> None:
        self._store = parts.store
        self._catalog = catalog
        self._runner = parts.runner
        self._clock = clock
        self._limits = parts.limits
        self._webhooks = parts.webhooks
        self._counts = parts.counts

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "list_agent_tasks": self._list,
            "get_agent_task": self._get,
            "get_agent_task_result": self._result,
            "cancel_agent_task": self._cancel,
            "retry_agent_task": self._retry,
            "delete_agent_task": self._delete,
            "get_webhook_secret": self._secret,
        }

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        if unknown := sorted(query.keys() - {"namespace", "state", "before", "limit", "tenant"}):
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected state, before, limit or namespace")
        state = query.get("state")
        if state is not None and state not in list(State):
            raise BadRequestError(f"state: expected one of {', '.join(State)}, got {state[:64]!r}")
        limit = digits_of(query.get("limit", "20"), "limit", 100)
        queue = queue_of(tenant_of(request), agent_of(request))
        # Filtered here and not by the store, which knows neither states nor who may see what: pages of 100 are read
        # until there is one more than was asked for, which says that there is a next page.
        found: list[Task] = []
        before = _position(query.get("before", ""))
        while len(found) <= limit:
            page = await self._store.newest(queue, before=before, limit=100)
            tasks = [from_queued(entry) for entry in page]
            found += [each for each in tasks if sees_task(current(), each) and state in (None, each.state)]
            if len(page) < 100:
                break
            before = (page[-1].created_at, page[-1].id)
        # Of an agent that was deleted the tasks are still there to be read.
        if not found and not before and not self._exists(agent_of(request)):
            raise RuntimeNotFoundError(f"no agent {agent_of(request).name[:64]}")
        more, found = len(found) > limit, found[:limit]
        following = f"{found[-1].created_at!r},{found[-1].id}" if more else None
        return JSON({"tasks": [shown_task(each) for each in found], "next": following})

    def _exists(self, key: RuntimeKey) -> bool:
        """Whether the caller sees an agent of this name."""
        runtime = self._catalog.choose(key)
        return runtime is not None and current().sees_runtime(runtime)

    async def _get(self, request: Request) -> Response:
        task = await self._named(request)
        wait = seconds_of(request.query_params, "wait", 0.0, _MAX_WAIT_S)
        # Looked at again and again, since any gateway may be the one that runs it. From 20 ms by half as much again to
        # 250 ms: a task of 0.1 s is seen within 0.03 s of its end, and one that is waited for during 60 s costs 245
        # reads.
        until = self._clock.monotonic() + wait
        step = _WAIT_STEP_S
        while not task.state.is_over and self._clock.monotonic() < until:
            await asyncio.sleep(step)
            step = min(_WAIT_LONGEST_STEP_S, 1.5 * step)
            task = await self._named(request)
        document = shown_task(task)
        if task.answer is not None and task.answer.size <= _INLINE_BYTES and current().may(Permission.USE_SESSIONS):
            document["result"]["body"] = _shown(task.answer.content_type, await self._store.answer(task.id))
        return JSON(document)

    async def _result(self, request: Request) -> Response:
        task = await self._named(request)
        if task.answer is None:
            raise ConflictError(
                f"task {task.id} is {task.state} and has no result{': ' if task.error else ''}{task.error}"
            )
        body = await self._store.answer(task.id)
        # As what an agent answered: never a page of this gateway's own.
        headers = {
            "content-type": task.answer.content_type or "application/octet-stream",
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox",
            "x-wakegate-task-status": str(task.answer.status),
        }
        return Response(body, 200, headers)

    async def _cancel(self, request: Request) -> Response:
        now, is_ended = self._clock.now(), False

        def decide(task: Task) -> Task:
            nonlocal is_ended
            changed = decisions.cancelled(task, now, self._limits.retention)
            is_ended = changed is not task and changed.state.is_over
            return changed

        task = await self._change(request, decide)
        if is_ended:  # it waited: no runner ends it
            self._counts.ended(task)
        self._runner.cancel(task.id)
        self._runner.poke()
        return JSON(shown_task(task))

    async def _retry(self, request: Request) -> Response:
        now = self._clock.now()

        def decide(task: Task) -> Task:
            if not task.state.is_over:
                raise ConflictError(f"task {task.id} is {task.state}; only one that is over can be tried again")
            return decisions.again(task, now, now + self._limits.lifetime)

        task = await self._change(request, decide)
        self._runner.poke()
        return JSON(shown_task(task))

    async def _delete(self, request: Request) -> Response:
        task = await self._named(request)
        if not task.state.is_over:
            raise ConflictError(f"task {task.id} is {task.state}; cancel it first")
        await self._store.delete(task.id)
        return Response(status_code=204)

    async def _secret(self, request: Request) -> Response:
        key = agent_of(request)
        runtime = self._catalog.get(key)
        if runtime is None or not current().sees_runtime(runtime) or not current().uses(key):
            raise NotFoundError(f"no agent {key.namespace[:64]}/{key.name[:64]}")
        return JSON({"secret": self._webhooks.secret(tenant_of(request), key)}, headers={"cache-control": "no-store"})

    async def _named(self, request: Request) -> Task:
        """The task of the path. Raises NotFoundError, also for one of others."""
        task_id = request.path_params["task"]
        entry = await self._store.get(task_id) if len(task_id) <= 64 else None
        task = None if entry is None else from_queued(entry)
        if task is None or task.key != agent_of(request) or not sees_task(current(), task):
            raise NotFoundError(f"no task {task_id[:64]}")
        return task

    async def _change(self, request: Request, decide: Callable[[Task], Task]) -> Task:
        for _ in range(_WRITE_ATTEMPTS):
            task = await self._named(request)
            changed = decide(task)
            if changed is task:
                return task
            try:
                written = await self._store.write(to_queued(changed), self._clock.now())
            except StaleWriteError:
                continue
            assert written is not None  # no limits were given
            return with_version(changed, written)
        raise ConflictError("the task is being changed by others; try again")


def _position(text: str) -> tuple[float, str] | None:
    if not text:
        return None
    at, _, task_id = text.partition(",")
    try:
        position = float(at)
        if math.isnan(position):
            raise ValueError
        return position, task_id
    except ValueError:
        raise BadRequestError(f"before: expected `next` of the page before, got {text[:64]!r}") from None


def _shown(content_type: str, body: bytes) -> Any:
    """A result inside a document: JSON as it is, else text."""
    if content_type.partition(";")[0].strip().endswith("json"):
        try:
            return json_depth.loads(body)
        except ValueError:
            pass
    return body.decode("utf-8", "replace")
