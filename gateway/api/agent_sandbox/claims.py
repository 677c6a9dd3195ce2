"""The calls of the Kubernetes API that agent-sandbox's clients make: claims, and their sandboxes.

A kubeconfig that names the gateway as its cluster is all that such a client needs. There is no discovery, and there are
no other kinds: this is no cluster.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from datetime import datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.agent_sandbox.index import ClaimIndex
from gateway.api.agent_sandbox.records import (
    CLAIM_GROUP,
    SANDBOX_GROUP,
    Claim,
    claim_document,
    claim_of,
    list_document,
    sandbox_document,
    sandbox_name,
    session_of,
)
from gateway.api.errors import Handler
from gateway.api.http import JSON, read_object
from gateway.api.session_list import list_sessions
from gateway.api.sessions import DELETED_BY_USER, create_session
from gateway.core.clock import Clock
from gateway.core.errors import (
    BadRequestError,
    ConflictError,
    NotFoundError,
    QuotaExceededError,
    SessionNotFoundError,
)
from gateway.core.identity import current
from gateway.core.interfaces import RuntimeCatalog, SessionStore
from gateway.core.model import Kind, Runtime, RuntimeKey, Session, SessionId, SessionState
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]{0,255}")
_FIELD_SELECTOR = re.compile(r"metadata\.name==?([a-z0-9][-a-z0-9.]{0,252})")
_MAX_ENV, _MAX_LABELS = 100, 64
_MAX_VALUE_CHARS = 4096
_MAX_RECORD_BYTES = 16 << 10  # of all that a claim keeps: a record is read and written whole
_MAX_LIST = 500
_MAX_SELECTOR_CHARS = 2048
_MAX_WATCH_S = 600.0
_MAX_WATCHES = 500
_LOOK_INTERVAL_S = 1.0  # of a watch, whose changes are seldom: a claim is ready as soon as it is made

Documents = Callable[[Session, Claim], dict[str, Any]]


class ClaimTakenError(ConflictError):
    """There is a claim of this name."""

    code = "ALREADY_EXISTS"


class ClaimsAPI:
    """Handlers of claims and sandboxes."""

    def __init__(
        self, lifecycle: Lifecycle, hibernator: Hibernator, store: SessionStore, catalog: RuntimeCatalog, clock: Clock
    ) -> None:
        self._lifecycle = lifecycle
        self._hibernator = hibernator
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._index = ClaimIndex(store, clock)
        self._watches = 0
        self._making: set[tuple[str, str, str]] = set()  # tenant, namespace, name: of creates under way

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "agent_sandbox_create_claim": self._create,
            "agent_sandbox_list_claims": self._list_claims,
            "agent_sandbox_get_claim": self._get_claim,
            "agent_sandbox_patch_claim": self._patch_claim,
            "agent_sandbox_delete_claim": self._delete_claim,
            "agent_sandbox_list_sandboxes": self._list_sandboxes,
            "agent_sandbox_get_sandbox": self._get_sandbox,
            "agent_sandbox_patch_sandbox": self._patch_sandbox,
        }

    async def _create(self, request: Request) -> Response:
        claim = read_claim(await read_object(request), _namespace(request))
        runtime = self._runtime(claim)
        ttl = None if claim.shutdown_time is None else _seconds_until(claim.shutdown_time, self._clock.now())
        # Two creates of one name at once: the second must not pass the look-up before the first has written.
        making = (current().tenant, claim.namespace, claim.name)
        if making in self._making:
            raise _taken(claim.name)
        self._making.add(making)
        try:
            if await self._find(claim.namespace, claim.name) is not None:
                raise _taken(claim.name)
            opened = await create_session(
                request, self._lifecycle, runtime.key, ttl=ttl, metadata={"name": claim.name, **claim.stored()}
            )
            self._index.add(opened.session)
        finally:
            self._making.discard(making)
        return JSON(claim_document(opened.session, claim), 201)

    def _runtime(self, claim: Claim) -> Runtime:
        """The code interpreter that a claim's warm pool names. Raises NotFoundError."""
        for namespace in (claim.namespace, "default"):
            runtime = self._catalog.get(RuntimeKey(namespace, claim.pool))
            if runtime is not None:
                return runtime
        served = ", ".join(each.key.name for each in self._catalog.all() if each.key.kind is Kind.CODE_INTERPRETER)
        raise NotFoundError(
            f'sandboxwarmpools.{CLAIM_GROUP} "{claim.pool[:253]}" not found: no code interpreter has this name;'
            f" there are {served[:500] or 'none'}"
        )

    async def _list_claims(self, request: Request) -> Response:
        return await self._listed(request, "SandboxClaim", CLAIM_GROUP, claim_document, lambda _, claim: claim.name)

    async def _list_sandboxes(self, request: Request) -> Response:
        return await self._listed(
            request, "Sandbox", SANDBOX_GROUP, sandbox_document, lambda session, _: sandbox_name(session.id)
        )

    async def _listed(
        self, request: Request, kind: str, group: str, document: Documents, name_of: Callable[[Session, Claim], str]
    ) -> Response:
        query, namespace = request.query_params, _namespace(request)
        wanted = _read_field_selector(query.get("fieldSelector", ""))
        labels = _read_label_selector(query.get("labelSelector", ""))

        def shown(session: Session) -> dict[str, Any] | None:
            claim = claim_of(session)
            if claim is None or claim.namespace != namespace or session.state is SessionState.TERMINATED:
                return None
            fits = labels.items() <= claim.labels.items() and wanted in (None, name_of(session, claim))
            return document(session, claim) if fits and current().sees(session) else None

        if query.get("watch", "").lower() in ("true", "1"):
            lasts = _read_timeout(query.get("timeoutSeconds", ""))
            if self._watches >= _MAX_WATCHES:
                raise QuotaExceededError(
                    f"watches: {self._watches} are open at this gateway, the most that may be",
                    limit="watches", value=_MAX_WATCHES, used=self._watches,
                )  # fmt: skip
            changes = self._changes(namespace, wanted if kind == "SandboxClaim" else None, shown, lasts)
            return StreamingResponse(changes, media_type="application/json")
        found = await list_sessions(self._store, lambda each: shown(each) is not None, ended=False, limit=_MAX_LIST)
        return JSON(list_document(kind, group, [each for session in found if (each := shown(session)) is not None]))

    async def _changes(
        self, namespace: str, name: str | None, shown: Callable[[Session], dict[str, Any] | None], lasts: float
    ) -> AsyncGenerator[bytes, None]:
        """Events for `lasts` seconds: what there is, then what becomes of it; of one claim where a name is given."""
        ends = self._clock.monotonic() + lasts
        versions: Mapping[SessionId, int] = {}
        known: dict[SessionId, dict[str, Any]] = {}
        self._watches += 1
        try:
            while True:
                await self._index.refresh()
                there = await self._store.versions(list(self._index.ids(namespace, name)))
                for session_id, version in there.items():
                    if versions.get(session_id) == version:
                        continue
                    session = await self._store.get(session_id)
                    each = None if session is None else shown(session)
                    if each is not None and len(known) < _MAX_LIST:
                        yield _event("MODIFIED" if session_id in known else "ADDED", each)
                        known[session_id] = each
                    elif session_id in known:
                        yield _event("DELETED", known.pop(session_id))
                for session_id in known.keys() - there.keys():
                    yield _event("DELETED", known.pop(session_id))
                versions = there
                if (left := ends - self._clock.monotonic()) <= 0:
                    return
                await asyncio.sleep(min(_LOOK_INTERVAL_S, left))
        finally:
            self._watches -= 1

    async def _get_claim(self, request: Request) -> Response:
        return JSON(claim_document(*await self._require_claim(request)))

    async def _patch_claim(self, request: Request) -> Response:
        """Nothing of a claim can be changed; a patch of its labels is answered with what it is."""
        body = await read_object(request)
        if body.keys() - {"metadata", "apiVersion", "kind"}:
            raise BadRequestError("spec: a claim's spec cannot be changed; delete the claim, and make another")
        return JSON(claim_document(*await self._require_claim(request)))

    async def _delete_claim(self, request: Request) -> Response:
        body = await read_object(request) if await request.body() else {}
        session, claim = await self._require_claim(request)
        conditions = body.get("preconditions")
        if isinstance(conditions, dict) and conditions.get("uid") not in (None, session.id):
            raise ConflictError(f"preconditions.uid: the claim {claim.name} is another one by now")
        await self._lifecycle.terminate(session.id, DELETED_BY_USER)
        self._index.discard(session.id)
        return JSON({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {"name": claim.name, "group": CLAIM_GROUP, "kind": "sandboxclaims", "uid": session.id},
        })  # fmt: skip

    async def _get_sandbox(self, request: Request) -> Response:
        return JSON(sandbox_document(*await self._require_sandbox(request)))

    async def _patch_sandbox(self, request: Request) -> Response:
        """`spec.operatingMode`: Suspended hibernates, Running wakes."""
        body = await read_object(request)
        session, claim = await self._require_sandbox(request)
        spec = body.get("spec")
        mode = spec.get("operatingMode") if isinstance(spec, dict) else None
        if mode == "Suspended":
            if session.state is not SessionState.HIBERNATED:
                await self._hibernator.hibernate(session.id)
        elif mode == "Running":
            await self._lifecycle.wake(session.id)
        else:
            raise BadRequestError("spec.operatingMode: expected Suspended or Running; nothing else can be changed")
        return JSON(sandbox_document(await self._lifecycle.get(session.id), claim))

    async def _require_sandbox(self, request: Request) -> tuple[Session, Claim]:
        name = request.path_params["sandbox_id"]
        try:
            session = await self._lifecycle.get(session_of(name))
        except SessionNotFoundError:
            raise _absent("sandboxes", SANDBOX_GROUP, name) from None
        claim = claim_of(session)
        if claim is None or claim.namespace != _namespace(request) or session.state is SessionState.TERMINATED:
            raise _absent("sandboxes", SANDBOX_GROUP, name)
        return session, claim

    async def _require_claim(self, request: Request) -> tuple[Session, Claim]:
        name = request.path_params["name"]
        found = await self._find(_namespace(request), name)
        if found is None:
            raise _absent("sandboxclaims", CLAIM_GROUP, name)
        return found

    async def _find(self, namespace: str, name: str) -> tuple[Session, Claim] | None:
        session = await self._index.find(namespace, name)
        claim = None if session is None else claim_of(session)
        return None if session is None or claim is None else (session, claim)


def read_claim(body: Mapping[str, Any], namespace: str) -> Claim:
    """A SandboxClaim that is to be made. Raises BadRequestError."""
    metadata, spec = _object(body, "metadata"), _object(body, "spec")
    name = metadata.get("name")
    if name is None and isinstance(metadata.get("generateName"), str):
        name = f"{metadata['generateName'][:240]}{secrets.token_hex(3)}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadRequestError(f"metadata.name: expected a name of Kubernetes, got {repr(name)[:64]}")
    pool = _object(spec, "warmPoolRef", "spec.").get("name")
    if not isinstance(pool, str) or not pool:
        raise BadRequestError("spec.warmPoolRef.name: missing; it names a code interpreter, as my-interpreter")
    if spec.get("volumeClaimTemplates"):
        raise BadRequestError("spec.volumeClaimTemplates: there are no volumes here; a session's workspace is kept")
    life = _object(spec, "lifecycle", "spec.")
    shutdown_time = life.get("shutdownTime")
    if shutdown_time is not None and not isinstance(shutdown_time, str):
        raise BadRequestError("spec.lifecycle.shutdownTime: expected a time of RFC 3339")
    claim = Claim(
        namespace, name, pool[:253], _read_env(spec.get("env")), _read_texts(metadata, "labels"),
        _read_texts(metadata, "annotations"), shutdown_time,
    )  # fmt: skip
    if len(next(iter(claim.stored().values()))) > _MAX_RECORD_BYTES:
        raise BadRequestError(f"env, labels and annotations: expected at most {_MAX_RECORD_BYTES} bytes together")
    return claim


def _namespace(request: Request) -> str:
    name: str = request.path_params["namespace"]
    if not _NAME.fullmatch(name):
        raise BadRequestError(f"the namespace: expected a name of Kubernetes, got {name[:64]!r}")
    return name


def _object(body: Mapping[str, Any], name: str, where: str = "") -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError(f"{where}{name}: expected an object")
    return value


def _read_env(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > _MAX_ENV:
        raise BadRequestError(f"spec.env: expected a list of at most {_MAX_ENV} entries")
    env: dict[str, str] = {}
    for each in value:
        name = each.get("name") if isinstance(each, dict) else None
        text = each.get("value", "") if isinstance(each, dict) else None
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name) or not isinstance(text, str) or "\0" in text:
            raise BadRequestError(f"spec.env: expected name and value, got {repr(each)[:64]}")
        env[name] = text
    return env


def _read_texts(metadata: Mapping[str, Any], name: str) -> dict[str, str]:
    value = metadata.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MAX_LABELS:
        raise BadRequestError(f"metadata.{name}: expected an object of at most {_MAX_LABELS} entries")
    for key, text in value.items():
        if not isinstance(text, str) or len(key) > 317 or len(text) > _MAX_VALUE_CHARS:
            raise BadRequestError(f"metadata.{name}.{key[:64]}: expected text of at most {_MAX_VALUE_CHARS} characters")
    return value


def _read_field_selector(text: str) -> str | None:
    if not text:
        return None
    found = _FIELD_SELECTOR.fullmatch(text)
    if found is None:
        raise BadRequestError(f"fieldSelector: expected metadata.name=NAME, got {text[:64]!r}")
    return found[1]


def _read_label_selector(text: str) -> dict[str, str]:
    if len(text) > _MAX_SELECTOR_CHARS:  # cut, it would select more than was asked for
        raise BadRequestError(f"labelSelector: expected at most {_MAX_SELECTOR_CHARS} characters, got {len(text)}")
    labels: dict[str, str] = {}
    for each in text.split(",") if text else ():
        name, equals, value = each.replace("==", "=").partition("=")
        if not equals or name.endswith("!") or not name.strip():
            raise BadRequestError(f"labelSelector: expected KEY=VALUE[,KEY=VALUE], got {text[:64]!r}")
        labels[name.strip()] = value.strip()
    return labels


def _read_timeout(text: str) -> float:
    if text and (not text.isascii() or not text.isdigit() or len(text) > 6):
        raise BadRequestError(f"timeoutSeconds: expected a whole number, got {text[:16]!r}")
    return min(float(text or _MAX_WATCH_S), _MAX_WATCH_S)


def _seconds_until(text: str, now: float) -> float:
    try:
        at = datetime.fromisoformat(text[:64])
        seconds = at.timestamp() - now
    except (ValueError, OverflowError):
        raise BadRequestError(f"spec.lifecycle.shutdownTime: expected RFC 3339, got {text[:64]!r}") from None
    if seconds <= 0:
        raise BadRequestError(f"spec.lifecycle.shutdownTime: {text[:64]} is past")
    return seconds


def _event(kind: str, document: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "object": document}) + b"\n"


def _taken(name: str) -> ClaimTakenError:
    return ClaimTakenError(f'sandboxclaims.{CLAIM_GROUP} "{name}" already exists')


def _absent(plural: str, group: str, name: str) -> NotFoundError:
    return NotFoundError(f'{plural}.{group} "{name[:253]}" not found')
