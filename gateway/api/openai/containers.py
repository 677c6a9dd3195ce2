"""OpenAI's Containers API, for `client.containers` of the `openai` SDK. A container is a session.

OpenAI deletes a container that expires. One of ours is hibernated after `expires_after` and wakes on its next use, so
its status stays `running`. It is `expired` once its session has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_object, session_headers
from gateway.api.session_list import Position, list_sessions
from gateway.api.sessions import DELETED_BY_USER, choose_runtime, create_session
from gateway.core.errors import SessionNotFoundError
from gateway.core.identity import current
from gateway.core.interfaces import RuntimeCatalog, SessionStore
from gateway.core.model import Kind, Runtime, Session, SessionId, SessionState
from gateway.sessions.lifecycle import Lifecycle

MEMORY_LIMITS: Mapping[str, int] = {"1g": 1 << 30, "4g": 4 << 30, "16g": 16 << 30, "64g": 64 << 30}
_FIELDS = ("name", "expires_after", "file_ids", "memory_limit", "network_policy", "skills")
_MAX_MINUTES = 7 * 24 * 60


class ContainersAPI:
    """Handlers that create, list, read and delete sessions of code interpreters as containers."""

    def __init__(self, lifecycle: Lifecycle, store: SessionStore, catalog: RuntimeCatalog) -> None:
        self._lifecycle = lifecycle
        self._store = store
        self._catalog = catalog

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "create_container": self._create,
            "list_containers": self._list,
            "get_container": self._retrieve,
            "delete_container": self._delete,
        }

    async def _create(self, request: Request) -> Response:
        body = await read_object(request)
        name, minutes, memory = read_container(body)
        runtime = choose_runtime(self._catalog, request)
        # The chosen runtime, if it is large enough; else the smallest that is. A limit is never raised for one
        # container.
        if memory is not None and not _holds(runtime, memory):
            runtime = self._with_memory(memory)
        metadata = {"name": name, **({} if memory is None else {"memory_limit": memory})}
        opened = await create_session(
            request,
            self._lifecycle,
            runtime.key,
            idle_timeout=None if minutes is None else minutes * 60.0,
            metadata=metadata,
        )
        headers = {**session_headers(opened.session.id), "x-wakegate-start": opened.start.value}
        return JSON(container_document(opened.session), headers=headers)

    async def _list(self, request: Request) -> Response:
        after, limit, order = read_page(request, ("name",))
        name = request.query_params.get("name")
        sessions = await list_sessions(
            self._store,
            lambda each: is_container(each) and name in (None, _name(each)),
            ended=False,
            after=await self._position(after),
            newest_first=order == "desc",
            limit=limit + 1,
        )
        documents = [container_document(each) for each in sessions[:limit]]
        return JSON(as_page(documents, has_more=len(sessions) > limit))

    async def _position(self, after: str | None) -> Position | None:
        """Behind the container `after`, which may have ended. One whose record is gone: from the beginning again.

        Entries then come twice, but none is skipped. OpenAI's clients send an id, and no more is known of it.
        """
        last = None if after is None else await self._store.get(SessionId(after))
        return None if last is None or not current().sees(last) else (last.created_at, last.id)

    async def _retrieve(self, request: Request) -> Response:
        return JSON(container_document(await require_container(self._lifecycle, request, ended=True)))

    async def _delete(self, request: Request) -> Response:
        session = await require_container(self._lifecycle, request, ended=True)
        if session.state is not SessionState.TERMINATED:
            await self._lifecycle.terminate(session.id, DELETED_BY_USER)
        return JSON({"id": session.id, "object": "container.deleted", "deleted": True})

    def _with_memory(self, memory: str) -> Runtime:
        """The runtime with the least memory that has at least this much. Raises ParamError."""
        fitting = [each for each in self._catalog.all() if each.key.kind is Kind.CODE_INTERPRETER]
        fitting = [each for each in fitting if _holds(each, memory)]
        if not fitting:
            raise ParamError("memory_limit", f"no runtime here has {memory}; omit it, or ask for less")
        return min(fitting, key=lambda each: (each.limits.memory or float("inf"), each.key))


def read_container(body: Mapping[str, Any]) -> tuple[str, float | None, str | None]:
    """Name, minutes until it expires, and memory limit. Raises ParamError for invalid or unsupported fields."""
    unknown = sorted(body.keys() - set(_FIELDS))
    if unknown:
        raise ParamError(unknown[0][:64], f"unknown field; expected {', '.join(_FIELDS)}")
    name = body.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 512:
        raise ParamError("name", "expected text of 1 to 512 characters")
    for field in ("file_ids", "skills"):
        if body.get(field) not in (None, []):
            raise ParamError(field, "not supported; create the container, then its files with containers.files.create")
    memory = body.get("memory_limit")
    if memory is not None and (not isinstance(memory, str) or memory not in MEMORY_LIMITS):
        raise ParamError("memory_limit", f"expected one of {', '.join(MEMORY_LIMITS)}")
    policy = body.get("network_policy")
    if policy is not None and (not isinstance(policy, dict) or policy.get("type") != "disabled"):
        raise ParamError("network_policy", 'only {"type": "disabled"} is supported: sandboxes have no network')
    return name, _read_minutes(body.get("expires_after")), memory


def _read_minutes(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ParamError("expires_after", "expected an object with anchor and minutes")
    if value.get("anchor") != "last_active_at":
        raise ParamError("expires_after.anchor", 'expected "last_active_at"')
    minutes = value.get("minutes")
    # True is an int.
    if isinstance(minutes, bool) or not isinstance(minutes, int) or not 1 <= minutes <= _MAX_MINUTES:
        raise ParamError("expires_after.minutes", f"expected a whole number from 1 to {_MAX_MINUTES}")
    return float(minutes)


def read_page(request: Request, more: Sequence[str] = ()) -> tuple[str | None, int, str]:
    """Read `after`, `limit` and `order` of a list request. Raises ParamError."""
    query = request.query_params
    known = ("after", "limit", "order", *more)
    for name in query:
        if name not in known:
            raise ParamError(name[:64], f"unknown parameter; expected {', '.join(known)}")
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if len(limit) > 3 or not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 100:
        raise ParamError("limit", "expected a whole number from 1 to 100")
    if order not in ("asc", "desc"):
        raise ParamError("order", "expected asc or desc")
    return query.get("after"), int(limit), order


def page_of(documents: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """One page of a list in OpenAI's form.

    If `after` no longer exists the list starts from the beginning: entries come twice, but none is skipped.
    """
    ids = [each["id"] for each in documents]
    start = ids.index(after) + 1 if after in ids else 0
    return as_page(documents[start : start + limit], has_more=start + limit < len(documents))


def as_page(page: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page of a list in OpenAI's form."""
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": has_more,
    }


async def require_container(lifecycle: Lifecycle, request: Request, *, ended: bool = False) -> Session:
    """The session named by the path; `ended`: also one that was not ended by its user. Raises SessionNotFoundError."""
    container_id = SessionId(request.path_params["container_id"])
    try:
        session = await lifecycle.get(container_id)
    except SessionNotFoundError:
        session = None
    # A container that its user has deleted is gone; one that has ended by itself can still be read, as `expired`.
    if session is not None and (is_container(session) or (ended and session.reason != DELETED_BY_USER)):
        return session
    raise SessionNotFoundError(f"Container with id '{container_id[:128]}' not found.")


def is_container(session: Session) -> bool:
    """Whether a session is usable as a container: it runs a code interpreter and has not ended."""
    return session.state is not SessionState.TERMINATED and session.runtime.kind is Kind.CODE_INTERPRETER


def container_document(session: Session) -> dict[str, Any]:
    """A session as a container object of OpenAI's API. Times in whole seconds since the epoch."""
    return {
        "id": session.id,
        "object": "container",
        "created_at": int(session.created_at),
        "status": "expired" if session.state is SessionState.TERMINATED else "running",
        # Whole minutes in OpenAI's API, and at least one: an idle timeout of 20 s is shown as a minute.
        "expires_after": {"anchor": "last_active_at", "minutes": max(1, round(session.idle_timeout / 60))},
        "last_active_at": int(session.last_active_at),
        "memory_limit": session.metadata.get("memory_limit"),
        "network_policy": {"type": "disabled"},
        "name": _name(session),
    }


def _name(session: Session) -> str:
    return session.metadata.get("name") or session.id


def _holds(runtime: Runtime, memory: str) -> bool:
    return runtime.limits.memory is None or runtime.limits.memory >= MEMORY_LIMITS[memory]
