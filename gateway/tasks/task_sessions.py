"""The session that a task runs in: one that it names, that of its conversation, or one that is made for it."""

from __future__ import annotations

from dataclasses import replace

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.model import SessionId
from gateway.core.tasks import TaskStore
from gateway.tasks import decisions
from gateway.tasks.attempt import Attempts, failure_of
from gateway.tasks.decisions import Failure, Then
from gateway.tasks.held import HeldTask
from gateway.tasks.model import Task, session_key


class TaskSessions:
    """Finds the session of a conversation, and makes it where there is none."""

    def __init__(self, store: TaskStore, attempts: Attempts, clock: Clock) -> None:
        self._store = store
        self._attempts = attempts
        self._clock = clock

    async def known(self, task: Task) -> Task:
        """The task in the session that its conversation has by now, so that it waits for whatever runs in that."""
        if not task.conversation or task.session:
            return task
        found = await self._store.bound(task.conversation, self._clock.now())
        if not found or found == task.lost_session:
            return task
        keys = dict.fromkeys((*task.keys, session_key(found)))
        return replace(task, session=found, keys=tuple(keys))

    async def enter(self, held: HeldTask) -> Failure | None:
        """See to it that the task has a session, as its caller. A failure, if there is none."""
        if held.task.session and not held.task.conversation:
            return None
        try:
            session_id = await self._choose(held.task)
            if session_id == held.task.session or await held.change(lambda one: decisions.in_session(one, session_id)):
                return None
            if not held.task.conversation:
                await self._attempts.discard(SessionId(session_id))
        except WakegateError as error:
            return failure_of(error)
        return Failure("it was taken by another gateway", Then.RETRY)

    async def _choose(self, task: Task) -> str:
        if task.session and await self._attempts.is_there(task):
            return await self._bind(task, task.session)  # which then stands for it for some time more
        made = await self._attempts.session(task)
        if not task.conversation:
            return made
        used = await self._bind(task, made, instead_of=task.session or task.lost_session)
        if used != made:  # another task of the conversation was first
            await self._attempts.discard(made)
        return used

    async def _bind(self, task: Task, session_id: str, instead_of: str = "") -> str:
        now = self._clock.now()
        until = now + decisions.CONVERSATION_S
        return await self._store.bind(task.conversation, session_id, until, now, instead_of=instead_of)
