"""Invocations of agents in the background: a task is made, and answered at once.

Errors: `{"error": text, "code": CODE}`.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON, read_bytes
from gateway.api.task_fields import (
    MAX_ATTEMPTS,
    MAX_TIMEOUT_S,
    identified,
    kept_headers,
    number_of,
    seconds_of,
    webhook_of,
)
from gateway.api.task_parts import TaskParts, place_of, shown_task
from gateway.core.clock import Clock
from gateway.core.errors import (
    BadRequestError,
    ConflictError,
    IdempotencyKeyReusedError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RuntimeNotFoundError,
)
from gateway.core.identity import current
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import DEFAULT_TENANT, Kind, Runtime, RuntimeKey, SessionId
from gateway.core.tasks import Added
from gateway.identity.scope import require_use
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.new_session import require_creation
from gateway.tasks.conversation import conversation_name
from gateway.tasks.model import Task, agent_key, caller_document, conversation_key, from_queued, session_key, to_queued

_MAX_PATH_BYTES = 2048


class AgentInvocationsAPI:
    """The handler of an agent's own paths with `Prefer: respond-async`."""

    def __init__(self, parts: TaskParts, catalog: RuntimeCatalog, lifecycle: Lifecycle, clock: Clock) -> None:
        self._store = parts.store
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._runner = parts.runner
        self._clock = clock
        self._limits = parts.limits
        self._webhooks = parts.webhooks

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"invoke_agent_async": self._invoke}

    async def _invoke(self, request: Request) -> Response:
        runtime, path = self._asked(request)
        require_use(current(), path.partition("?")[0].encode())
        body = await read_bytes(request, self._limits.max_body)
        session, conversation = await self._session(request, runtime), ""
        if not session:
            require_creation(runtime.key.base)
            if runtime.invocations.session and (name := conversation_name(body, runtime.invocations.session)):
                conversation = conversation_key(current(), runtime.key.base, name)
        task = await self._task(request, runtime, path, session, conversation)
        # The key decides the id, so the store itself finds that the task is there: of two equal requests that come at
        # the same time to two gateways one adds, and the other gets `EXISTS`. A look before adding would let both
        # through.
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
        place = place_of(task)
        return JSON(
            shown_task(task),
            202,
            {"location": place, "preference-applied": "respond-async", "retry-after": "1"},
        )

    def _asked(self, request: Request) -> tuple[Runtime, str]:
        """The agent, and the path and query for it, as sent. Raises RuntimeNotFoundError, as for one of others."""
        # As it was sent, behind /v1/namespaces/NAMESPACE/agent-runtimes/NAME/invocations: starlette's path is decoded,
        # and an agent may tell %2F from a slash.
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

    async def _task(self, request: Request, runtime: Runtime, path: str, session: str, conversation: str) -> Task:
        now, headers, caller = self._clock.now(), request.headers, current()
        key, defaults = runtime.key.base, runtime.invocations
        # What its session may run at a time is counted by the session, or by the conversation as long as that has none:
        # two first messages of one conversation would otherwise make two sessions.
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
            webhook=await webhook_of(headers, self._webhooks),
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
