"""Copies of the workspaces of sessions that are in use, for the case that their sandbox is lost."""

from __future__ import annotations

import logging
from functools import partial

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import HibernationMode, Kind, Runtime, SessionId
from gateway.sessions.activity import Activity
from gateway.sessions.bindings import Bindings
from gateway.sessions.bounded_tasks import BoundedTasks
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.records import Records

logger = logging.getLogger(__name__)

CONCURRENCY = 32  # a copy into an object store takes up to 32 MB, so 1 GB at most


class Checkpointer:
    """One pass is `run_once`. State: when each session was last copied, and the copies that are under way."""

    def __init__(
        self,
        *,
        hibernator: Hibernator,
        bindings: Bindings,
        records: Records,
        catalog: RuntimeCatalog,
        activity: Activity,
        clock: Clock,
        usual_interval: float,
        longest_wait: float,
    ) -> None:
        """`usual_interval`: seconds between checkpoints, of runtimes that set none; 0: never.

        `longest_wait`: seconds that a pass waits for copies. Those that take longer run on; a later pass counts them.
        """
        self._hibernator = hibernator
        self._bindings = bindings
        self._records = records
        self._catalog = catalog
        self._activity = activity
        self._clock = clock
        self._usual_interval = usual_interval
        self._longest_wait = longest_wait
        self._checkpointed: dict[SessionId, float] = {}  # when a checkpoint of each was last tried
        self._copying = BoundedTasks(CONCURRENCY)

    async def aclose(self) -> None:
        """Cancel copies that still run."""
        await self._copying.aclose()

    async def run_once(self) -> int:
        """Copy workspaces of active sessions whose runtime's checkpoint interval has elapsed. Returns how many.

        Sessions that were not used since their last checkpoint are skipped: a new copy would equal the old one.
        """
        now = self._clock.now()
        if not any(map(self._interval_of, self._catalog.all())):
            return 0  # the common case, in which no record is read
        bound = self._bindings.sessions
        self._checkpointed = {each: at for each, at in self._checkpointed.items() if each in bound}
        for session_id in bound:
            last = self._checkpointed.setdefault(session_id, now)
            used = self._activity.latest(session_id, now)
            if used is None or used <= last:
                continue
            session = await self._records.peek(session_id)
            runtime = None if session is None else self._catalog.get(session.runtime)
            interval = 0.0 if runtime is None else self._interval_of(runtime)
            if not interval or now - last < interval:
                continue
            if session is not None and now - (session.snapshot_at or 0.0) < interval:
                continue  # another gateway that serves this session has copied it
            if session_id not in self._copying:
                if not await self._copying.start(session_id, partial(self._checkpoint, session_id), self._longest_wait):
                    break
                self._checkpointed[session_id] = now
        return await self._copying.settle(self._longest_wait)

    def _interval_of(self, runtime: Runtime) -> float:
        """Seconds between two checkpoints of a session; 0: none are taken."""
        if runtime.checkpoint_interval is not None:
            return runtime.checkpoint_interval
        # An agent's image has no picod to send files, and what is not hibernated has nothing that is worth a copy.
        copied = runtime.key.kind is Kind.CODE_INTERPRETER and runtime.hibernation is not HibernationMode.OFF
        return self._usual_interval if copied else 0.0

    async def _checkpoint(self, session_id: SessionId) -> bool:
        try:
            return await self._hibernator.checkpoint(session_id)
        except WakegateError as error:
            logger.warning("session %s has no new checkpoint: %s", session_id, error)
            return False
