"""A live session's way to its sandbox: its connections, the header lines of every request on it, and its slots.

The activator makes routes and closes them; each request and each WebSocket holds a slot of its route while it lasts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gateway.core.errors import QueueFullError, SessionNotFoundError, TokenRefusedError, UpstreamConnectError
from gateway.core.identity import Identity
from gateway.core.model import Kind, RuntimeKey, Sandbox, Session, SessionId
from gateway.identity.peers import PeerSigner
from gateway.observability.counters import RuntimeCounters
from gateway.observability.traffic import SessionTraffic
from gateway.routing.connection import UpstreamConnection
from gateway.routing.pool import UpstreamPool
from gateway.routing.responses import session_fields
from gateway.sessions.activity import SessionActivity
from gateway.sessions.records import unknown_session
from picod.wire import PORTS_PATH, REFUSED_HEADER

_PORTS = PORTS_PATH.encode()
_REFUSED = REFUSED_HEADER.encode()


@dataclass(frozen=True)
class HoldLimits:
    """How many requests may wait, and how many a sandbox gets at a time."""

    per_session: int
    total: int
    slots: int  # requests in flight to one sandbox


class Route:
    """A live session's way to its sandbox, with its slots. State: `in_flight` and the queue of those that wait."""

    __slots__ = (
        "_limits",
        "_queue",
        "_slots",
        "activity",
        "branches",
        "closed",
        "counted",
        "direct_until",
        "fields",
        "head",
        "head_until",
        "idle_timeout",
        "in_flight",
        "live_lines",
        "named",
        "peer",
        "pool",
        "port_lines",
        "restored",
        "runtime",
        "sandbox",
        "session_id",
        "session_id_bytes",
        "tenant",
        "traffic",
        "trusted_until",
        "user",
        "visible_to",
    )  # fmt: skip

    def __init__(
        self,
        session: Session,
        sandbox: Sandbox,
        pool: UpstreamPool,
        activity: SessionActivity,
        limits: HoldLimits,
        counted: RuntimeCounters,
        traffic: SessionTraffic,
        *,
        branches: tuple[tuple[bytes, UpstreamPool], ...] = (),
        peer: PeerSigner | None = None,
        slots: int = 0,
    ) -> None:
        """`branches`: pools of further ports by path prefix, the longest first. `peer`: where it leads to the gateway
        that has the session, what signs requests for it; paths go there as the client sent them. `slots`: requests that
        it takes at a time, where not those of `limits`.
        """
        self.session_id = session.id
        self.session_id_bytes = session.id.encode("ascii")
        self.runtime = session.runtime
        self.named = session.runtime.base  # as requests name it
        self.tenant = session.tenant
        self.user = session.user
        self.visible_to: Identity | None = None  # the latest caller for whom the session was found to exist
        self.idle_timeout = session.idle_timeout
        self.peer = peer
        self.sandbox = sandbox
        self.pool = pool
        self.branches = branches
        self.activity = activity
        self.counted = counted
        self.traffic = traffic
        traffic.routes += 1
        self.fields = session_fields(self.session_id_bytes)  # for every answer on this route
        live = [*self.fields, (b"x-wakegate-start", b"live")]
        # The same for the fast path; `port_lines` where a server behind one of the sandbox's ports answers.
        self.live_lines = self.port_lines = b"".join(b"%b: %b\r\n" % field for field in live)
        if session.runtime.kind is Kind.CODE_INTERPRETER:  # else it is an agent that answers, not picod
            self.live_lines += b"x-content-type-options: nosniff\r\n"
        self.in_flight = 0
        self.closed = False
        self.head = b""  # the header lines that every request on this route ends with
        self.restored: str | None = None  # for x-wakegate-restored, until an answer with it was delivered
        self.trusted_until = float("inf")  # epoch second from which the store must be asked where the session is
        self.head_until = 0.0  # epoch second from which `head` needs a new token
        self.direct_until = 0.0  # epoch second until which requests are sent without a look at any of these
        self._limits = limits
        self._slots = slots or limits.slots
        self._queue: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Route {self.session_id} -> {self.sandbox.id} in_flight={self.in_flight} queued={len(self._queue)}>"

    def require_visible(self, caller: Identity) -> None:
        """Raise SessionNotFoundError, as for a session that does not exist, unless it exists for the caller."""
        if not caller.sees_session_of(self.tenant, self.user, self.runtime, self.session_id):
            raise unknown_session(self.session_id)
        # Neither an identity nor these parts of a session ever change, so while the same key sends the requests, which
        # is the common case, one comparison of objects settles it. Asked anew each time it is 0.5 us.
        self.visible_to = caller

    def require_runtime(self, runtime: RuntimeKey) -> None:
        """Raise SessionNotFoundError unless a request that names this runtime is for this session."""
        if runtime != self.named:
            raise wrong_runtime(self.session_id, runtime)
        self.named = runtime  # the same object is found equal at once, and the parsed target is cached

    def pool_for(self, path: bytes) -> UpstreamPool:
        """The connections to the port that a path belongs to. Prefixes match at segment borders: /api is not /apis."""
        for prefix, pool in self.branches:
            if path.startswith(prefix) and (prefix == b"/" or path[len(prefix) : len(prefix) + 1] in (b"", b"/")):
                return pool
        return self.pool

    async def dial(self, path: bytes) -> UpstreamConnection:
        """A new connection to the port that a path belongs to. Raises UpstreamConnectError; nothing was sent then.

        `no_listener` is set only if nothing listens on the sandbox's own port either: a second server of an agent that
        has not started yet, or has crashed, costs the session neither its sandbox nor what the first one remembers.
        """
        pool = self.pool_for(path)
        try:
            return await pool.dial()
        except UpstreamConnectError as error:
            if not error.no_listener or pool.endpoint == self.pool.endpoint:
                raise
            (await self.pool.dial()).abort()
            raise UpstreamConnectError(
                f"nothing listens on port {pool.endpoint.port} of the sandbox, to which this path belongs"
            ) from error

    def pools(self) -> list[UpstreamPool]:
        """The pools of the sandbox's main port and of its branches."""
        return [self.pool, *(pool for _, pool in self.branches)]

    @property
    def slots(self) -> int:
        """Requests that it takes at a time."""
        return self._slots

    def set_restored(self, restored: str | None) -> None:
        """What answers say in x-wakegate-restored; None once one with it was delivered."""
        self.restored = restored
        self._set_direct()

    def trust_until(self, when: float) -> None:
        """Until that epoch second the session is taken to be where this route leads."""
        self.trusted_until = when
        self._set_direct()

    def set_head(self, lines: bytes, until: float) -> None:
        """The header lines that every request ends with from now on; the token in them is good `until` then."""
        self.head, self.head_until = lines, until
        self._set_direct()

    def expire_token(self) -> None:
        """Have the next request carry a new token, where requests carry one."""
        if self.head_until != float("inf"):
            self.head_until = 0.0
            self._set_direct()

    def _set_direct(self) -> None:
        """Fold all that a request has to look at into one time, so that it compares one number.

        A route trusted until 100 with a token good until 90 is direct until 90; then `renew_head` makes it 100.
        """
        needs_a_look = self.peer or self.restored is not None
        self.direct_until = 0.0 if needs_a_look else min(self.trusted_until, self.head_until)

    def check_token_accepted(self, status: int, headers: Iterable[tuple[bytes, bytes]], path: bytes) -> None:
        """Raises TokenRefusedError for picod's own 401: it speaks of our token, not of what the client sent.

        The next request carries a new token. Behind a port, and in an AgentRuntime, a 401 is the application's unless
        picod has marked it, which takes its mark out of what applications answer.
        """
        if status != 401 or self.peer:
            return
        is_apps = self.runtime.kind is not Kind.CODE_INTERPRETER or path.startswith(_PORTS)
        if is_apps and all(name.lower() != _REFUSED for name, _ in headers):
            return
        self.expire_token()
        raise TokenRefusedError(
            "the sandbox does not accept this gateway's token (its clock or its keys differ from the gateway's);"
            " the request was not run, try again shortly"
        )

    def close(self) -> None:
        """No new request is sent here. Requests under way go on; their connections are closed after them."""
        if not self.closed and not self.in_flight:
            self.traffic.routes -= 1
        self.closed = True
        for pool in self.pools():
            pool.close()

    def touch(self, now: float) -> None:
        """Bytes passed at that epoch second: the session is in use."""
        self.activity.last = now

    def try_enter(self) -> bool:
        """Take a slot if one is free. Requests that wait are handed their slots by `leave`, so none is free then."""
        if self.in_flight >= self._slots or self.closed:
            return False
        self.in_flight += 1
        self.activity.in_flight += 1
        return True

    async def enter(self) -> None:
        """Take a slot, waiting in a bounded queue. Raises QueueFullError."""
        if self.try_enter():
            return
        if len(self._queue) >= self._limits.per_session:
            raise QueueFullError(
                f"{len(self._queue)} requests already wait for this session's sandbox; try again shortly"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn  # leave() hands its slot over, already counted in `in_flight`
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._hand_over()
            elif turn in self._queue:
                self._queue.remove(turn)
            raise
        self.activity.in_flight += 1

    def leave(self, now: float) -> None:
        """Give the slot back. `now` in epoch seconds."""
        activity = self.activity
        activity.in_flight -= 1
        activity.last = now
        self.traffic.requests += 1
        if self._queue:
            self._hand_over()
        else:
            self._free_slot()

    @contextmanager
    def hold_for_socket(self) -> Iterator[None]:
        """Use a slot that was taken for a WebSocket: an open but silent socket does not make its session busy."""
        self.activity.in_flight -= 1
        try:
            yield
        finally:
            self.activity.in_flight += 1
            self.leave(self.activity.last)

    def _hand_over(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free_slot()

    def _free_slot(self) -> None:
        self.in_flight -= 1
        if self.closed and not self.in_flight:
            self.traffic.routes -= 1


class AgentRequests:
    """The requests of one agent that are under way at this gateway, in all its sessions; at most `most`."""

    __slots__ = ("__weakref__", "count", "most")

    def __init__(self, most: int) -> None:
        self.count = 0
        self.most = most


class LimitedRoute(Route):
    """A route of an agent that takes so many requests at a time in all its sessions. Others do not pay for the look."""

    __slots__ = ("_agent",)

    def __init__(self, agent: AgentRequests, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._agent = agent

    def try_enter(self) -> bool:
        """Take a slot if the session and the agent have one that is free."""
        if self._agent.count >= self._agent.most or not super().try_enter():
            return False
        self._agent.count += 1
        return True

    async def enter(self) -> None:
        """Take a slot of the session, waiting in its queue. Raises QueueFullError, also where the agent has none."""
        # Refused, and not queued: a queue over all sessions would hand a slot to a session that is full itself.
        if self._agent.count >= self._agent.most:
            raise QueueFullError(f"{self._agent.count} requests of this agent are under way; try again shortly")
        await super().enter()

    def _free_slot(self) -> None:
        self._agent.count -= 1
        super()._free_slot()


def wrong_runtime(session_id: SessionId | None, runtime: RuntimeKey) -> SessionNotFoundError:
    """The session is another runtime's than the one that the request names."""
    return SessionNotFoundError(f'session "{session_id}" not found on {runtime}')
