"""Egress of sandboxes in a cluster: each picod gets the service's address and a token once its sandbox has a session.

The local engine hands the sandbox's listener to the service. A pod's cannot leave its node: its picod dials instead,
with a token (picod/ports/egress_way.py, gateway/egress/entrance.py). Any gateway may be asked about any session's
token, as a Service spreads connections over all of them; what none of its own sandboxes has, it looks up in the store.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from gateway.app.egress import SessionEgress
from gateway.core.background import Tasks
from gateway.core.backoff import backoff
from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider, SessionStore
from gateway.core.model import Kind, Runtime, SandboxId, Session, SessionId, StartKind
from gateway.core.quota import Part, Wish
from gateway.egress.gate import EgressGate
from gateway.egress.grants import by_name
from gateway.egress.notation import Grant
from gateway.egress.parts import PART_TTL_S
from gateway.sandbox.egress_tokens import read_egress, sign_egress
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sessions.bindings import Bindings

logger = logging.getLogger(__name__)

# From 0.1 s on, doubled: six failures are 6.3 s, within the 10 s for which picod has code wait for the address.
_TRIES, _FIRST_RETRY_S, _LONGEST_RETRY_S = 8, 0.1, 5.0
# A session may be extended, and a gateway may be slow to end it: whether it still runs is asked anyway.
_SLACK_S = 3600.0


class PodEgress:
    """Tells picods of their session's egress, and the gate whose token a connection brings."""

    def __init__(
        self,
        address: str,
        gate: EgressGate,
        sessions: SessionEgress,
        *,
        keys: KeyRing,
        picod: PicodExecutor,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        find: Callable[[SessionId], Awaitable[Session | None]],
        clock: Clock,
    ) -> None:
        """`address`: HOST:PORT of the service as sandboxes reach it, a name or an address. `find`: a session's record;
        it may raise WakegateError."""
        self._address, self._gate, self._sessions = address, gate, sessions
        self._keys, self._picod, self._provider, self._catalog = keys, picod, provider, catalog
        self._find, self._clock = find, clock
        self._bound: dict[SandboxId, Session] = {}
        self._tasks = Tasks()
        gate.on_token(self.whose)

    def follow(self, bindings: Bindings) -> None:
        """Learn from now on which sandbox is whose."""
        bindings.on_bound(self.bound)
        bindings.on_removed(self.removed)

    def bound(self, session: Session, sandbox: SandboxId, _: StartKind | None) -> None:
        """A session has a sandbox: its picod is told, beside whatever the session begins with."""
        if self._runtime_of(session) is not None:
            self._bound[sandbox] = session
            self._tasks.spawn(self._tell(session, sandbox))

    def removed(self, sandbox: SandboxId) -> None:
        """It no longer has it: its connections end here, whenever the pod does."""
        if self._bound.pop(sandbox, None) is not None:
            self._gate.leave(sandbox)

    def renew(self) -> None:
        """Another key signs: the one before will be dropped, and its tokens with it."""
        for sandbox, session in self._bound.items():
            self._tasks.spawn(self._tell(session, sandbox))

    async def aclose(self) -> None:
        """Stop the requests to picods that are under way."""
        await self._tasks.aclose()

    async def whose(self, token: str) -> tuple[str, Grant] | None:
        """The sandbox of a token, and what it may reach now; None: nobody's. Raises WakegateError."""
        try:
            sandbox, session_id = read_egress(self._keys, token, self._clock.now())
        except ValueError as error:
            logger.debug("egress: %s", error)
            return None
        session = self._bound.get(sandbox)
        if session is None or session.id != session_id:
            session = await self._find(session_id)
            # Hibernated, ended, or on another sandbox since: what is left of this one reaches nothing.
            if session is None or session.sandbox is None or session.sandbox.id != sandbox:
                return None
            self._sessions.visits(session)
        runtime = self._runtime_of(session)
        return None if runtime is None else (sandbox, self._sessions.grant(runtime, session))

    def _runtime_of(self, session: Session) -> Runtime | None:
        """If its sandboxes reach anything through the service."""
        if session.runtime.kind is not Kind.CODE_INTERPRETER:
            return None  # an agent's pod has no picod
        found = self._catalog.get(session.runtime)
        return found if found is not None and by_name(found) else None

    async def _tell(self, session: Session, sandbox: SandboxId) -> None:
        for failures in range(1, _TRIES + 1):
            if self._bound.get(sandbox) is not session:
                return
            try:
                await self._tell_once(session, sandbox)
            except (WakegateError, OSError) as error:
                level = logging.WARNING if failures == _TRIES else logging.DEBUG
                logger.log(
                    level,
                    "egress of sandbox %s: its picod did not take the address of the egress service: %s",
                    sandbox,
                    error,
                )
                await asyncio.sleep(backoff(failures, first=_FIRST_RETRY_S, longest=_LONGEST_RETRY_S))
            else:
                return

    async def _tell_once(self, session: Session, sandbox: SandboxId) -> None:
        """Raises WakegateError, OSError."""
        found = await self._provider.find(sandbox)
        if found is None:
            return
        runtime = self._catalog.get(session.runtime)
        lifetime = _SLACK_S + (0.0 if runtime is None else runtime.max_session_duration)
        token = sign_egress(self._keys, sandbox, session.id, self._clock.now(), lifetime)
        await self._picod.tell_egress(found, session.id, await _resolve(self._address), token)


async def parts_of(store: SessionStore, holder: str, name: str, wish: Wish) -> Part:
    """This gateway's part of the limits of a sandbox that several gateways serve, for EgressGate.on_part.

    Raises WakegateError.
    """
    return await store.quotas.part(f"egress:{name}", holder, wish, PART_TTL_S)


async def _resolve(address: str) -> str:
    """As ADDRESS:PORT: there is no DNS in a sandbox, so the name of the Service is looked up here. Raises OSError."""
    host, _, port = address.rpartition(":")
    name = host.removeprefix("[").removesuffix("]")
    found = await asyncio.get_running_loop().getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
    numeric = found[0][4][0]
    return f"[{numeric}]:{port}" if ":" in str(numeric) else f"{numeric}:{port}"
