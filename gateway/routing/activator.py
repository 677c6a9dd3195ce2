"""The activator: gives a request a live sandbox, holding it while one is claimed, woken or replaced.

A live session's `Route` is kept in memory, so that a request on it costs a dictionary look-up, no store call and no
signature. For any other session there is one flight, shared by all requests that wait for it, bounded in number and in
time (the hold rule, docs/architecture.md).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import replace

from gateway.core.background import Tasks
from gateway.core.certificates import default_peer_context
from gateway.core.clock import Clock
from gateway.core.errors import (
    ActivationTimeoutError,
    BadRequestError,
    DrainingError,
    QueueFullError,
    StoreUnavailableError,
    WakegateError,
)
from gateway.core.identity import Identity
from gateway.core.identity import current as current_caller
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import RuntimeKey, SandboxId, Session, SessionId
from gateway.identity.peers import PeerSigner
from gateway.observability.counters import Counters
from gateway.routing.flights import Flights
from gateway.routing.reservation import HeldRequest, Reservation
from gateway.routing.route import HoldLimits, Route, wrong_runtime
from gateway.routing.route_builder import RouteBuilder
from gateway.routing.target import Target
from gateway.sandbox.tokens import TokenIssuer
from gateway.sessions.activation import Opened, SessionOpener
from gateway.sessions.activity import Activity
from gateway.sessions.admission import Admission
from gateway.sessions.bindings import Bindings
from gateway.sessions.idleness import HEARTBEAT_INTERVAL_S
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import ElsewhereError, Peer, peer_sandbox

logger = logging.getLogger(__name__)

TRUSTED_S = HEARTBEAT_INTERVAL_S  # how long the place of a session that other gateways may move is not asked for again
TRUSTED_IN_OUTAGE_S = 5.0  # the same while the store does not answer


class Activator:
    """Routes of live sessions, and the flights that make new ones."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        opener: SessionOpener,
        admission: Admission,
        bindings: Bindings,
        catalog: RuntimeCatalog,
        tokens: TokenIssuer,
        activity: Activity,
        clock: Clock,
        counters: Counters,
        *,
        limits: HoldLimits,
        connect_timeout: float,
        peers: PeerSigner,
        shared_provider: bool = False,
        peer_tls: Callable[[], ssl.SSLContext] = default_peer_context,
        on_silent: Callable[[SandboxId], None] | None = None,
    ) -> None:
        self.routes: dict[SessionId, Route] = {}
        self.held = 0
        self.leaving = False  # it will drain soon
        self.draining = False
        self._lifecycle = lifecycle
        self._admission = admission
        self._shared_provider = shared_provider  # other gateways reach the same sandboxes
        self._builder = RouteBuilder(
            catalog,
            tokens,
            activity,
            clock,
            counters,
            limits=limits,
            connect_timeout=connect_timeout,
            peers=peers,
            peer_tls=peer_tls,
            on_silent=on_silent,
        )
        self._activity = activity
        self._clock = clock
        self._limits = limits
        self._flights = Flights(opener, limits.per_session)
        self._background = Tasks()
        # Before the record says that the sandbox is gone: a request that comes in between opens the session anew.
        bindings.on_unbound(self.drop)

    def live(self, target: Target, now: float, caller: Identity | None = None) -> Route | None:
        """The route of a live session with a slot taken; None: the caller has to `reserve` one.

        `caller`: for whom, where that is not the current one. Raises SessionNotFoundError if the session is not this
        runtime's, or not one that exists for the caller.
        """
        route = self.routes.get(target.session_id)  # type: ignore[arg-type]  # None is never a key
        if route is None:
            return None
        if caller is None:
            caller = current_caller()
        if caller is not route.visible_to:
            route.require_visible(caller)
        runtime = target.runtime
        if runtime is not None and runtime is not route.named:
            route.require_runtime(runtime)
        # One comparison in place of four, see Route.direct_until: this is asked for every request.
        if now >= route.direct_until and not self._is_current(route, target, now):
            return None
        return route if route.try_enter() else None

    def _is_current(self, route: Route, target: Target, now: float) -> bool:
        """Whether a request may go on a route whose `direct_until` has come, without asking the store."""
        if (now >= route.trusted_until and not self.draining) or route.restored is not None:
            return False
        if route.peer and target.passed_on:  # see _must_ask
            return False
        if now >= route.head_until:
            self._builder.renew_head(route)
        return True

    async def reserve(self, target: Target, *, unreachable: SandboxId | None = None) -> Reservation:
        """A slot on a live sandbox for this target. `unreachable`: one that refused a connection is replaced.

        Raises: SessionNotFoundError, RuntimeNotFoundError, QueueFullError, ActivationTimeoutError, and what lifecycle
        raises when no sandbox can be had.
        """
        if self.draining:
            raise DrainingError("this gateway is shutting down; connect again", retry_after=1)
        # Each that waits holds a connection and its buffers; refused at once, a client may try another gateway.
        if self.held >= self._limits.total:
            raise QueueFullError(f"{self.held} requests already wait for sandboxes on this gateway; try again shortly")
        request = HeldRequest()
        self.held += 1
        try:
            async with self._admission.held(target.runtime, target.session_id):
                if target.session_id is None:
                    return await self._reserve(target, unreachable, request)
                with self._activity.arriving(target.session_id):
                    return await self._reserve(target, unreachable, request)
        except ActivationTimeoutError as error:
            if not request.waits_for_slot:
                raise
            # The sandbox lives and is busy, which is overload by this session's own requests and no fault of a start.
            raise QueueFullError(
                f"all {request.slots} requests that the session's sandbox takes at a time are under way;"
                " try again shortly"
            ) from error
        finally:
            self.held -= 1

    async def replace(self, route: Route, target: Target) -> Reservation:
        """Like reserve, after the route's sandbox refused a connection: it is gone, and nothing was sent to it."""
        self.drop(
            route.session_id, route.sandbox.id
        )  # only if it still leads there: another request may have been first
        return await self.reserve(replace(target, session_id=route.session_id), unreachable=route.sandbox.id)

    async def session_of(self, route: Route) -> Session:
        """The record of a route's session. Raises SessionNotFoundError, StoreUnavailableError."""
        return await self._lifecycle.get(route.session_id)

    def acknowledge(self, session_id: SessionId, restored: str) -> None:
        """An answer with that x-wakegate-restored was delivered to its client: the next ones do not carry it."""
        route = self.routes.get(session_id)
        if route is not None and route.restored == restored:
            route.set_restored(None)
        self._background.spawn(self._acknowledge(session_id, restored))

    async def _acknowledge(self, session_id: SessionId, restored: str) -> None:
        try:
            await self._lifecycle.acknowledge_restored(session_id, restored)
        except WakegateError as error:
            logger.info("session %s: x-wakegate-restored is sent once more: %s", session_id, error)

    def end_unclaimed(self, session_id: SessionId) -> None:
        """End a session that was made for a request whose client left before any answer named it."""
        self._background.spawn(self._lifecycle.end_unclaimed(session_id))

    async def aclose(self) -> None:
        """Wait for what is still being written."""
        await self._background.wait()

    def renew_tokens(self) -> None:
        """Another key signs: the next request of each route carries a token of it."""
        for route in self.routes.values():
            route.expire_token()

    def is_in_use(self, session_id: SessionId) -> bool:
        """Whether requests of a session are under way here, as another gateway asks that is about to hibernate it.

        If not, its route is forgotten, so that the next request reads what that gateway has written before it asked.
        """
        if self._activity.busy(session_id):
            return True
        if (route := self.routes.get(session_id)) is not None:
            self.drop(session_id, route.sandbox.id)
        return False

    def drop(self, session_id: SessionId, sandbox_id: SandboxId | None = None) -> None:
        """Forget a route; with `sandbox_id`, only if it still leads there."""
        route = self.routes.get(session_id)
        if route is not None and sandbox_id in (None, route.sandbox.id):
            del self.routes[session_id]
            route.close()
            if sandbox_id is None:
                self._activity.forget(session_id)

    async def _reserve(self, target: Target, unreachable: SandboxId | None, request: HeldRequest) -> Reservation:
        if target.session_id is None:
            if target.runtime is None:
                raise BadRequestError(
                    "neither a session nor a runtime is named; send x-session-id, or x-wakegate-runtime: namespace/name"
                )
            opened = await self._lifecycle.create(target.runtime)
            return await request.enter(self._route(opened), opened)
        route = self.routes.get(target.session_id)
        if route is not None:
            route.require_visible(current_caller())
        # Where other gateways reach the same sandboxes, one of them may hibernate the session. It writes that first
        # and then waits for longer than TRUSTED_S; so nothing is sent to a sandbox whose workspace was copied.
        stale = None
        if route is not None and self._must_ask(route, target):
            stale, route = route, None
            if stale.peer:
                self.drop(stale.session_id)
        if route is not None and not route.closed:
            _require_runtime(target, route.runtime)
            if route.restored is not None and not route.peer:
                # The gateway that delivered the answer may be another one, which wrote that into the record.
                route.set_restored((await self._lifecycle.get(route.session_id)).restored)
            return await request.enter(route)
        return await self._reserve_opened(target.session_id, target, unreachable, request, stale)

    def _must_ask(self, route: Route, target: Target) -> bool:
        """Whether only the store can say if a session is still where its route leads.

        Also for a request that was passed on: the gateway that did so has asked, and two that each remember the other
        would send it to and fro.
        """
        return self._clock.now() >= route.trusted_until or (bool(route.peer) and target.passed_on)

    async def _reserve_opened(
        self,
        session_id: SessionId,
        target: Target,
        unreachable: SandboxId | None,
        request: HeldRequest,
        stale: Route | None,
    ) -> Reservation:
        """A slot on the sandbox that a flight brings, or at the gateway that has the session. `stale`: where it was."""
        try:
            opened = await self._flights.join(session_id, unreachable)
        except ElsewhereError as elsewhere:
            route = await self._peer_route(session_id, elsewhere.peer)
            _require_runtime(target, route.runtime)
            return await request.enter(route)
        except StoreUnavailableError:
            if stale is None or stale.closed or unreachable is not None:
                raise
            stale.trust_until(self._clock.now() + TRUSTED_IN_OUTAGE_S)  # no gateway can hibernate it meanwhile
            return await request.enter(stale)
        _require_runtime(target, opened.session.runtime)
        return await request.enter(self._route(opened), opened)

    def _route(self, opened: Opened) -> Route:
        session, sandbox = opened.session, opened.sandbox
        route = self.routes.get(session.id)
        if route is None or route.sandbox.id != sandbox.id:
            route = self.routes[session.id] = self._builder.build(session, sandbox)
        route.set_restored(opened.restored)
        if self._shared_provider:
            route.trust_until(self._clock.now() + TRUSTED_S)
        if self._clock.now() >= route.head_until:
            self._builder.renew_head(route)
        return route

    async def _peer_route(self, session_id: SessionId, peer: Peer) -> Route:
        """The route to the gateway that has the session, which counts its activity and limits its slots."""
        session = await self._lifecycle.get_cached(session_id)
        route = self.routes.get(session_id)
        if route is None or route.sandbox.id != peer_sandbox(peer):
            route = self.routes[session_id] = self._builder.build_to_peer(session, peer)
        route.trust_until(self._clock.now() + TRUSTED_S)
        return route

    def ask_again(self) -> None:
        """The clock was set back: what is good until a time would be so for too long."""
        now = self._clock.now()
        for route in self.routes.values():
            route.expire_token()
            if now < route.trusted_until < float("inf"):
                route.trust_until(now)

    def forget_quiet(self) -> None:
        """Forget routes not used for half their session's idle timeout: another gateway may have ended the session."""
        now = self._clock.now()
        for route in list(self.routes.values()):
            if not route.in_flight and now - route.activity.last > route.idle_timeout / 2:
                self.drop(route.session_id, route.sandbox.id)


def _require_runtime(target: Target, runtime: RuntimeKey) -> None:
    """Raise SessionNotFoundError for a target that names another runtime than its session's."""
    if target.runtime is not None and target.runtime != runtime.base:
        raise wrong_runtime(target.session_id, target.runtime)
