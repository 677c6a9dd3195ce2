"""E2B's control plane: create, connect, list, pause, kill sandboxes, which are sessions of code interpreters.

A timeout that kills is the session's `ttl`. One that pauses (`autoPause`) is its idle timeout: a sandbox in use is not
paused under its client, which E2B would do. A paused sandbox wakes on its next request; no `connect` is needed.
Source: github.com/e2b-dev/infra (spec/openapi.yml), and what the SDKs 2.7 to 2.63 send.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.e2b.access_tokens import AccessTokens
from gateway.api.e2b.metrics import read_between, samples
from gateway.api.e2b.records import (
    E2BRecord,
    detail_document,
    ends_at,
    is_running,
    listed_document,
    record_of,
    sandbox_document,
)
from gateway.api.e2b.sandbox_requests import (
    check_fields,
    read_envs,
    read_field,
    read_flag,
    read_metadata_filter,
    read_template,
    read_timeout,
)
from gateway.api.errors import Handler
from gateway.api.http import JSON, read_metadata, read_object, read_optional_object
from gateway.api.session_list import cursor_of, list_sessions, read_cursor
from gateway.api.sessions import DEFAULT_NAME, DELETED_BY_USER, create_session, live_session
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, ConflictError, NotFoundError, WakegateError
from gateway.core.interfaces import LoadReader, RuntimeCatalog, SessionStore
from gateway.core.model import Kind, Runtime, RuntimeKey, Session, SessionState
from gateway.core.units import rfc3339
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import UNSET, Lifecycle

# E2B's own templates that a code interpreter stands for.
BUILT_IN_TEMPLATES = frozenset(("", "base", "code-interpreter-v1"))
_TIMEOUT_S, _OLD_TIMEOUT_S = 300.0, 15.0  # of /v2/sandboxes and /sandboxes, where a request has none
_MAX_LIST = 100


class TemplateNotFoundError(NotFoundError):
    """No runtime has the name of the template."""

    code = "TEMPLATE_NOT_FOUND"


class NotSupportedError(WakegateError):
    """E2B has this and Wakegate has not; nothing was changed."""

    status = 501
    code = "NOT_SUPPORTED"


class SandboxesAPI:
    """Handlers of the control plane. `domain`: below it are the host names of ports; empty: there are none.

    `engine`: tells what sandboxes use; None: it cannot.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        hibernator: Hibernator,
        store: SessionStore,
        catalog: RuntimeCatalog,
        tokens: AccessTokens,
        clock: Clock,
        *,
        domain: str,
        engine: LoadReader | None = None,
    ) -> None:
        self._lifecycle = lifecycle
        self._hibernator = hibernator
        self._store = store
        self._catalog = catalog
        self._tokens = tokens
        self._clock = clock
        self._domain = domain or None
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "e2b_create_sandbox": self._create,
            "e2b_create_sandbox_v1": self._create,
            "e2b_list_sandboxes": self._list,
            "e2b_list_sandboxes_v1": self._list,
            "e2b_get_sandbox": self._get,
            "e2b_kill_sandbox": self._kill,
            "e2b_connect_sandbox": self._connect,
            "e2b_connect_sandbox_v1": self._connect,
            "e2b_resume_sandbox": self._connect,
            "e2b_pause_sandbox": self._pause,
            "e2b_set_timeout": self._set_timeout,
            "e2b_refresh_sandbox": self._refresh,
            "e2b_get_sandbox_metrics": self._metrics,
            "e2b_get_sandbox_logs": self._logs,
            "e2b_fork_sandbox": self._refuse,
            "e2b_snapshot_sandbox": self._refuse,
            "e2b_update_network": self._refuse,
        }

    async def _create(self, request: Request) -> Response:
        body = await read_object(request)
        is_old = not request.url.path.lstrip("/").startswith("v2/")
        check_fields(body)
        template = read_template(body)
        runtime = self._runtime(template)
        for name in ("mcp", "iam", "volumeMounts"):
            if body.get(name):
                raise BadRequestError(f"{name}: not supported here; leave it out")
        record = E2BRecord(
            template=template or runtime.key.name,
            envs=read_envs(body),
            auto_pause=read_flag(body, "autoPause", default=False),
            auto_resume=read_flag(read_field(body, "autoResume"), "enabled", default=True),
            allow_internet=read_flag(body, "allow_internet_access", default=None),
        )
        # Either the one or the other: a sandbox that pauses ends only with its runtime's maximum duration.
        timeout = read_timeout(body, "timeout", _OLD_TIMEOUT_S if is_old else _TIMEOUT_S)
        opened = await create_session(
            request,
            self._lifecycle,
            runtime.key,
            ttl=None if record.auto_pause else timeout,
            idle_timeout=timeout if record.auto_pause else None,
            metadata={**read_metadata(body), **record.stored()},
            # Without a word of it the runtime's own rules apply, which allow nothing unless its manifest says so.
            egress=() if record.allow_internet is False else None,
        )
        return JSON(self._document(opened.session), 201)

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        wanted_metadata = read_metadata_filter(query.get("metadata", ""))
        states = {each.strip() for each in query.get("state", "running,paused").split(",")}
        if not states <= {"running", "paused"}:
            raise BadRequestError("state: expected running, paused or both")
        limit = query.get("limit", str(_MAX_LIST))
        if not limit.isascii() or not limit.isdigit() or len(limit) > 3 or not 1 <= int(limit) <= _MAX_LIST:
            raise BadRequestError(f"limit: expected a whole number from 1 to {_MAX_LIST}")

        def wanted(session: Session) -> bool:
            return (
                session.runtime.kind is Kind.CODE_INTERPRETER
                and ("running" if is_running(session) else "paused") in states
                and wanted_metadata.items() <= session.public_metadata.items()
            )

        token = query.get("nextToken")
        after = await read_cursor(self._store, token) if token else None
        found = await list_sessions(self._store, wanted, ended=False, after=after, limit=int(limit))
        # A full page may be the last one; its client then asks once more and gets an empty list.
        headers = {"x-next-token": cursor_of(found[-1])} if len(found) == int(limit) else {}
        return JSON([listed_document(each, self._catalog.get(each.runtime)) for each in found], headers=headers)

    async def _get(self, request: Request) -> Response:
        session = await self._require(request)
        return JSON(detail_document(session, self._catalog.get(session.runtime), self._domain))

    async def _kill(self, request: Request) -> Response:
        session = await self._require(request)
        await self._lifecycle.terminate(session.id, DELETED_BY_USER)
        return Response(status_code=204)

    async def _connect(self, request: Request) -> Response:
        body = await read_optional_object(request)
        session = await self._require(request)
        was_running = session.state is SessionState.ACTIVE
        opened = await self._lifecycle.wake(session.id)
        timeout = read_timeout(body, "timeout", _TIMEOUT_S)
        session = opened.session
        if ends_at(session) < self._clock.now() + timeout:  # connecting only ever extends the time that is left
            session = await self._extend(session, timeout)
        return JSON(self._document(session), 200 if was_running else 201)

    async def _pause(self, request: Request) -> Response:
        session = await self._require(request)
        if session.state is SessionState.HIBERNATED:  # the SDKs read 409 as "was paused before", and return False
            raise ConflictError(f"sandbox {session.id} is paused already")
        await self._hibernator.hibernate(session.id)
        return Response(status_code=204)

    async def _set_timeout(self, request: Request) -> Response:
        body = await read_object(request)
        timeout = read_timeout(body, "timeout", None)
        await self._extend(await self._require(request), timeout)
        return Response(status_code=204)

    async def _refresh(self, request: Request) -> Response:
        body = await read_optional_object(request)
        session = await self._require(request)
        duration = read_timeout(body, "duration", _OLD_TIMEOUT_S)
        if ends_at(session) < self._clock.now() + duration:
            await self._extend(session, duration)
        return Response(status_code=204)

    async def _metrics(self, request: Request) -> Response:
        between = read_between(request.query_params)
        session = await self._require(request)
        if session.sandbox is None or self._engine is None:
            return JSON([])
        limits = (self._catalog.get(session.runtime) or Runtime(session.runtime)).limits.resized(session.resources)
        return JSON(await samples(self._engine, session.sandbox.id, limits, self._clock, between))

    async def _logs(self, request: Request) -> Response:
        session = await self._require(request)
        line = f"sandbox {session.id} is {'running' if is_running(session) else 'paused'}"
        entry = {"timestamp": rfc3339(session.created_at), "message": line, "level": "info", "fields": {}}
        return JSON({"logs": [entry]})

    async def _refuse(self, request: Request) -> Response:
        """What Wakegate has not; first come the errors of any request, by which clients tell what is wrong."""
        await read_optional_object(request)
        await self._require(request)
        verb = request.url.path.rpartition("/")[2]
        raise NotSupportedError(
            f"{verb} is not supported here: a sandbox has one copy, and its network rules are its runtime's"
        )

    async def _extend(self, session: Session, timeout: float) -> Session:
        """Let the timeout pass in `timeout` seconds from now."""
        if record_of(session).auto_pause:
            await self._store.touch_many({session.id: self._clock.now()})  # the idle timeout counts from the last use
            return await self._lifecycle.update(session.id, idle_timeout=max(timeout, 1.0))
        return await self._lifecycle.update(session.id, ttl=timeout, idle_timeout=UNSET)

    async def _require(self, request: Request) -> Session:
        name = request.path_params["sandbox_id"]

        def absent(reason: str) -> str:
            return f"sandbox {name[:128]} was not found" + (f": it has ended ({reason})" if reason else "")

        return await live_session(self._lifecycle, request, name, absent)

    def _runtime(self, template: str) -> Runtime:
        """The runtime that a template stands for. Raises TemplateNotFoundError."""
        served = [each for each in self._catalog.all() if each.key.kind is Kind.CODE_INTERPRETER]
        namespace, _, name = template.rpartition("/")
        named = self._catalog.get(RuntimeKey(namespace or "default", name))
        # A built-in template is what a client gets that names none: the usual runtime, or the only one there is.
        if named is None and template in BUILT_IN_TEMPLATES:
            usual = self._catalog.get(RuntimeKey("default", DEFAULT_NAME))
            named = usual or (served[0] if len(served) == 1 else None)
        if named is None:
            names = ", ".join(f"{each.key.namespace}/{each.key.name}" for each in served[:20]) or "none"
            raise TemplateNotFoundError(
                f"template {template[:128]!r} was not found; a template is a runtime: there are {names}"
            )
        return named

    def _document(self, session: Session) -> dict[str, Any]:
        return sandbox_document(session, self._tokens.of(session.id), self._domain)
