"""The calls of the Kubernetes API that agent-sandbox's clients make: claims, and their sandboxes.

A kubeconfig that names the gateway as its cluster is all that such a client needs. There is no discovery, and there are
no other kinds: this is no cluster.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.agent_sandbox.index import ClaimIndex
from gateway.api.agent_sandbox.reading import read_claim, require_name, require_runtime, seconds_until
from gateway.api.agent_sandbox.records import Claim, claim_document, claim_of, list_document, sandbox_document
from gateway.api.errors import Handler
from gateway.api.http import JSON, read_object, read_optional_object
from gateway.api.session_list import list_sessions
from gateway.api.sessions import DELETED_BY_USER, create_session
from gateway.core.agent_sandbox import CLAIM_GROUP, SANDBOX_GROUP, sandbox_name, session_of
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
from gateway.core.model import Session, SessionId, SessionState
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle

_FIELD_SELECTOR = re.compile(r"metadata\.name==?([a-z0-9][-a-z0-9.]{0,252})")
_MAX_LIST = 500
_MAX_SELECTOR_CHARS = 2048
_MAX_WATCH_S = 600.0
_MAX_WATCHES = 500
_LOOK_INTERVAL_S = 1.0  # of a watch, whose changes are seldom: a claim is ready as soon as it is made

Documents = Callable[[Session, Claim], dict[str, Any]]


class ClaimTakenError(ConflictError):
    """A claim of this name exists: Kubernetes' answer AlreadyExists."""

    code = "ALREADY_EXISTS"


class ClaimsAPI:
    """The handlers of SandboxClaims and Sandboxes, as an API server would answer."""

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
        runtime = require_runtime(self._catalog, claim)
        ttl = None if claim.shutdown_time is None else seconds_until(claim.shutdown_time, self._clock.now())
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
        body = await read_optional_object(request)
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


def _namespace(request: Request) -> str:
    return require_name(request.path_params["namespace"], "the namespace")


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


def _event(kind: str, document: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "object": document}) + b"\n"


def _taken(name: str) -> ClaimTakenError:
    return ClaimTakenError(f'sandboxclaims.{CLAIM_GROUP} "{name}" already exists')


def _absent(plural: str, group: str, name: str) -> NotFoundError:
    return NotFoundError(f'{plural}.{group} "{name[:253]}" not found')
