"""How routes are made: their connections, their counters, and the header lines that every request on them ends with."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from gateway.core.clock import Clock
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Endpoint, Invocations, Kind, RuntimeKey, Sandbox, SandboxId, Session, StartKind
from gateway.identity.peers import PeerSigner
from gateway.observability.counters import Counters
from gateway.observability.traffic import SessionTraffic
from gateway.routing.pool import UpstreamPool
from gateway.routing.route import AgentRequests, HoldLimits, LimitedRoute, Route
from gateway.sandbox.tokens import TokenIssuer
from gateway.sessions.activity import Activity, SessionActivity
from gateway.sessions.membership import Peer, peer_sandbox
from picod.wire import HEALTH_PATH


class RouteBuilder:
    """Makes routes to sandboxes and to other gateways. `peer_tls`: for gateways whose address is an https one.

    `on_silent` is told of each sandbox to which a connection could not be made and was not refused either.
    """

    def __init__(
        self,
        catalog: RuntimeCatalog,
        tokens: TokenIssuer,
        activity: Activity,
        clock: Clock,
        counters: Counters,
        *,
        limits: HoldLimits,
        connect_timeout: float,
        peers: PeerSigner,
        peer_tls: Callable[[], ssl.SSLContext],
        on_silent: Callable[[SandboxId], None] | None = None,
    ) -> None:
        self._catalog = catalog
        self._tokens = tokens
        self._activity = activity
        self._clock = clock
        self._counters = counters
        self._limits = limits
        self._connect_timeout = connect_timeout
        self._peers = peers
        self._peer_tls = peer_tls
        self._on_silent = on_silent
        # An agent without routes is forgotten: they are created by strangers.
        self._agents: WeakValueDictionary[RuntimeKey, AgentRequests] = WeakValueDictionary()

    def build(self, session: Session, sandbox: Sandbox) -> Route:
        """A route to a session's sandbox. It has no head yet: `renew_head`."""
        # Only picod is known to answer for its health without side effects; an agent's server may do anything.
        probe = HEALTH_PATH.encode() if session.runtime.kind is Kind.CODE_INTERPRETER else b""
        runtime = self._catalog.get(session.runtime)
        invocations = Invocations() if runtime is None else runtime.invocations
        make = partial(LimitedRoute, self._agent(session, invocations.requests)) if invocations.requests else Route
        return make(
            session,
            sandbox,
            UpstreamPool(
                sandbox.endpoint,
                connect_timeout=self._connect_timeout,
                probe=probe,
                on_silent=None if self._on_silent is None else partial(self._on_silent, sandbox.id),
            ),
            self._activity.of(session.id, self._clock.now()),
            self._limits,
            self._counters.of(session.runtime),
            self._counters.traffic.of(session),
            branches=self._branches(session.runtime, sandbox.endpoint),
            slots=min(invocations.requests_per_session, self._limits.slots),
        )

    def _agent(self, session: Session, most: int) -> AgentRequests:
        """What counts the requests of the session's agent, also those of its other revisions."""
        key = session.runtime.base
        agent = self._agents.get(key)
        if agent is None:
            agent = self._agents[key] = AgentRequests(most)
        agent.most = most  # of the revision that was used last
        return agent

    def build_to_peer(self, session: Session, peer: Peer) -> Route:
        """A route to the gateway that has the session; it counts the session's activity and signs for its sandbox."""
        now = self._clock.now()
        address = urlsplit(peer.address)
        secure = address.scheme == "https"
        endpoint = Endpoint(host=address.hostname, port=address.port or (443 if secure else 80))
        sandbox = Sandbox(peer_sandbox(peer), session.runtime, endpoint, StartKind.LIVE, now, session.id)
        pool = UpstreamPool(endpoint, connect_timeout=self._connect_timeout, tls=self._peer_tls if secure else None)
        counted = self._counters.of(session.runtime)
        # Of its own, written nowhere: the gateway that has the session counts, and twice would be wrong.
        activity, traffic = SessionActivity(now), SessionTraffic(session)
        route = Route(session, sandbox, pool, activity, self._limits, counted, traffic, peer=self._peers)
        route.set_head(_first_lines(route), float("inf"))
        return route

    def renew_head(self, route: Route) -> None:
        """Give a route to a sandbox its header lines, with a new token unless the runtime wants none."""
        lines = _first_lines(route)
        runtime = self._catalog.get(route.runtime)
        if runtime is not None and not runtime.auth:
            route.set_head(lines, float("inf"))
            return
        token, until = self._tokens.issue(route.sandbox.id, route.session_id)
        route.set_head(b"%bauthorization: Bearer %b\r\n" % (lines, token), until)

    def _branches(self, key: RuntimeKey, endpoint: Endpoint) -> tuple[tuple[bytes, UpstreamPool], ...]:
        runtime = self._catalog.get(key)
        # Behind a unix socket there is picod alone; in a pod an agent's servers listen beside it.
        if runtime is None or not runtime.target_ports or endpoint.host is None:
            return ()
        return tuple(
            (
                prefix.encode(),
                UpstreamPool(Endpoint(host=endpoint.host, port=port), connect_timeout=self._connect_timeout),
            )
            for prefix, port in runtime.target_ports
        )


def _first_lines(route: Route) -> bytes:
    """The header lines of every request on a route, without a token."""
    return b"host: %b\r\nx-agentcube-session-id: %b\r\n" % (route.pool.host, route.session_id_bytes)
