"""Invocations of agents in the background, and what became of them. Errors: `{"error": text, "code": CODE}`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON, read_bytes
from gateway.api.task_fields import (
    MAX_ATTEMPTS,
    MAX_TIMEOUT_S,
    digits_of,
    identified,
    kept_headers,
    number_of,
    seconds_of,
    webhook_of,
)
from gateway.core import json_depth
from gateway.core.clock import Clock
from gateway.core.errors import (
    BadRequestError,
    ConflictError,
    IdempotencyKeyReusedError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RuntimeNotFoundError,
    StaleWriteError,
)
from gateway.core.identity import Identity, Permission, current
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import DEFAULT_TENANT, Kind, Runtime, RuntimeKey, SessionId
from gateway.core.tasks import Added, TaskStore
from gateway.identity.scope import require_use
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.new_session import require_creation
from gateway.tasks import decisions
from gateway.tasks.conversation import conversation_name
from gateway.tasks.counts import TaskCounts
from gateway.tasks.document import task_document
from gateway.tasks.model import (
    State,
    Task,
    agent_key,
    caller_document,
    conversation_key,
    from_queued,
    queue_of,
    session_key,
    to_queued,
    with_version,
)
from gateway.tasks.runner import TaskRunner
from gateway.tasks.schedules import Scheduler
from gateway.tasks.webhooks import Webhooks

_DATA_PLANE = "/v1/namespaces/"
_MAX_PATH_BYTES = 2048
_MAX_WAIT_S = 60.0
_WAIT_STEP_S = 0.02  # between two looks of one who waits: most tasks are short; it grows to the longest
_WAIT_LONGEST_STEP_S = 0.25
_INLINE_BYTES = 64 << 10  # of a result that is shown in the task
_WRITE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """`max_body`: bytes of a request; `max_open`: tasks of an agent that are not over; `max_bytes`: a tenant's.

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


class AgentTasksAPI:
    """Handlers."""

    def __init__(self, parts: TaskParts, catalog: RuntimeCatalog, lifecycle: Lifecycle, clock: Clock) -> None:
        self._store = parts.store
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._runner = parts.runner
        self._clock = clock
        self._limits = parts.limits
        self._webhooks = parts.webhooks
        self._counts = parts.counts

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "invoke_agent_async": self._invoke,
            "list_agent_tasks": self._list,
            "get_agent_task": self._get,
            "get_agent_task_result": self._result,
            "cancel_agent_task": self._cancel,
            "retry_agent_task": self._retry,
            "delete_agent_task": self._delete,
            "get_webhook_secret": self._secret,
        }

    # Making one.

    async def _invoke(self, request: Request) -> Response:
        runtime, path = self._asked(request)
        require_use(current(), path.partition("?")[0].encode())
        body = await read_bytes(request, self._limits.max_body)
        session, conversation = await self._session(request, runtime), ""
        if not session:
            require_creation(runtime.key.base)
            if runtime.invocations.session and (name := conversation_name(body, runtime.invocations.session)):
                conversation = conversation_key(current(), runtime.key.base, name)
        task = self._task(request, runtime, path, session, conversation)
        key = request.headers.get("idempotency-key", "")
        if key:
            task = identified(task, key, path, body)
        added = await self._store.add(
            to_queued(task), body, max_open=self._limits.max_open, max_bytes=self._limits.max_bytes
        )
        if added is Added.EXISTS:
            task = await self._same(task)
        elif added is not Added.ADDED:
            raise self._full(added)
        self._runner.poke()
        place = _place(task)
        return JSON(
            _document(task),
            202,
            {"location": place, "preference-applied": "respond-async", "retry-after": "1"},
        )

    def _asked(self, request: Request) -> tuple[Runtime, str]:
        """The agent, and the path and query for it, as sent. Raises RuntimeNotFoundError, as for one of others."""
        raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
        path = "/" + raw.decode("latin-1").lstrip("/").split("/", 6)[6]
        if query := request.scope["query_string"]:
            path = f"{path}?{query.decode('latin-1')}"
        if len(path) > _MAX_PATH_BYTES or not path.isascii():
            raise BadRequestError(f"the path for the agent: expected at most {_MAX_PATH_BYTES} characters of ASCII")
        key = RuntimeKey(request.path_params["namespace"], request.path_params["name"], Kind.AGENT_RUNTIME)
        runtime = self._catalog.choose(key)  # also where it is stopped, which is said at once
        if runtime is None or not current().sees_runtime(runtime):
            raise RuntimeNotFoundError(f"no agent {key.namespace[:64]}/{key.name[:64]}")
        if not current().uses(key):
            raise PermissionDeniedError(f"this credential may not use {key}")
        return runtime, path

    async def _session(self, request: Request, runtime: Runtime) -> str:
        """The session that the request names; empty: one is to be made. Raises SessionNotFoundError."""
        named = request.headers.get("x-session-id") or request.headers.get("x-agentcube-session-id") or ""
        if named:
            session = await self._lifecycle.get_cached(SessionId(named))
            if session.runtime.base != runtime.key.base:
                raise NotFoundError(f'session "{named}" not found on {runtime.key.base}')
        return named

    def _task(self, request: Request, runtime: Runtime, path: str, session: str, conversation: str) -> Task:
        now, headers, caller = self._clock.now(), request.headers, current()
        key, defaults = runtime.key.base, runtime.invocations
        counted_by = session_key(session) if session else conversation
        return Task(
            id=f"task_{uuid.uuid4().hex}",
            namespace=key.namespace,
            name=key.name,
            caller=caller_document(replace(caller, tenant=caller.tenant or DEFAULT_TENANT)),
            path=path,
            headers=kept_headers(headers),
            created_at=now,
            due_at=now,
            deadline=now + self._limits.lifetime,
            timeout=seconds_of(headers, "x-wakegate-task-timeout", defaults.timeout, MAX_TIMEOUT_S),
            max_attempts=number_of(headers, "x-wakegate-task-attempts", defaults.attempts, MAX_ATTEMPTS),
            session=session,
            conversation=conversation,
            keys=(agent_key(key), counted_by) if counted_by else (agent_key(key),),
            webhook=webhook_of(headers, self._webhooks),
        )

    def _full(self, added: Added) -> Exception:
        if added is Added.QUEUE_FULL:
            value = self._limits.max_open
            text = f"{value} tasks of this agent wait or run; try again when some are over, or cancel some"
            return QuotaExceededError(text, limit="tasks", value=value)
        value = self._limits.max_bytes
        text = f"the tasks of this tenant hold {value} bytes; delete some that are over"
        return QuotaExceededError(text, limit="taskBytes", value=value)

    async def _same(self, task: Task) -> Task:
        """The task of an earlier request with this idempotency key."""
        entry = await self._store.get(task.id)
        if entry is None:
            raise ConflictError("the task of an earlier request with this key was deleted just now; send it again")
        found = from_queued(entry)
        if found.digest != task.digest:
            raise IdempotencyKeyReusedError("this Idempotency-Key was sent with another request; use a new one")
        return found

    # Reading and changing.

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        if unknown := sorted(query.keys() - {"namespace", "state", "before", "limit", "tenant"}):
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected state, before, limit or namespace")
        state = query.get("state")
        if state is not None and state not in list(State):
            raise BadRequestError(f"state: expected one of {', '.join(State)}, got {state[:64]!r}")
        limit = digits_of(query.get("limit", "20"), "limit", 100)
        queue = queue_of(_tenant(request), agent_of(request))
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
        return JSON({"tasks": [_document(each) for each in found], "next": following})

    def _exists(self, key: RuntimeKey) -> bool:
        """Whether the caller sees an agent of this name."""
        runtime = self._catalog.choose(key)
        return runtime is not None and current().sees_runtime(runtime)

    async def _get(self, request: Request) -> Response:
        task = await self._named(request)
        wait = seconds_of(request.query_params, "wait", 0.0, _MAX_WAIT_S)
        until = self._clock.monotonic() + wait
        step = _WAIT_STEP_S
        while not task.state.is_over and self._clock.monotonic() < until:
            await asyncio.sleep(step)
            step = min(_WAIT_LONGEST_STEP_S, 1.5 * step)
            task = await self._named(request)
        document = _document(task)
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
        return JSON(_document(task))

    async def _retry(self, request: Request) -> Response:
        now = self._clock.now()

        def decide(task: Task) -> Task:
            if not task.state.is_over:
                raise ConflictError(f"task {task.id} is {task.state}; only one that is over can be tried again")
            return decisions.again(task, now, now + self._limits.lifetime)

        task = await self._change(request, decide)
        self._runner.poke()
        return JSON(_document(task))

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
        return JSON({"secret": self._webhooks.secret(_tenant(request), key)}, headers={"cache-control": "no-store"})

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


def _document(task: Task) -> dict[str, Any]:
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


def _place(task: Task) -> str:
    place = f"/v1/agents/{task.name}/tasks/{task.id}"
    return place if task.namespace == (current().tenant or DEFAULT_TENANT) else f"{place}?namespace={task.namespace}"


def _tenant(request: Request) -> str:
    caller = current()
    asked = request.query_params.get("tenant")
    if asked is not None and asked != caller.tenant and not caller.sees_all_tenants:
        raise NotFoundError(f"no tenant {asked[:64]}")
    return asked or caller.tenant or DEFAULT_TENANT


def agent_of(request: Request) -> RuntimeKey:
    """The agent that the path names, in the caller's own namespace unless the query names another."""
    namespace = request.query_params.get("namespace") or current().tenant or DEFAULT_TENANT
    return RuntimeKey(namespace, request.path_params["name"], Kind.AGENT_RUNTIME)


def _position(text: str) -> tuple[float, str] | None:
    if not text:
        return None
    at, _, task_id = text.partition(",")
    try:
        return float(at), task_id
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
