"""Wakegate's own control API: sessions, runtimes and their pools. Errors: `{"error": text, "code": CODE}`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import (
    JSON,
    read_egress,
    read_metadata,
    read_object,
    read_public_ports,
    read_runtime,
    read_seconds,
    session_headers,
)
from gateway.api.resources import read_resources, resources_document
from gateway.api.session_list import Position, cursor_at, cursor_of, list_sessions, read_cursor
from gateway.api.session_search import read_query, search_sessions
from gateway.api.sessions import DEFAULT_NAME, DELETED_BY_USER, create_session
from gateway.core.errors import BadRequestError, PermissionDeniedError, without_host_paths
from gateway.core.identity import Permission, current
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider, SessionStore
from gateway.core.model import DEFAULT_TENANT, PoolStatus, Runtime, RuntimeKey, Session, SessionId, SessionState
from gateway.core.units import rfc3339
from gateway.runtimes.shown import shown_manifest
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import UNSET, Lifecycle
from gateway.sessions.resizing import Resizing

_MAX_PAGE_BYTES = 1 << 20  # a record has up to 16 KiB of metadata, so 1,000 of them could be 16 MB
_LIST_PARAMETERS = ("state", "runtime", "search", "after", "limit")
_METADATA = "metadata."  # ?metadata.KEY=VALUE


class NativeAPI:
    """Handlers for sessions and runtimes. `explain_pools` returns the autoscaler's explanation of each pool, `what_if`
    what else one might have cost, `outcomes` what was forecast of it and what came."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        hibernator: Hibernator,
        resizing: Resizing,
        store: SessionStore,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        explain_pools: Callable[[], dict[str, Any]],
        what_if: Callable[[RuntimeKey], dict[str, Any]],
        outcomes: Callable[[RuntimeKey], dict[str, Any]],
    ) -> None:
        self._explain_pools = explain_pools
        self._what_if = what_if
        self._outcomes = outcomes
        self._lifecycle = lifecycle
        self._hibernator = hibernator
        self._resizing = resizing
        self._store = store
        self._provider = provider
        self._catalog = catalog

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "create_session": self._create,
            "list_sessions": self._list,
            "get_session": self._get,
            "update_session": self._update,
            "delete_session": self._delete,
            "hibernate_session": self._hibernate,
            "wake_session": self._wake,
            "list_runtimes": self._runtimes,
            "explain_autoscaler": self._autoscaler,
            "autoscaler_what_if": self._what_if_pool,
            "autoscaler_forecasts": self._forecasts,
            "export_claim_history": self._history,
        }

    async def _create(self, request: Request) -> Response:
        body = await read_object(request)
        unknown = sorted(body.keys() - {"runtime", "ttl", "idleTimeout", "metadata", "egress", "publicPorts"})
        if unknown:
            raise BadRequestError(
                f"{unknown[0]}: unknown field; expected runtime, ttl, idleTimeout, metadata, egress or publicPorts"
            )
        key = self._default_runtime() if body.get("runtime") is None else read_runtime(body["runtime"])
        ttl, idle_timeout = read_seconds(body, "ttl"), read_seconds(body, "idleTimeout")
        metadata = read_metadata(body)
        opened = await create_session(
            request,
            self._lifecycle,
            key,
            ttl=ttl,
            idle_timeout=idle_timeout,
            metadata=metadata,
            egress=read_egress(body),
            public_ports=read_public_ports(body),
        )
        session_id = opened.session.id
        headers = {
            "location": f"/v1/sessions/{session_id}",
            **session_headers(session_id),
            "x-wakegate-start": opened.start.value,
        }
        return JSON(session_document(opened.session), 201, headers)

    async def _list(self, request: Request) -> Response:
        """List sessions, newest first; without `state`, those that have not ended."""
        query = request.query_params
        metadata = {name.removeprefix(_METADATA): value for name, value in query.items() if name.startswith(_METADATA)}
        unknown = sorted(name for name in query if name not in _LIST_PARAMETERS and not name.startswith(_METADATA))
        if unknown:
            expected = f"{', '.join(_LIST_PARAMETERS)} or {_METADATA}KEY"
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected {expected}")
        state = query.get("state")
        if state is not None and state not in ("all", *SessionState):
            raise BadRequestError(f"state: expected one of all, {', '.join(SessionState)}; got {state[:64]!r}")
        limit = query.get("limit", "100")
        # isascii, because "²".isdigit() is true and int("²") fails.
        if len(limit) > 4 or not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 1000:
            raise BadRequestError(f"limit: expected a whole number from 1 to 1000, got {limit[:64]!r}")
        runtime = read_runtime(query["runtime"]) if "runtime" in query else None
        after = await read_cursor(self._store, query["after"]) if "after" in query else None

        def wanted(session: Session) -> bool:
            return (
                state in (None, "all", session.state)
                and runtime in (None, session.runtime.base)
                and metadata.items() <= session.public_metadata.items()
            )

        ended = state in ("all", SessionState.TERMINATED)
        text = read_query(query.get("search", ""))
        if text.words:
            found, beyond = await search_sessions(self._store, text, wanted, ended=ended, after=after, limit=int(limit))
        else:
            found = await list_sessions(self._store, wanted, ended=ended, after=after, limit=int(limit))
            # A full page may be the last one: the client then gets an empty page, and stops.
            beyond = (found[-1].created_at, found[-1].id) if len(found) == int(limit) else None
        return JSON(_page(found, beyond))

    def _default_runtime(self) -> RuntimeKey:
        """The runtime for a request that names none: the built-in one, or the only one. Raises BadRequestError."""
        runtimes = [runtime.key for runtime in self._catalog.all() if current().sees_runtime(runtime)]
        built_in = RuntimeKey("default", DEFAULT_NAME)
        if built_in in runtimes:
            return built_in
        if len(runtimes) != 1:
            # Bounded: a cluster may serve hundreds, and the message goes to a log as well.
            names = ", ".join(map(str, runtimes[:20])) or "none"
            raise BadRequestError(f"runtime: missing; name one of {names}")
        return runtimes[0]

    async def _get(self, request: Request) -> Response:
        return JSON(session_document(await self._lifecycle.get(SessionId(request.path_params["session_id"]))))

    async def _update(self, request: Request) -> Response:
        body = await read_object(request)
        unknown = sorted(body.keys() - {"ttl", "idleTimeout", "metadata", "resources"})
        if unknown:
            raise BadRequestError(f"{unknown[0]}: cannot be changed; expected ttl, idleTimeout, metadata or resources")
        ttl, idle_timeout = read_seconds(body, "ttl"), read_seconds(body, "idleTimeout")
        # null means "no limit of its own" for ttl. An idle timeout has no such meaning: every session has one.
        if "idleTimeout" in body and idle_timeout is None:
            raise BadRequestError("idleTimeout: expected a duration above zero, got null")
        session_id = SessionId(request.path_params["session_id"])
        metadata = read_metadata(body) if "metadata" in body else None
        if "resources" in body:
            # First: where it is refused, nothing else is changed.
            session = await self._resizing.resize(session_id, read_resources(body))
            if body.keys() == {"resources"}:
                return JSON(session_document(session))
        session = await self._lifecycle.update(
            session_id,
            # An absent field leaves the value as it is; null takes the session's own end away.
            ttl=ttl if "ttl" in body else UNSET,
            idle_timeout=UNSET if idle_timeout is None else idle_timeout,
            metadata=metadata,
        )
        return JSON(session_document(session))

    async def _delete(self, request: Request) -> Response:
        await self._lifecycle.terminate(SessionId(request.path_params["session_id"]), DELETED_BY_USER)
        return Response(status_code=204)

    async def _hibernate(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        await self._hibernator.hibernate(session_id)
        # Read again: a request may have woken the session in the meantime, and the answer should show that.
        return JSON(session_document(await self._lifecycle.get(session_id)))

    async def _wake(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        opened = await self._lifecycle.wake(session_id)
        headers = {**session_headers(session_id), "x-wakegate-start": opened.start.value}
        if opened.restored is not None:
            headers["x-wakegate-restored"] = opened.restored
        return JSON(session_document(opened.session), headers=headers)

    async def _runtimes(self, request: Request) -> Response:
        query = request.query_params
        if unknown := sorted(query.keys() - {"runtime", "manifest"}):
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected runtime or manifest")
        named = read_runtime(query["runtime"]) if "runtime" in query else None
        manifest = query.get("manifest", "false")
        if manifest not in ("true", "false"):
            raise BadRequestError(f"manifest: expected true or false, got {manifest[:64]!r}")
        # Of who runs the gateway: it names its folders, and masks are no proof that nothing is left.
        if manifest == "true" and not current().may(Permission.READ_POOLS):
            raise PermissionDeniedError(f"the role {current().role} sees no manifests; an admin or an operator does")
        runtimes = [
            runtime_document(each, await self._provider.status(each.key))
            | ({"manifest": shown_manifest(each.manifest) or None} if manifest == "true" else {})
            for each in self._catalog.all()
            if current().sees_runtime(each)
            and (named is None or (each.key.namespace, each.key.name) == (named.namespace, named.name))
        ]
        return JSON({"runtimes": runtimes})

    async def _autoscaler(self, _: Request) -> Response:
        return JSON(self._explain_pools())

    async def _what_if_pool(self, request: Request) -> Response:
        return JSON(self._what_if(self._pool_of(request)))

    async def _forecasts(self, request: Request) -> Response:
        return JSON(self._outcomes(self._pool_of(request)))

    def _pool_of(self, request: Request) -> RuntimeKey:
        """The runtime that a path names, with its namespace and kind in the query. Raises BadRequestError.

        Of an agent NAME@3 is a revision's, as GET /v1/autoscaler lists its pools.
        """
        query = request.query_params
        unknown = sorted(query.keys() - {"namespace", "kind"})
        if unknown:
            raise BadRequestError(f"{unknown[0]}: unknown parameter; expected namespace or kind")
        name, at, revision = request.path_params["runtime"].partition("@")
        if at and not (revision.isascii() and revision.isdecimal() and 0 < len(revision) < 10):
            raise BadRequestError(f"runtime: expected NAME or NAME@REVISION, got {revision[:64]!r} as the revision")
        fields = {"name": name, "namespace": query.get("namespace", "default")}
        key = read_runtime({**fields, "kind": query["kind"]} if "kind" in query else fields)
        return replace(key, revision=int(revision)) if at else key

    async def _history(self, request: Request) -> Response:
        """Export recorded claims in the format of `wakegate replay`: a line of JSON per runtime."""
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
            # Claims of a code interpreter and of an agent of the same name are two histories, and both are exported.
            runtimes = [key for key in runtimes if (key.namespace, key.name) == (asked.namespace, asked.name)]
        lines = []
        for key in runtimes:
            counts = await self._store.claim_history(key, 0.0, bucket=int(bucket))
            lines.append(orjson.dumps({"runtime": str(key), "bucket": int(bucket), "counts": counts}) + b"\n")
        return Response(b"".join(lines), headers={"content-type": "application/x-ndjson"})


def _page(sessions: Sequence[Session], beyond: Position | None) -> dict[str, Any]:
    """One page of a list, which goes on beyond a position, if there is one. It ends early at _MAX_PAGE_BYTES; `next` is
    the `after` of the following page."""
    documents: list[dict[str, Any]] = []
    size = 0
    for session in sessions:
        document = session_document(session)
        size += len(orjson.dumps(document))
        # At least one, or a client could never get past a large record.
        if documents and size > _MAX_PAGE_BYTES:
            return {"sessions": documents, "next": cursor_of(sessions[len(documents) - 1])}
        documents.append(document)
    return {"sessions": documents, "next": None if beyond is None else cursor_at(beyond)}


def session_document(session: Session) -> dict[str, Any]:
    """A session as a JSON object of this API. Times are in RFC 3339."""
    return {
        "id": session.id,
        "runtime": {"namespace": session.runtime.namespace, "name": session.runtime.name, "kind": session.runtime.kind},
        **({"revision": session.runtime.revision} if session.runtime.revision else {}),
        "tenant": session.tenant or DEFAULT_TENANT,
        "state": session.state,
        "start": session.start,
        "createdAt": rfc3339(session.created_at),
        "lastActiveAt": rfc3339(session.last_active_at),
        "expiresAt": rfc3339(session.expires_at),
        "idleTimeout": session.idle_timeout,
        "snapshotAt": None if session.snapshot_at is None else rfc3339(session.snapshot_at),
        "sandboxId": session.sandbox.id if session.sandbox else None,
        "reason": session.reason,
        "metadata": session.public_metadata,
        "egress": None if session.egress is None else list(session.egress),
        "publicPorts": list(session.public_ports),
        "resources": resources_document(session.resources),
    }


def runtime_document(runtime: Runtime, status: PoolStatus) -> dict[str, Any]:
    """A runtime and its warm pool as a JSON object of this API."""
    return {
        "namespace": runtime.key.namespace,
        "name": runtime.key.name,
        "kind": runtime.key.kind,
        **({"revision": runtime.key.revision} if runtime.key.revision else {}),
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
            "lastError": without_host_paths(status.last_error),
            "retryAt": None if status.retry_at is None else rfc3339(status.retry_at),
            "losses": status.losses,
            "lastLoss": without_host_paths(status.last_loss),
            "leadTimeP50": status.lead_time_p50,
            "leadTimeP90": status.lead_time_p90,
        },
    }
