"""Ports that a session made public when it was created: requests to them need no credential.

Three have to agree: the session names the port, its runtime has it in spec.wakegate.publicPorts, and no limit of its
tenant forbids it. What the session says never changes, and is remembered; the others are looked at each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from gateway.core.clock import Clock
from gateway.core.identity import Identity, Role, SessionScope
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Session, SessionId
from gateway.identity.tenants import TenantDirectory
from gateway.routing.target import Target
from picod.wire import PORTS_PATH

_PORTS = PORTS_PATH.encode()
_FRESH_S = 5.0  # within which a session that has ended, or that is there now, goes unnoticed
_MAX_KEPT = 4096


class PublicPorts:
    """`read`: a session's record, whoever asks."""

    def __init__(
        self,
        read: Callable[[SessionId], Awaitable[Session | None]],
        catalog: RuntimeCatalog,
        tenants: TenantDirectory,
        clock: Clock,
    ) -> None:
        self._read, self._catalog, self._tenants, self._clock = read, catalog, tenants, clock
        self._kept: OrderedDict[SessionId, tuple[float, Session | None]] = OrderedDict()  # None: nothing public

    async def identity(self, target: Target, unknown: Callable[[], None]) -> Identity | None:
        """Whoever comes, for that port alone; None: it is not public.

        `unknown()` is called before a record is read, which strangers can cause. Raises what that raises,
        StoreUnavailableError.
        """
        port = _port_of(target)
        if not port or target.session_id is None:
            return None
        session = await self._session(target.session_id, unknown)
        if session is None or port not in session.public_ports:
            return None
        runtime = self._catalog.get(session.runtime)
        if runtime is None or not any(first <= port <= last for first, last in runtime.public_ports):
            return None
        if self._tenants.is_deleted(session.tenant) or self._tenants.limits(session.tenant).public_ports is False:
            return None
        return Identity(
            Role.SESSION,
            tenant=session.tenant,
            subject="anybody, at a public port",
            user=session.user,
            scope=SessionScope(session.id, ports=(port,)),
            budget=self._tenants.budget(session.tenant),
        )

    async def _session(self, session_id: SessionId, unknown: Callable[[], None]) -> Session | None:
        now = self._clock.monotonic()
        kept = self._kept.get(session_id)
        if kept is not None and now - kept[0] < _FRESH_S:
            return kept[1]
        # Ids can be guessed at without end, and each costs a read of the store: that is rated like a wrong key. Not so
        # for a session that was found public before, whose visitors behind one address would use up each other's rate.
        if kept is None or kept[1] is None:
            unknown()
        found = await self._read(session_id)
        self._kept[session_id] = (now, found if found is not None and found.public_ports else None)
        self._kept.move_to_end(session_id)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return self._kept[session_id][1]


def _port_of(target: Target) -> int:
    """The port of a path for one; 0: it is none."""
    if not target.path.startswith(_PORTS):
        return 0
    text = target.path[len(_PORTS) :].partition(b"/")[0]
    return int(text) if text.isdigit() and len(text) < 6 else 0
