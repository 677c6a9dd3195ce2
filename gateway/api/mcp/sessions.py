"""MCP sessions: ids that `initialize` hands out, and the sessions that their first tool calls make of them.

Most clients connect to every server of their configuration and then call no tool, and so does anybody who scans for
servers. So `initialize` stores nothing: the id is signed, says when it was made and for which runtime, and any gateway
of the store can verify it. The first call of a tool writes the record.

    mcp-BASE32    4 bytes: when it was made (epoch seconds); 6: random; 3: of the runtime's hash; 12: of the HMAC-SHA256
                  over these, the runtime's name and the tenant's. 44 characters: as a label of a host name it leaves
                  room for a port (routing/port_hosts.py), and it is not longer than a value of a pod's label may be.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections import OrderedDict

from gateway.api.sessions import DELETED_BY_USER
from gateway.api.tools.catalogue import Tool, tools_of
from gateway.api.tools.service import ToolService
from gateway.core.clock import Clock
from gateway.core.errors import SessionNotFoundError, UnavailableError
from gateway.core.identity import current
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Kind, Runtime, RuntimeKey, SessionId, SessionState
from gateway.identity.shared_secret import SharedSecret
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.new_session import require_creation
from gateway.sessions.records import unknown_session

UNUSED_LIFETIME_S = 8 * 3600.0  # from `initialize` to the first call: a desktop client is opened in the morning
_CREATED_BY_MCP = "mcp"  # metadata key of sessions that an MCP client created, and may therefore end
_PREFIX = "mcp-"
_SIGNED, _BYTES = 13, 25
_TEXT_LENGTH = len(_PREFIX) + 40
_MAX_ENDED = 10_000  # about 1.5 MB


class MCPSessions:
    """Makes and verifies ids, and makes and ends their sessions."""

    def __init__(self, service: ToolService, lifecycle: Lifecycle, catalog: RuntimeCatalog, clock: Clock) -> None:
        self._service = service
        self._lifecycle = lifecycle
        self._catalog = catalog
        self._clock = clock
        self._key = b""
        # Ended before any call, so there was nothing to lose: that another gateway does not know them is harmless.
        self._ended: OrderedDict[SessionId, None] = OrderedDict()

    def open(self, secret: SharedSecret) -> None:
        """Use the store's secret. Before, no id can be made or verified: there is no store yet."""
        self._key = secret.key("ids of MCP sessions")

    def reserve(self, runtime: Runtime) -> SessionId:
        """An id for a new client. Raises PermissionDeniedError if the caller may not make sessions of the runtime."""
        require_creation(runtime.key)
        head = int(self._clock.now()).to_bytes(4, "big") + secrets.token_bytes(6) + _hash_of(runtime.key)
        raw = head + self._mac(head, runtime.key)
        return SessionId(_PREFIX + base64.b32encode(raw).decode().lower())

    async def tools(self, session_id: SessionId) -> dict[str, Tool]:
        """The tools of a session, or those that one would have. Raises SessionNotFoundError."""
        try:
            return await self._service.tools(session_id)
        except SessionNotFoundError:
            if await self._lifecycle.exists(session_id):
                # Ended, or another first call has written it in between.
                return await self._service.tools(session_id)
            return tools_of(self._require_unused(session_id)[0])

    async def ensure(self, session_id: SessionId) -> None:
        """Write the record of a session whose first call this is. Raises SessionNotFoundError, LimitError."""
        try:
            # Whether there is a record never changes while it lives; that it has ended is found when it is opened.
            if (await self._lifecycle.get_cached(session_id)).state is not SessionState.TERMINATED:
                return
            await self._service.tools(session_id)
        except SessionNotFoundError:
            if await self._lifecycle.exists(session_id):
                await self._service.tools(session_id)  # as in `tools`
                return
            runtime, made_at = self._require_unused(session_id)
            await self._lifecycle.register(
                runtime.key,
                metadata={_CREATED_BY_MCP: "1", "name": "MCP client"},
                session_id=session_id,
                reusable_until=made_at + UNUSED_LIFETIME_S,
            )
            if session_id in self._ended:  # by its client, while this call was on its way: `end` found no record
                await self._lifecycle.terminate(session_id, DELETED_BY_USER)
                raise unknown_session(session_id) from None

    async def end(self, session_id: SessionId) -> None:
        """End what `initialize` began; one that a client only named is left alone. Raises SessionNotFoundError."""
        if not await self._lifecycle.exists(session_id):
            self._require_unused(session_id)
            self._ended[session_id] = None
            if len(self._ended) > _MAX_ENDED:
                self._ended.popitem(last=False)
            if not await self._lifecycle.exists(session_id):  # again: a first call may have written it before the mark
                return
        session = await self._lifecycle.get(session_id)
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"session {session_id} has ended")
        if _CREATED_BY_MCP in session.metadata:
            await self._lifecycle.terminate(session_id, DELETED_BY_USER)

    def _require_unused(self, session_id: SessionId) -> tuple[Runtime, float]:
        """The runtime of an id that has no record yet, and when it was made. Raises SessionNotFoundError."""
        raw = _decode(session_id)
        if raw is None or session_id in self._ended:
            raise unknown_session(session_id)
        head, mac = raw[:_SIGNED], raw[_SIGNED:]
        made_at = float(int.from_bytes(head[:4], "big"))
        if made_at + UNUSED_LIFETIME_S <= self._clock.now():
            raise unknown_session(session_id)
        for runtime in self._catalog.all():
            key = runtime.key
            # The hash first: it spares an HMAC for each runtime of a large catalogue.
            is_candidate = key.kind is Kind.CODE_INTERPRETER and _hash_of(key) == head[10:]
            if is_candidate and hmac.compare_digest(self._mac(head, key), mac):
                return runtime, made_at
        raise unknown_session(session_id)

    def _mac(self, head: bytes, runtime: RuntimeKey) -> bytes:
        if not self._key:
            raise UnavailableError("this gateway is starting; try again shortly", retry_after=1)
        text = b"\0".join((head, str(runtime).encode(), current().tenant.encode()))
        return hmac.new(self._key, text, hashlib.sha256).digest()[: _BYTES - _SIGNED]


def _hash_of(runtime: RuntimeKey) -> bytes:
    return hashlib.sha256(str(runtime).encode()).digest()[:3]


def _decode(session_id: SessionId) -> bytes | None:
    if len(session_id) != _TEXT_LENGTH or not session_id.startswith(_PREFIX) or not session_id.isascii():
        return None
    text = session_id.removeprefix(_PREFIX)
    if text != text.lower():
        return None  # one id has one spelling, as records are found by it
    try:
        return base64.b32decode(text.upper())
    except ValueError:
        return None
