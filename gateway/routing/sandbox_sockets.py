"""WebSockets to the pods of Sandboxes that agent-sandbox's controllers manage (sandbox_router.py)."""

from __future__ import annotations

from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.core.errors import WakegateError
from gateway.core.model import StartKind
from gateway.observability.counters import Counters
from gateway.observability.request_record import Record
from gateway.routing.incoming import Incoming, raw_path
from gateway.routing.request_ids import id_field
from gateway.routing.responses import Receive, Scope, Send, error_fields
from gateway.routing.sandbox_router import (
    Named,
    SandboxRouter,
    error_document,
    request_lines,
    response_fields,
)
from gateway.routing.websocket_answers import deny, fields_of, pass_answer, without_handshake
from gateway.routing.websocket_close import as_received
from gateway.routing.websocket_dial import dial_pool
from gateway.routing.websocket_relay import Conversation, relay


class SandboxSockets:
    """Serves WebSockets whose target is NotProxied.SANDBOX. One that is open counts as a request under way."""

    def __init__(self, router: SandboxRouter, counters: Counters) -> None:
        self._router = router
        self._counters = counters

    async def converse(
        self, scope: Scope, receive: Receive, send: Send, incoming: Incoming, record: Record | None
    ) -> int:
        """The whole conversation; returns the status of the handshake. Raises WakegateError while there is none yet."""
        named = self._router.authorize(scope, incoming.request, record)
        with self._router.using(named):
            try:
                upstream = await self._dial(scope, incoming, named)
            except InvalidStatus as error:
                answer = [*response_fields(fields_of(error.response)), id_field(incoming.id_line)]
                _note_answer(record)
                await pass_answer(send, error.response, answer)
                return error.response.status_code
            _note_answer(record)
            fields: Any = [] if upstream.response is None else fields_of(upstream.response)
            fields = [*without_handshake(response_fields(fields)), id_field(incoming.id_line)]
            await send({"type": "websocket.accept", "subprotocol": upstream.subprotocol, "headers": fields})
            await relay(receive, send, upstream, Conversation(self._counters.unrouted, lambda size: None, _closing))
            return 101

    async def refuse(self, send: Send, error: WakegateError, incoming: Incoming) -> None:
        """Answer the handshake with an error."""
        await deny(send, error.status, [*error_fields(error), id_field(incoming.id_line)], error_document(error))

    async def _dial(self, scope: Scope, incoming: Incoming, named: Named) -> ClientConnection:
        """As the router connects: once more where there is news of the Sandbox. Raises InvalidStatus for a refusal."""

        async def connect(host: str) -> ClientConnection:
            pool = self._router.pool(host, named)
            lines = request_lines(scope, incoming.request)
            return await dial_pool(scope, pool, pool.host, raw_path(scope), incoming.request, lines)

        return await self._router.connect(named, connect)


def _note_answer(record: Record | None) -> None:
    if record is not None:
        record.start = StartKind.LIVE  # from here on a 403 is the pod's own


async def _closing(closed: ConnectionClosed) -> tuple[int, str]:
    return as_received(closed)
