"""Takes tasks that are due and carries them out. Every gateway does; the store decides which one gets a task."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.errors import NotFoundError, StaleWriteError, StoreUnavailableError, WakegateError
from gateway.core.identity import acting_as
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Invocations, SessionId
from gateway.core.tasks import QueuedTask, TaskStore
from gateway.sessions.hibernation import Hibernator
from gateway.tasks import decisions
from gateway.tasks.attempt import Attempts, Try
from gateway.tasks.counts import TaskCounts
from gateway.tasks.decisions import Failure, Look, Then
from gateway.tasks.held import HeldTask
from gateway.tasks.model import Answer, Task, agent_key, from_queued, to_queued, with_version
from gateway.tasks.task_sessions import TaskSessions

logger = logging.getLogger(__name__)

# A task that is added here is begun at once (`poke`); this is how late one is that another gateway added.
TICK_S = 0.5
PRUNE_TICKS = 60
LOOK_TICKS = 10  # between two counts of what waits, for /metrics
_PAGE = 50
_MAX_LOOKED_AT = 1000  # tasks of one queue in a tick: those whose sessions are busy are passed over


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What the runner takes of the settings.

    `lease`: seconds after which a task whose gateway died is begun again. `retention`: of what is over.

    `at_once`: tasks that this gateway runs at a time.
    """

    lease: float = 20.0
    retention: float = 86400.0
    at_once: int = 100


class TaskRunner:
    """Runs the tasks of all queues. `deliver(task)` sends a webhook and returns the task as it is then."""

    def __init__(
        self,
        store: TaskStore,
        catalog: RuntimeCatalog,
        attempts: Attempts,
        hibernator: Hibernator,
        clock: Clock,
        settings: RunnerSettings,
        counts: TaskCounts,
        deliver: Callable[[Task], Awaitable[Task]] | None = None,
        is_leaving: Callable[[], bool] = lambda: False,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._attempts = attempts
        self._hibernator = hibernator
        self._clock = clock
        self._settings = settings
        self._counts = counts
        self._deliver = deliver
        self._is_leaving = is_leaving
        self._chance = chance
        # Not the gateway's name: one that is started again with the same pid is another holder.
        self._me = uuid.uuid4().hex
        self._sessions = TaskSessions(store, attempts, clock)
        self._running = Tasks()
        self._held: dict[str, tuple[HeldTask, asyncio.Task[None]]] = {}
        self._delivering = 0  # webhooks
        self._wake = asyncio.Event()
        self._closing = False
        self._ticks = 0

    def poke(self) -> None:
        """Something may be due: look now."""
        self._wake.set()

    async def run(self) -> None:
        """Look for what is due, until cancelled."""
        last_error = ""
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self.tick()
                last_error = ""
            except StoreUnavailableError as error:
                # Once per problem: two lines a second for an hour would hide everything else in the log.
                if str(error) != last_error:
                    logger.warning("tasks are not run: %s", error)
                last_error = str(error)
            except Exception:
                logger.exception("looking for tasks failed")
                await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """One look at every queue. Raises StoreUnavailableError."""
        now = self._clock.now()
        self._ticks += 1
        if self._ticks % PRUNE_TICKS == 0:
            await self._store.prune(now)
        if self._ticks % LOOK_TICKS == 1:
            await self._counts.look(self._store, now)
        if self._is_leaving() or self._closing:
            return
        queues = list(await self._store.queues(now))
        # Else gateways would all begin with the same one, and a full gateway never reach the last.
        random.shuffle(queues)
        for queue in queues:
            await self._look_at(queue, now)

    async def aclose(self) -> None:
        """Stop the tasks that run here and put them back, for another gateway."""
        # Cancelled and put back rather than waited for: an agent may run for an hour, and the one that ends has
        # seconds.
        self._closing = True
        await self._running.aclose()

    def cancel(self, task_id: str) -> None:
        """Stop a task at once, if it runs here and the store says that it is to be."""
        held = self._held.get(task_id)
        if held is not None:
            held[0].task = replace(held[0].task, cancel=True)
            held[1].cancel()

    async def _look_at(self, queue: str, now: float) -> None:
        after: tuple[float, str] | None = None
        busy: set[str] = set()  # keys that as many hold as may
        for _ in range(_MAX_LOOKED_AT // _PAGE):
            page = await self._store.due(queue, now, after=after, limit=_PAGE)
            for entry in page:
                if len(self._held) + self._delivering >= self._settings.at_once:
                    return
                if entry.id not in self._held and (not entry.is_open or busy.isdisjoint(entry.keys)):
                    busy |= await self._take(entry, now)
            if len(page) < _PAGE:
                return
            after = (page[-1].due_at, page[-1].id)

    async def _take(self, entry: QueuedTask, now: float) -> set[str]:
        """Do what a task needs. Returns keys that as many hold as may."""
        try:
            task = from_queued(entry)
        except (KeyError, TypeError, ValueError) as error:
            logger.error("task %s is unreadable in the store, and is deleted: %r", entry.id, error)
            await self._store.delete(entry.id)
            return set()
        if task.unknown:
            return set()  # for a gateway that knows what it is
        match decisions.look(task, now):
            case Look.RUN:
                return await self._begin(task, now)
            case Look.GIVE_UP:
                await self._end(task, decisions.given_up(task, now, self._settings.retention))
            case Look.DELIVER:
                await self._begin_delivery(task, now)
            case Look.NOTHING:
                await self._write(replace(task, due_at=float("inf")))
        return set()

    async def _begin(self, task: Task, now: float) -> set[str]:
        runtime = self._catalog.get(task.key)
        invocations = Invocations() if runtime is None else runtime.invocations
        task = await self._sessions.known(task)
        limits = decisions.limits_of(task, agent_key(task.key), invocations.concurrency, invocations.per_session)
        begun = decisions.begun(task, self._me, now, self._settings.lease)
        try:
            written = await self._store.write(to_queued(begun), now, limits=limits)
        except StaleWriteError:
            return set()  # another gateway took it
        # No room by one of its keys. Which one matters: tasks of other sessions may still begin, those of the agent may
        # not.
        if written is None:
            agent = agent_key(task.key)
            is_agent = await self._store.held(agent, now) >= invocations.concurrency
            return {agent} if is_agent else limits.keys() - {agent}
        self._counts.begun(begun)
        held = HeldTask(with_version(begun, written), self._store, self._clock)
        self._held[task.id] = (held, self._running.spawn(self._carry(held), name=f"task {task.id}"))
        return set()

    async def _carry(self, held: HeldTask) -> None:
        """Run a task that this gateway holds, and write its end."""
        renewal = asyncio.create_task(self._renew(held), name=f"lease of task {held.task.id}")
        try:
            with acting_as(held.task.identity):
                outcome = await self._try(held)
        except asyncio.CancelledError:
            # Another gateway has it by now, and is running it: what was done here is that one's to write.
            if held.is_lost:
                return
            outcome = Failure("it was cancelled", Then.NEVER)
            if not held.task.cancel:
                await asyncio.shield(self._release(held))
                raise
        except Exception:
            logger.exception("task %s failed in the gateway", held.task.id)
            outcome = Failure("an error of the gateway's; its log says which", Then.RETRY)
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            self._held.pop(held.task.id, None)
        # The end of this gateway cancels what runs; an answer that is here must reach the store all the same.
        await asyncio.shield(self._finish(held, outcome))

    async def _try(self, held: HeldTask) -> Answer | Failure:
        if (failure := await self._sessions.enter(held)) is not None:
            return failure
        body = await self._store.body(held.task.id)
        return await self._attempts.run(held.task, body, held.seen)

    async def _renew(self, held: HeldTask) -> None:
        """Keep the lease while it runs, and find out that somebody cancelled it."""
        while True:
            # A third: two renewals may fail, for a store that is away for a moment, before another gateway begins it
            # again.
            await asyncio.sleep(self._settings.lease / 3)
            try:
                kept = await held.change(partial(self._renewed, seen=held.seen))
            except StoreUnavailableError as error:
                logger.warning("the lease of task %s cannot be renewed: %s", held.task.id, error)
                continue  # if it stays away, the end of the task finds out who has it
            if not kept or held.task.cancel:
                running = self._held.get(held.task.id)
                if running is not None:
                    running[1].cancel()
                return

    def _renewed(self, task: Task, *, seen: Try) -> Task:
        return decisions.renewed(task, seen.progress, self._clock.now(), self._settings.lease)

    async def _finish(self, held: HeldTask, outcome: Answer | Failure) -> None:
        now, retention, jitter = self._clock.now(), self._settings.retention, self._chance()

        def decide(task: Task) -> Task:
            if isinstance(outcome, Answer):
                return decisions.answered(task, outcome, now, retention, jitter)
            return decisions.failed(task, outcome, now, retention, jitter)

        if isinstance(outcome, Failure):
            logger.info("task %s, try %d: %s", held.task.id, held.task.attempts, outcome.text)
        # Read before the end is written, which may forget it.
        made = held.task.session if held.task.made_session else ""
        answer = bytes(held.seen.body)
        pause = 0.2
        while True:
            try:
                if await held.change(decide, answer):
                    self._counts.ended(held.task)
                break
            except StoreUnavailableError as error:
                # What the agent did must not be done again because the store was away for a moment.
                logger.warning("task %s has ended, which cannot be written yet: %s", held.task.id, error)
                await asyncio.sleep(pause)
                pause = min(5.0, 2 * pause)
        self._wake.set()
        if made and held.task.state.is_over:
            await self._put_to_sleep(held.task, made)

    async def _put_to_sleep(self, task: Task, session_id: str) -> None:
        """A session that was made for a task costs nothing once that is over; the next request wakes it."""
        try:
            with acting_as(task.identity):
                await self._hibernator.hibernate(SessionId(session_id))
        except WakegateError as error:
            logger.debug("session %s stays awake until it is idle: %s", session_id, error)

    async def _release(self, held: HeldTask) -> None:
        try:
            await held.change(lambda task: decisions.released(task, self._clock.now()))
        except StoreUnavailableError as error:
            logger.warning("task %s is begun again when its lease ends: %s", held.task.id, error)

    async def _end(self, task: Task, ended: Task) -> None:
        if await self._write(ended):
            self._counts.ended(ended)
            self._wake.set()

    async def _begin_delivery(self, task: Task, now: float) -> None:
        if self._deliver is None:
            return
        taken = decisions.delivering(task, now, self._settings.lease)
        if (written := await self._write(taken)) is not None:
            self._running.spawn(self._deliver_one(with_version(taken, written)), name=f"webhook of task {task.id}")

    async def _deliver_one(self, task: Task) -> None:
        assert self._deliver is not None
        self._delivering += 1
        try:
            await self._write(await self._deliver(task))
        except WakegateError as error:
            logger.warning("what became of the webhook of task %s cannot be written: %s", task.id, error)
        except Exception:
            logger.exception("the webhook of task %s failed in the gateway", task.id)
        finally:
            self._delivering -= 1

    async def _write(self, task: Task) -> QueuedTask | None:
        try:
            return await self._store.write(to_queued(task), self._clock.now())
        except (StaleWriteError, NotFoundError):
            return None  # another gateway, or its owner, was first
