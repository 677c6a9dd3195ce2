"""GET /v1/events: what becomes of sessions and pools, as a stream or a page. GET /v1/sessions/{id}/logs: of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.errors import Handler
from gateway.api.http import JSON, read_runtime
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, WakegateError
from gateway.core.identity import Identity, current
from gateway.core.model import SessionId
from gateway.core.units import rfc3339
from gateway.observability.feed import EventFeed, FeedEvent
from gateway.sessions.lifecycle import Lifecycle

MAX_VIEWERS, MAX_VIEWERS_PER_TENANT = 256, 32
# A stream ends by itself, and its client goes on from the last id: so a key that was revoked does not watch for ever.
STREAM_S = 300.0
_KEEPALIVE_S = 15.0
_TOGETHER_S = 0.2  # events that come within it are sent as one piece: a storm of wakes costs five writes a second
_PAGE = 1000
_KINDS = ("session", "pool")
_PARAMETERS = ("session", "runtime", "kind", "after")


class TooManyViewersError(WakegateError):
    """Too many streams of events are open."""

    status = 429
    code = "TOO_MANY_VIEWERS"


class EventsAPI:
    """The handlers that list and stream the events of this gateway's feed."""

    def __init__(self, lifecycle: Lifecycle, feed: EventFeed, clock: Clock, is_leaving: Callable[[], bool]) -> None:
        self._lifecycle, self._feed, self._clock, self._is_leaving = lifecycle, feed, clock, is_leaving
        self._viewers: dict[str, int] = {}

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"watch_events": self._events, "get_session_logs": self._logs}

    async def _events(self, request: Request) -> Response:
        wanted = _filter(request, current())
        streams = "text/event-stream" in request.headers.get("accept", "")
        named = request.headers.get("last-event-id") or request.query_params.get("after", "")
        position, fresh = self._position(named, streams=streams)
        if not streams:
            lost, found = self._feed.after(position, wanted)
            page = found[:_PAGE]
            last = page[-1].number if len(found) > _PAGE else self._feed.count
            return JSON({"events": [self._document(each) for each in page], "lost": lost, "next": self._id(last)})
        tenant = current().tenant
        if sum(self._viewers.values()) >= MAX_VIEWERS or self._viewers.get(tenant, 0) >= MAX_VIEWERS_PER_TENANT:
            raise TooManyViewersError(
                f"{MAX_VIEWERS} streams of events are open at most, {MAX_VIEWERS_PER_TENANT} of a tenant; close one"
            )
        events = self._stream(position, wanted, tenant, reset=not fresh)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _stream(
        self, position: int, wanted: Callable[[FeedEvent], bool], tenant: str, *, reset: bool
    ) -> AsyncIterator[bytes]:
        self._viewers[tenant] = self._viewers.get(tenant, 0) + 1
        until = self._clock.monotonic() + STREAM_S
        try:
            # `ready` has the id from which the stream goes on; `reset`: events before it may have been missed.
            yield self._piece("reset" if reset else "ready", position, {"next": self._id(position)})
            while self._clock.monotonic() < until and not self._is_leaving():
                lost, fresh = self._feed.after(position, wanted)
                position = self._feed.count
                out = [self._piece("lost", position, {"events": lost})] if lost else []
                out += [self._piece(each.name, each.number, self._document(each)) for each in fresh]
                if out:
                    yield b"".join(out)
                try:
                    async with asyncio.timeout(_KEEPALIVE_S):
                        await self._feed.wait(position)
                except TimeoutError:
                    yield b": \n\n"
                    continue
                await asyncio.sleep(_TOGETHER_S)
        finally:
            self._viewers[tenant] -= 1
            if not self._viewers[tenant]:
                del self._viewers[tenant]

    def _position(self, named: str, *, streams: bool) -> tuple[int, bool]:
        """Where to go on, and whether nothing before it can have been missed. Raises BadRequestError."""
        if not named:
            return (self._feed.count, True) if streams else (0, True)
        name, dash, number = named.partition("-")
        if not dash or len(named) > 64 or not number.isascii() or not number.isdigit() or len(number) > 15:
            raise BadRequestError(f"after: malformed: {named[:64]!r}; send the id of an event")
        if name != self._feed.name or int(number) > self._feed.count:  # of another gateway, or of before a restart
            return (self._feed.count if streams else 0), False
        return int(number), True

    def _piece(self, name: str, number: int, document: dict[str, Any]) -> bytes:
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self._id(number).encode(), name.encode(), orjson.dumps(document))

    def _id(self, number: int) -> str:
        return f"{self._feed.name}-{number}"

    def _document(self, event: FeedEvent) -> dict[str, Any]:
        return {"id": self._id(event.number), **_document(event)}

    async def _logs(self, request: Request) -> Response:
        if unknown := sorted(request.query_params.keys()):
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; there is none")
        session = await self._lifecycle.get_here(SessionId(request.path_params["session_id"]))
        return JSON({"events": [self._document(each) for each in self._feed.lines_of(session.id)]})


def _document(event: FeedEvent) -> dict[str, Any]:
    runtime = f"{event.runtime.namespace}/{event.runtime.name}"
    found: dict[str, Any] = {"event": event.name, "at": rfc3339(event.at), "runtime": runtime}
    if event.session:
        found |= {"session": event.session, "tenant": event.tenant}
    return found | {"details": dict(event.details or {})}


def _filter(request: Request, caller: Identity) -> Callable[[FeedEvent], bool]:
    """Which events a request is for. Raises BadRequestError."""
    query = request.query_params
    if unknown := sorted(query.keys() - set(_PARAMETERS)):
        raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected one of {', '.join(_PARAMETERS)}")
    session, kind = query.get("session"), query.get("kind")
    if kind is not None and kind not in _KINDS:
        raise BadRequestError(f"kind: expected {' or '.join(_KINDS)}, got {kind[:64]!r}")
    runtime = read_runtime(query["runtime"]) if "runtime" in query else None
    names = None if runtime is None else (runtime.namespace, runtime.name)

    def wanted(event: FeedEvent) -> bool:
        return (
            session in (None, event.session)
            and (kind is None or event.name.startswith(kind))
            and names in (None, (event.runtime.namespace, event.runtime.name))
            and event.is_for(caller)
        )

    return wanted
