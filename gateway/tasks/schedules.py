"""Tasks that agents' manifests ask for at times: each firing is made once, by whichever gateway comes first.

A firing is a task whose id is made of the schedule and the time, so that two gateways make one. The store remembers
under the schedule's name up to when it has fired, because tasks are deleted some time after their end. A gateway that
finds several firings missed makes the latest of them only; a schedule that is seen for the first time begins then.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from gateway.core.clock import Clock
from gateway.core.cron import following, latest
from gateway.core.errors import BadRequestError, StoreUnavailableError
from gateway.core.identity import Identity, Role
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import DEFAULT_TENANT, Kind, Runtime, Schedule
from gateway.core.tasks import Added, TaskStore
from gateway.tasks.conversation import conversation_name
from gateway.tasks.model import Task, agent_key, caller_document, conversation_key, from_queued, to_queued

logger = logging.getLogger(__name__)

TICK_S = 1.0
# A schedule that nobody fires any more must not stay in the store for good, and a month outlasts any maintenance.
_REMEMBERED_S = 30 * 86400.0  # after the next firing: who stops for longer begins anew
_FARTHEST_S = 5 * 366 * 86400.0
_SKEW_S = 300.0  # by which gateways' clocks may differ, and are set in the ordinary course
_JSON = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class FiringLimits:
    """The limits of tasks that schedules make.

    As those of requests for tasks (api/agent_invocations.py). `lifetime`: seconds until a task is given up.
    """

    max_open: int
    max_bytes: int
    lifetime: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule, when it fires next and fired last, and the task of that, for as long as it is kept.

    `next` None: never again; `last` None: it has not fired yet.
    """

    schedule: Schedule
    next: float | None
    last: float | None
    task: Task | None


class Scheduler:
    """Makes the tasks of all schedules. `poke()` is called when one was made."""

    def __init__(
        self, store: TaskStore, catalog: RuntimeCatalog, clock: Clock, limits: FiringLimits, poke: Callable[[], None]
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._limits = limits
        self._poke = poke
        self._last_tick = float("-inf")
        self._next: dict[str, float] = {}  # when each schedule fires, by its name in the store

    async def run(self) -> None:
        """Make what is due, until cancelled."""
        last_error = ""
        while True:
            try:
                await self.tick()
                last_error = ""
            except StoreUnavailableError as error:
                if str(error) != last_error:
                    logger.warning("schedules do not fire: %s", error)
                last_error = str(error)
            except Exception:
                logger.exception("schedules failed")
            await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """One look at every schedule. Raises StoreUnavailableError."""
        now = self._clock.now()
        if now < self._last_tick - _SKEW_S:
            self._next.clear()  # times after a clock that was wrong
        self._last_tick = now
        followed: dict[str, float] = {}
        for runtime in self.agents():
            for schedule in runtime.invocations.schedules:
                name = name_of(runtime, schedule)
                at = self._next.get(name)
                # Asked of the store once for each schedule, and then only when one is due: a thousand of them cost no
                # look a second.
                if at is None:
                    at = await self._first(schedule, name, now)
                if at <= now:
                    # What was missed besides the latest is not made up: an agent that was away for a night is asked
                    # once for its report, not once for each hour.
                    await self._fire(runtime, schedule, name, max(at, _latest(schedule, now)), now)
                    at = _following(schedule, now)
                followed[name] = self._next[name] = at
        self._next = followed

    async def plans(self, runtime: Runtime) -> list[Plan]:
        """When each schedule of an agent fires, and when it did. Raises StoreUnavailableError."""
        now, found = self._clock.now(), []
        for schedule in runtime.invocations.schedules:
            name = name_of(runtime, schedule)
            known = await self._store.bound(name, now)
            at = float(known) if known else None
            # What is remembered of one that has never fired is when it was seen first, which is none of its times.
            if at is not None and _latest(schedule, at) != at:
                at = None
            entry = None if at is None else await self._store.get(_task_id(name, at))
            following = _following(schedule, now)
            found.append(
                Plan(
                    schedule,
                    None if math.isinf(following) else following,
                    at,
                    None if entry is None else from_queued(entry),
                )
            )
        return found

    def agents(self) -> list[Runtime]:
        """Those that are served: one that is stopped misses its firings, and makes up the latest when it is started."""
        keys = {each.key.base for each in self._catalog.all() if each.key.kind is Kind.AGENT_RUNTIME}
        found = (self._catalog.get(key) for key in sorted(keys, key=str))
        return [each for each in found if each is not None and each.invocations.schedules]

    async def _first(self, schedule: Schedule, name: str, now: float) -> float:
        """When it fires next, as far as all gateways know."""
        known = await self._store.bound(name, now)
        if not known or _is_to_come(known, now):
            known = await self._remember(schedule, name, now, now, instead_of=known)
        return _following(schedule, float(known))

    async def _fire(self, runtime: Runtime, schedule: Schedule, name: str, at: float, now: float) -> None:
        known = await self._store.bound(name, now)
        if known and float(known) >= at and not _is_to_come(known, now):
            return  # another gateway was first
        task = self._task(runtime, schedule, name, at, now)
        added = await self._store.add(
            to_queued(task),
            schedule.body.encode(),
            max_open=self._limits.max_open,
            max_bytes=self._limits.max_bytes,
        )
        if added in (Added.QUEUE_FULL, Added.TENANT_FULL):
            logger.warning("schedule %s of %s does not fire: %s", schedule.name, runtime.key.base, added)
        # After it was added: a gateway that dies in between leaves a task that the next one finds by its id.
        await self._remember(schedule, name, at, now, instead_of=known)
        self._poke()

    async def _remember(self, schedule: Schedule, name: str, at: float, now: float, instead_of: str = "") -> str:
        until = min(_following(schedule, now), now + _FARTHEST_S) + _REMEMBERED_S
        return await self._store.bind(name, repr(at), until, now, instead_of=instead_of)

    def _task(self, runtime: Runtime, schedule: Schedule, name: str, at: float, now: float) -> Task:
        key, asked = runtime.key.base, runtime.invocations
        caller = Identity(Role.MEMBER, runtime.tenant or DEFAULT_TENANT, f"schedule {schedule.name}")
        conversation = _conversation(runtime, schedule, caller)
        return Task(
            id=_task_id(name, at),
            namespace=key.namespace,
            name=key.name,
            caller=caller_document(caller),
            path=schedule.path,
            headers=_JSON,
            created_at=now,
            due_at=now,
            deadline=now + self._limits.lifetime,
            timeout=asked.timeout,
            max_attempts=asked.attempts,
            # Made here as a request's would be: a nightly report goes on in the session of the night before.
            conversation=conversation,
            schedule=schedule.name,
            keys=(agent_key(key), conversation) if conversation else (agent_key(key),),
        )


def name_of(runtime: Runtime, schedule: Schedule) -> str:
    """What a schedule is called in the store. One whose times are changed is another, which begins anew."""
    parts = (runtime.key.namespace, runtime.key.name, schedule.name, schedule.cron, schedule.timezone)
    return f"schedule {hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"


def _task_id(name: str, at: float) -> str:
    """The same at each gateway, so that a firing makes one task."""
    return f"task_{hashlib.sha256(f'{name} {at!r}'.encode()).hexdigest()[:32]}"


def _conversation(runtime: Runtime, schedule: Schedule, caller: Identity) -> str:
    if not runtime.invocations.session:
        return ""
    try:
        name = conversation_name(schedule.body.encode(), runtime.invocations.session)
    except BadRequestError as error:
        logger.warning("schedule %s of %s: %s", schedule.name, runtime.key.base, error)
        return ""
    return conversation_key(caller, runtime.key.base, name) if name else ""


def _is_to_come(known: str, now: float) -> bool:
    """Whether it has fired at a time that is still to come: it did by a clock that was wrong, which does not count."""
    return float(known) > now + _SKEW_S


def _following(schedule: Schedule, after: float) -> float:
    return following(schedule.cron, schedule.timezone, after)


def _latest(schedule: Schedule, until: float) -> float:
    return latest(schedule.cron, schedule.timezone, until)
