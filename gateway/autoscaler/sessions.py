"""Collects the idle gaps of sessions, derives advice from them, and acts on it if the settings say so.

Every few seconds it looks at the sessions that this gateway serves: a session that was used again adds its idle
gap, one that is idle for longer than advised may be hibernated before its timeout, and a hibernated one may be woken
ahead of its next request. A gap that ends with the session is not counted: it costs no wake. All of this is in memory
only; after a restart of the gateway the advice is the runtime's timeout again, until enough gaps are known.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.autoscaler.advice import Advice, GapHistogram
from gateway.core.errors import WakegateError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import HibernationMode, RuntimeKey, SandboxId, Session, SessionId
from gateway.sessions.activation import SessionOpener
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.idleness import IdleTracker

logger = logging.getLogger(__name__)

_MIN_GAP_S = 1.0  # shorter gaps are within one task of the client, and no time to hibernate
_MAX_OWN_GAPS = 32  # latest gaps of one session that are remembered
_MAX_SESSIONS = 20_000  # that are remembered, the latest used: about 10 MB
_MAX_BATCH = 32  # sessions hibernated or woken in one pass, so that a pass stays short

Served = Iterable[tuple[SessionId, RuntimeKey, float, bool]]  # session, runtime, last active at, busy


@dataclass(frozen=True, slots=True)
class AdviceSettings:
    """`wake_cost`: idle sandbox-seconds that one wake is worth. Both acts are off by default."""

    wake_cost: float = 300.0
    hibernate: bool = False  # hibernate sessions when advised, at the latest at their timeout
    prewake: bool = False  # wake hibernated sessions ahead of a request that is likely soon


@dataclass(slots=True)
class _Seen:
    runtime: RuntimeKey
    last: float
    advice: Advice
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_OWN_GAPS))
    hibernated: bool = False
    woken_at: float | None = None  # when it was woken ahead; until it is used


class SessionAdvisor:
    """Advises on, and hibernates and wakes, the sessions of one gateway.

    `run_once` every few seconds; `woken`, `unbound` and `ended` listen to lifecycle.
    """

    def __init__(
        self,
        hibernator: Hibernator,
        opener: SessionOpener,
        idleness: IdleTracker,
        catalog: RuntimeCatalog,
        served: Callable[[], Served],
        settings: AdviceSettings,
    ) -> None:
        self._hibernator, self._opener, self._idleness = hibernator, opener, idleness
        self._catalog, self._served, self._settings = catalog, served, settings
        self._histograms: dict[RuntimeKey, GapHistogram] = {}
        self._sessions: OrderedDict[SessionId, _Seen] = OrderedDict()
        self._ahead: set[SessionId] = set()  # woken ahead, and neither used nor hibernated since
        self._waking: SessionId | None = None
        self.slept = self.woke = 0  # by advice, since the start

    def woken(self, session_id: SessionId, runtime: RuntimeKey, idle_s: float) -> None:
        """A hibernated session is woken after `idle_s` seconds: a gap, unless this class wakes it ahead of use."""
        seen = self._sessions.get(session_id)
        if session_id == self._waking:
            return
        if seen is None:
            self._histogram(runtime).observe(idle_s)  # it was hibernated before this gateway knew it
        else:
            seen.hibernated = False  # the next pass sees its use, and counts the gap

    def unbound(self, session_id: SessionId, sandbox_id: SandboxId | None) -> None:
        """A session has lost its sandbox: it is hibernated, or about to end."""
        seen = self._sessions.get(session_id)
        if seen is not None and sandbox_id is None:
            seen.hibernated = True
            self._ahead.discard(session_id)

    def ended(self, session_id: SessionId) -> None:
        """Forget a session that has ended."""
        self._sessions.pop(session_id, None)
        self._ahead.discard(session_id)

    async def run_once(self, now: float) -> None:
        """Count the gaps of sessions used since the last pass, then hibernate and wake as advised."""
        idle = self._look(now)
        if self._settings.hibernate:
            for session_id in idle[:_MAX_BATCH]:
                await self._hibernate(session_id)
        if self._settings.prewake:
            for session_id in self._due(now)[:_MAX_BATCH]:
                await self._wake(session_id, now)

    def advice(self, session_id: SessionId) -> Advice | None:
        """The advice for a session; None when this gateway does not know it."""
        seen = self._sessions.get(session_id)
        return None if seen is None else seen.advice

    def explain(self) -> dict[str, Any]:
        """Per runtime, for GET /v1/autoscaler; seconds."""
        runtimes = {}
        for key, histogram in sorted(self._histograms.items()):
            advice = self._advise(key, ())
            runtimes[str(key)] = {
                "silences": round(histogram.seen),
                "hibernateAfter": round(advice.hibernate_after, 1),
                "wakeAt": advice.wake_at,
                "why": advice.why,
            }
        acts = {"hibernates": self._settings.hibernate, "prewakes": self._settings.prewake}
        return {
            **acts,
            "wakeCost": self._settings.wake_cost,
            "slept": self.slept,
            "woke": self.woke,
            "runtimes": runtimes,
        }

    def _look(self, now: float) -> list[SessionId]:
        """Learn from every served session; returns those idle for longer than advised, longest first."""
        idle: list[tuple[float, SessionId]] = []
        for session_id, runtime, last, busy in self._served():
            seen = self._sessions.get(session_id)
            if seen is None:
                seen = self._sessions[session_id] = _Seen(runtime, last, self._advise(runtime, ()))
                if len(self._sessions) > _MAX_SESSIONS:
                    self._ahead.discard(self._sessions.popitem(last=False)[0])
            if last > seen.last:
                if last - seen.last >= _MIN_GAP_S:
                    self._observe(seen, last - seen.last)
                seen.last, seen.woken_at, seen.hibernated = last, None, False
                self._ahead.discard(session_id)
                self._sessions.move_to_end(session_id)
            if not busy and now - seen.last >= seen.advice.hibernate_after and session_id not in self._ahead:
                idle.append((seen.last, session_id))
        for session_id in self._ahead:
            seen = self._sessions[session_id]
            # Through the time for which it was woken: a timer of ten minutes is waited for from 562 to 681 s. Advised
            # to hibernate after 6 s of idling it would be asleep again at 568.
            stay = max(seen.advice.hibernate_after, seen.advice.stay)
            if seen.woken_at is not None and now - seen.woken_at >= stay:
                idle.append((seen.woken_at, session_id))
        return [session_id for _, session_id in sorted(idle)]

    def _observe(self, seen: _Seen, gap: float) -> None:
        self._histogram(seen.runtime).observe(gap)
        seen.gaps.append(gap)
        seen.advice = self._advise(seen.runtime, tuple(seen.gaps))

    def _histogram(self, runtime: RuntimeKey) -> GapHistogram:
        return self._histograms.setdefault(runtime, GapHistogram())

    def _advise(self, key: RuntimeKey, gaps: tuple[float, ...]) -> Advice:
        runtime = self._catalog.get(key)
        timeout = 0.0 if runtime is None else runtime.session_timeout
        settings = self._settings
        return self._histogram(key).advise(timeout, wake_cost=settings.wake_cost, own=gaps, prewake=settings.prewake)

    async def _hibernate(self, session_id: SessionId) -> None:
        seen = self._sessions.get(session_id)
        runtime = None if seen is None else self._catalog.get(seen.runtime)
        if seen is None or runtime is None or runtime.hibernation is HibernationMode.OFF:
            return
        after = seen.advice.hibernate_after

        def is_idle(session: Session) -> bool:
            return self._idleness.is_idle(replace(session, idle_timeout=min(after, session.idle_timeout)))

        try:
            self.slept += await self._hibernator.hibernate(session_id, only_if=is_idle)
        except WakegateError as error:
            # Debug only: the sweeper hibernates it at its timeout, and then reports the error.
            logger.debug("session %s stays awake until its timeout: %s", session_id, error)

    def _due(self, now: float) -> list[SessionId]:
        """Hibernated sessions whose next request is likely soon."""
        return [
            session_id
            for session_id, seen in self._sessions.items()
            if seen.hibernated
            and seen.woken_at is None  # at most once per gap, even if the forecast was wrong
            and seen.advice.wake_at is not None
            and seen.last + seen.advice.wake_at <= now
        ]

    async def _wake(self, session_id: SessionId, now: float) -> None:
        seen = self._sessions.get(session_id)
        if seen is None:  # it ended while others were woken
            return
        seen.woken_at, self._waking = now, session_id
        try:
            await self._opener.open(session_id)
        except WakegateError as error:
            logger.debug("session %s is not woken ahead: %s", session_id, error)
        else:
            seen.hibernated = False
            self.woke += 1
            if session_id in self._sessions:
                self._ahead.add(session_id)
        finally:
            self._waking = None
