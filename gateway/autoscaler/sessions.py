"""Silences of sessions, gathered; advice from them, and acted upon where the settings say so.

Every few seconds it looks at the sessions that this gateway serves: a session that was used again tells how long it had
been silent, one that has been silent for longer than its advice may go to sleep before its timeout, and one that sleeps
may be woken ahead of its next request. A silence that ends a session for good is not counted: it costs no wake. Known
in memory only; advice begins anew, with the runtime's timeout, when a gateway does.
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

_MIN_GAP_S = 1.0  # seconds; shorter silences tell nothing about sleeping
_MAX_OWN_GAPS = 32  # latest gaps of one session that are remembered
_MAX_SESSIONS = 20_000  # that are remembered, the latest used: about 10 MB
_MAX_BATCH = 32  # sessions put to sleep or woken in one pass, so that a pass stays short

Served = Iterable[tuple[SessionId, RuntimeKey, float, bool]]  # session, runtime, last active at, busy


@dataclass(frozen=True, slots=True)
class AdviceSettings:
    """`wake_cost`: idle sandbox-seconds that one wake is worth. Both acts are off by default."""

    wake_cost: float = 30.0
    hibernate: bool = False  # let sessions sleep when advised, at the latest at their timeout
    prewake: bool = False  # wake sleeping sessions ahead of a request that is likely soon


@dataclass(slots=True)
class _Seen:
    runtime: RuntimeKey
    last: float
    advice: Advice
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_OWN_GAPS))
    asleep: bool = False
    woken_at: float | None = None  # when it was woken ahead; until it is used


class SessionAdvisor:
    """One gateway's. `run_once` every few seconds; `woken`, `unbound` and `ended` listen to lifecycle."""

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
        self._ahead: set[SessionId] = set()  # woken ahead, and neither used nor asleep again
        self._waking: SessionId | None = None
        self.slept = self.woke = 0  # by advice, since the start

    def woken(self, session_id: SessionId, runtime: RuntimeKey, silent: float) -> None:
        """A sleeping session is used again after `silent` seconds, unless it is we who wake it."""
        seen = self._sessions.get(session_id)
        if session_id == self._waking:
            return
        if seen is None:
            self._histogram(runtime).observe(silent)  # it fell asleep before this gateway knew it
        else:
            seen.asleep = False  # its next use, seen in the next pass, tells how long it was silent

    def unbound(self, session_id: SessionId, sandbox_id: SandboxId | None) -> None:
        """A session sleeps, or is about to end."""
        seen = self._sessions.get(session_id)
        if seen is not None and sandbox_id is None:
            seen.asleep = True
            self._ahead.discard(session_id)

    def ended(self, session_id: SessionId) -> None:
        """It will not be used again."""
        self._sessions.pop(session_id, None)
        self._ahead.discard(session_id)

    async def run_once(self, now: float) -> None:
        """Take in what was used since the last pass, then act."""
        sleepy = self._look(now)
        if self._settings.hibernate:
            for session_id in sleepy[:_MAX_BATCH]:
                await self._hibernate(session_id)
        if self._settings.prewake:
            for session_id in self._due(now)[:_MAX_BATCH]:
                await self._wake(session_id, now)

    def advice(self, session_id: SessionId) -> Advice | None:
        """For a session that this gateway knows."""
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
        """Learn from every served session; those that are silent for longer than advised, longest first."""
        sleepy: list[tuple[float, SessionId]] = []
        for session_id, runtime, last, busy in self._served():
            seen = self._sessions.get(session_id)
            if seen is None:
                seen = self._sessions[session_id] = _Seen(runtime, last, self._advise(runtime, ()))
                if len(self._sessions) > _MAX_SESSIONS:
                    self._ahead.discard(self._sessions.popitem(last=False)[0])
            if last > seen.last:
                if last - seen.last >= _MIN_GAP_S:
                    self._observe(seen, last - seen.last)
                seen.last, seen.woken_at, seen.asleep = last, None, False
                self._ahead.discard(session_id)
                self._sessions.move_to_end(session_id)
            if not busy and now - seen.last >= seen.advice.hibernate_after and session_id not in self._ahead:
                sleepy.append((seen.last, session_id))
        for session_id in self._ahead:
            seen = self._sessions[session_id]
            if seen.woken_at is not None and now - seen.woken_at >= seen.advice.hibernate_after:
                sleepy.append((seen.woken_at, session_id))
        return [session_id for _, session_id in sorted(sleepy)]

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

        def silent(session: Session) -> bool:
            return self._idleness.is_idle(replace(session, idle_timeout=min(after, session.idle_timeout)))

        try:
            self.slept += await self._hibernator.hibernate(session_id, only_if=silent)
        except WakegateError as error:
            # Its timeout comes later, and the sweeper then says what is wrong with it.
            logger.debug("session %s stays awake until its timeout: %s", session_id, error)

    def _due(self, now: float) -> list[SessionId]:
        """Hibernator sessions whose request is likely soon."""
        return [
            session_id
            for session_id, seen in self._sessions.items()
            if seen.asleep
            and seen.woken_at is None  # once per silence: whether the guess was right or not
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
            seen.asleep = False
            self.woke += 1
            if session_id in self._sessions:
                self._ahead.add(session_id)
        finally:
            self._waking = None
