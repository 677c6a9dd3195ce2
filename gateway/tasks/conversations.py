"""The session of a conversation that the body of a request names, for requests that somebody waits for.

Names stand for sessions in the store, where tasks (task_sessions.py) and all gateways find the same ones.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.identity import current
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import RuntimeKey, SessionId
from gateway.core.tasks import TaskStore
from gateway.sessions.lifecycle import Lifecycle
from gateway.tasks import decisions
from gateway.tasks.conversation import conversation_name
from gateway.tasks.model import conversation_key

_KNOWN_S = 60.0  # for which the store is not asked again; a name stands for its session for days after its last use
_MAX_KNOWN = 10_000


class Conversations:
    """Finds the session of a conversation, and makes one without a sandbox where there is none."""

    def __init__(self, store: TaskStore, catalog: RuntimeCatalog, lifecycle: Lifecycle, clock: Clock) -> None:
        self._store = store
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._clock = clock
        self._known: OrderedDict[str, tuple[SessionId, float]] = OrderedDict()  # by key: the session, known until
        self._making: dict[str, asyncio.Task[SessionId]] = {}

    def field(self, key: RuntimeKey) -> Sequence[str]:
        """Where a body names the conversation, as names that lead into objects; empty: this agent's bodies do not."""
        runtime = self._catalog.get(key)
        return () if runtime is None else runtime.invocations.session

    async def session(self, key: RuntimeKey, body: bytes, *, ended: SessionId | None = None) -> SessionId | None:
        """The session for a request of the current caller's; None: its body names no conversation.

        `ended`: what was returned before, and is there no more. Raises BadRequestError for what is no name, and what
        Lifecycle.register raises.
        """
        name = conversation_name(body, self.field(key))
        if not name:
            return None
        stands_for = conversation_key(current(), key.base, name)
        known = self._known.get(stands_for)
        if known is not None and known[0] != ended and self._clock.now() < known[1]:
            return known[0]
        # One attempt at a time: of a hundred first messages that come together each would make a session.
        making = self._making.get(stands_for)
        if making is None:
            made = self._find_or_make(key, name, stands_for, ended or "")
            making = self._making[stands_for] = asyncio.create_task(made, name="session of a conversation")
            making.add_done_callback(lambda done: self._made(stands_for, done))
        return await asyncio.shield(making)

    def _made(self, stands_for: str, done: asyncio.Task[SessionId]) -> None:
        del self._making[stands_for]
        if done.cancelled() or done.exception() is not None:  # which marks it as seen: those who waited may have left
            return
        self._known.pop(stands_for, None)
        self._known[stands_for] = (done.result(), self._clock.now() + _KNOWN_S)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    async def _find_or_make(self, key: RuntimeKey, name: str, stands_for: str, ended: str) -> SessionId:
        found = await self._store.bound(stands_for, self._clock.now())
        if found and found != ended:
            return await self._bind(stands_for, found)  # which then stands for it for some time more
        made = await self._lifecycle.register(key.base, metadata={"conversation": name})
        try:
            used = await self._bind(stands_for, made.id, instead_of=ended)
        except WakegateError:
            await self._lifecycle.end_unclaimed(made.id)
            raise
        if used != made.id:  # another gateway was first
            await self._lifecycle.end_unclaimed(made.id)
        return used

    async def _bind(self, stands_for: str, session: str, instead_of: str = "") -> SessionId:
        now = self._clock.now()
        until = now + decisions.CONVERSATION_S
        return SessionId(await self._store.bind(stands_for, session, until, now, instead_of=instead_of))
