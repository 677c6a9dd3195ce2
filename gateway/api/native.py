"""Wakegate's own control API: sessions, runtimes, health. Errors: `{"error": text, "code": CODE}`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.body import JSON, error_headers, read_metadata, read_object, read_seconds
from gateway.api.relay import relay
from gateway.core.errors import BadRequestError, WakegateError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider, SessionStore
from gateway.core.model import Kind, PoolStatus, Runtime, RuntimeKey, Session, SessionId, SessionState
from gateway.core.units import rfc3339
from gateway.sessions.lifecycle import UNSET, Lifecycle
from gateway.sessions.membership import ElsewhereError

Handler = Callable[[Request], Awaitable[Response]]


class NativeAPI:
    """Handlers over lifecycle, store and provider."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        store: SessionStore,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        explain_pools: Callable[[], dict[str, Any]],
        is_draining: Callable[[], bool],
        render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
    ) -> None:
        self._render_metrics = render_metrics
        self._explain_pools = explain_pools
        self._lifecycle = lifecycle
        self._store = store
        self._provider = provider
        self._catalog = catalog
        self._is_draining = is_draining
        self._pools_settled = self._store_met = False  # once they were, and it was

    def routes(self) -> list[Route]:
        """The API's paths."""
        return [
            Route("/v1/sessions", _guarded(self._create), methods=["POST"]),
            Route("/v1/sessions", _guarded(self._list), methods=["GET"]),
            Route("/v1/sessions/{session_id}", _guarded(self._get), methods=["GET"]),
            Route("/v1/sessions/{session_id}", _guarded(self._update), methods=["PATCH"]),
            Route("/v1/sessions/{session_id}", _guarded(self._delete), methods=["DELETE"]),
            Route("/v1/sessions/{session_id}/hibernate", _guarded(self._hibernate), methods=["POST"]),
            Route("/v1/sessions/{session_id}/wake", _guarded(self._wake), methods=["POST"]),
            Route("/v1/runtimes", _guarded(self._runtimes), methods=["GET"]),
            Route("/v1/autoscaler", _guarded(self._autoscaler), methods=["GET"]),
            Route("/v1/autoscaler/history", _guarded(self._history), methods=["GET"]),
            Route("/metrics", _guarded(self._metrics), methods=["GET"]),
            Route("/healthz", _guarded(self._healthz), methods=["GET"]),
            Route("/readyz", _guarded(self._readyz), methods=["GET"]),
            Route("/health/ready", _guarded(self._health_ready), methods=["GET"]),
        ]

    async def _create(self, request: Request) -> Response:
        body = await read_object(request)
        unknown = sorted(body.keys() - {"runtime", "ttl", "idleTimeout", "metadata"})
        if unknown:
            raise BadRequestError(f"{unknown[0]}: unknown field; expected runtime, ttl, idleTimeout or metadata")
        key = read_runtime(body.get("runtime"))
        ttl, idle_timeout = read_seconds(body, "ttl"), read_seconds(body, "idleTimeout")
        metadata = read_metadata(body)
        async with self._lifecycle.claims.held(key):
            opened = await self._lifecycle.create(key, ttl=ttl, idle_timeout=idle_timeout, metadata=metadata)
        session_id = opened.session.id
        headers = {
            "location": f"/v1/sessions/{session_id}",
            "x-session-id": session_id,
            "x-agentcube-session-id": session_id,
            "x-wakegate-start": opened.start.value,
        }
        return JSON(session_document(opened.session), 201, headers)

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        unknown = sorted(query.keys() - {"state", "runtime", "after", "limit"})
        if unknown:
            raise BadRequestError(f"{unknown[0]}: unknown parameter; expected state, runtime, after or limit")
        state = query.get("state")
        if state is not None and state not in list(SessionState):
            raise BadRequestError(f"state: expected one of {', '.join(SessionState)}; got {state[:64]!r}")
        limit = query.get("limit", "100")
        if len(limit) > 4 or not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 1000:
            raise BadRequestError(f"limit: expected a whole number from 1 to 1000, got {limit[:64]!r}")
        runtime = read_runtime(query["runtime"]) if "runtime" in query else None
        after = SessionId(query["after"]) if "after" in query else None
        found = self._store.sessions(
            state=SessionState(state) if state else None, runtime=runtime, after=after, limit=int(limit)
        )
        sessions = [session async for session in found]
        following = sessions[-1].id if len(sessions) == int(limit) else None
        return JSON({"sessions": [session_document(session) for session in sessions], "next": following})

    async def _get(self, request: Request) -> Response:
        return JSON(session_document(await self._lifecycle.get(SessionId(request.path_params["session_id"]))))

    async def _update(self, request: Request) -> Response:
        body = await read_object(request)
        unknown = sorted(body.keys() - {"ttl", "idleTimeout", "metadata"})
        if unknown:
            raise BadRequestError(f"{unknown[0]}: cannot be changed; expected ttl, idleTimeout or metadata")
        ttl, idle_timeout = read_seconds(body, "ttl"), read_seconds(body, "idleTimeout")
        if "idleTimeout" in body and idle_timeout is None:
            raise BadRequestError("idleTimeout: expected a duration above zero, got null")
        session = await self._lifecycle.update(
            SessionId(request.path_params["session_id"]),
            ttl=ttl if "ttl" in body else UNSET,
            idle_timeout=UNSET if idle_timeout is None else idle_timeout,
            metadata=read_metadata(body) if "metadata" in body else None,
        )
        return JSON(session_document(session))

    async def _delete(self, request: Request) -> Response:
        await self._lifecycle.terminate(SessionId(request.path_params["session_id"]), "deleted by its user")
        return Response(status_code=204)

    async def _hibernate(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        await self._lifecycle.hibernate(session_id)
        return JSON(session_document(await self._lifecycle.get(session_id)))

    async def _wake(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        async with self._lifecycle.claims.held((await self._lifecycle.get_cached(session_id)).runtime):
            opened = await self._lifecycle.open(session_id)
        headers = {"x-wakegate-start": opened.start.value}
        if opened.restored is not None:
            headers["x-wakegate-restored"] = opened.restored
        return JSON(session_document(opened.session), headers=headers)

    async def _runtimes(self, _: Request) -> Response:
        runtimes = [runtime_document(each, await self._provider.status(each.key)) for each in self._catalog.all()]
        return JSON({"runtimes": runtimes})

    async def _autoscaler(self, _: Request) -> Response:
        return JSON(self._explain_pools())

    async def _history(self, request: Request) -> Response:
        """Recorded claims as `wakegate replay` reads them: a line of JSON per runtime."""
        query = request.query_params
        unknown = sorted(query.keys() - {"runtime", "bucket"})
        if unknown:
            raise BadRequestError(f"{unknown[0]}: unknown parameter; expected runtime or bucket")
        bucket = query.get("bucket", "60")
        if bucket not in ("1", "60"):
            raise BadRequestError(f"bucket: expected 1 (the last hours) or 60 (two weeks), got {bucket[:64]!r}")
        runtimes = [runtime.key for runtime in self._catalog.all()]
        if "runtime" in query:
            asked = read_runtime(query["runtime"])
            runtimes = [key for key in runtimes if (key.namespace, key.name) == (asked.namespace, asked.name)]
        lines = []
        for key in runtimes:
            counts = await self._store.claim_history(key, 0.0, bucket=int(bucket))
            lines.append(orjson.dumps({"runtime": str(key), "bucket": int(bucket), "counts": counts}) + b"\n")
        return Response(b"".join(lines), headers={"content-type": "application/x-ndjson"})

    async def _metrics(self, request: Request) -> Response:
        body, content_type = await self._render_metrics(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def _healthz(self, _: Request) -> Response:
        return JSON({"status": "alive"})

    async def _readyz(self, _: Request) -> Response:
        reasons = [*self._draining(), *await self._store_away(), *await self._unsettled()]
        return JSON({"status": "not ready", "reasons": reasons}, 503) if reasons else JSON({"status": "ready"})

    async def _health_ready(self, _: Request) -> Response:
        """Whether to be sent traffic: as /readyz, but once the store has answered, its absence is no reason.

        Live sessions are served without it, and all replicas lose it together: if each stood back, none would.
        """
        reasons = [*self._draining(), *([] if self._store_met else await self._store_away()), *await self._unsettled()]
        if reasons:
            return JSON({"error": "; ".join(reasons), "status": "not ready"}, 503)
        return JSON({"status": "ready"})

    def _draining(self) -> list[str]:
        return ["this gateway is shutting down"] if self._is_draining() else []

    async def _store_away(self) -> list[str]:
        try:
            await self._store.ping()
        except WakegateError as error:
            return [f"the session store does not answer: {error}"]
        self._store_met = True
        return []

    async def _unsettled(self) -> list[str]:
        """Pools that have no sandbox yet. Asked until all had one: a runtime that is added later, whose image is still
        being pulled, is no reason to take all of them away from everybody."""
        if self._pools_settled:
            return []
        reasons = []
        for runtime in self._catalog.all():
            status = await self._provider.status(runtime.key)
            if not status.settled:
                trouble = f"; last failure: {status.last_error}" if status.last_error else ""
                reasons.append(f"{runtime.key}: no warm sandbox yet, {status.starting} starting{trouble}")
        self._pools_settled = not reasons
        return reasons


def read_runtime(value: Any) -> RuntimeKey:
    """`"name"`, `"namespace/name"` or `{"namespace", "name", "kind"}`. Raises BadRequestError."""
    if isinstance(value, str) and value:
        namespace, slash, name = value.partition("/")
        return RuntimeKey(namespace, name) if slash else RuntimeKey("default", namespace)
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        kind, namespace = value.get("kind", Kind.CODE_INTERPRETER), value.get("namespace", "default")
        if kind in list(Kind) and isinstance(namespace, str):
            return RuntimeKey(namespace, value["name"], Kind(kind))
    raise BadRequestError('runtime: expected "namespace/name", or an object with name, namespace and kind')


def session_document(session: Session) -> dict[str, Any]:
    """A session as the API shows it. Times are RFC 3339."""
    return {
        "id": session.id,
        "runtime": {"namespace": session.runtime.namespace, "name": session.runtime.name, "kind": session.runtime.kind},
        "state": session.state,
        "start": session.start,
        "createdAt": rfc3339(session.created_at),
        "lastActiveAt": rfc3339(session.last_active_at),
        "expiresAt": rfc3339(session.expires_at),
        "idleTimeout": session.idle_timeout,
        "snapshotAt": None if session.snapshot_at is None else rfc3339(session.snapshot_at),
        "sandboxId": session.sandbox.id if session.sandbox else None,
        "reason": session.reason,
        "metadata": dict(session.metadata),
    }


def runtime_document(runtime: Runtime, status: PoolStatus) -> dict[str, Any]:
    """A runtime and its pool as the API shows them."""
    return {
        "namespace": runtime.key.namespace,
        "name": runtime.key.name,
        "kind": runtime.key.kind,
        "image": runtime.image,
        "sessionTimeout": runtime.session_timeout,
        "maxSessionDuration": runtime.max_session_duration,
        "pool": {
            "mode": runtime.pool.mode,
            "target": status.target,
            "ready": status.ready,
            "starting": status.starting,
            "claimed": status.claimed,
            "failures": status.failures,
            "lastError": status.last_error,
            "retryAt": None if status.retry_at is None else rfc3339(status.retry_at),
            "losses": status.losses,
            "lastLoss": status.last_loss,
            "leadTimeP50": status.lead_time_p50,
            "leadTimeP90": status.lead_time_p90,
        },
    }


def _guarded(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            try:
                return await handler(request)
            except ElsewhereError as elsewhere:
                return await relay(request, elsewhere)
        except WakegateError as error:
            return JSON({"error": str(error), "code": error.code}, error.status, error_headers(error))

    return answer
