"""What becomes of tasks, for /metrics: what this gateway has seen, and what waits and runs at all gateways."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.core.model import Kind, RuntimeKey
from gateway.core.tasks import OpenTasks, TaskStore
from gateway.tasks.model import State, Task, agent_key

# Counters are never forgotten, and agents are created by strangers: those after the first thousand are one.
MAX_AGENTS = 1000
OTHER = "(other)"


@dataclass(frozen=True, slots=True)
class Waiting:
    """The tasks of one agent that are not over, of all tenants. `oldest`: seconds since the oldest was made.

    `oldest_queued`: the same of those that do not run; 0: all do.
    """

    queued: int
    running: int
    oldest: float
    oldest_queued: float = 0.0


class TaskCounts:
    """What this gateway's tasks add to /metrics.

    `tries`: by agent; `tasks`: those that ended here, by agent and state; `webhooks`: by outcome.

    `waiting`: by agent, as the store had it when `look` was last called; the same at all gateways that share it.
    """

    def __init__(self) -> None:
        self.tries: defaultdict[str, int] = defaultdict(int)
        self.tasks: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.webhooks = dict.fromkeys(("delivered", "refused", "failed"), 0)
        self.waiting: Mapping[str, Waiting] = {}

    def begun(self, task: Task) -> None:
        """Count a try that a gateway has begun."""
        label = self._label(task)
        self.tries[label] += 1
        # Shown from the first try on: to Prometheus a counter that begins at 1 has not grown.
        self.tasks[label, State.DEAD.value] += 0

    def ended(self, task: Task) -> None:
        """Count a task after a try, if it is over; one that is tried again is not."""
        if task.state.is_over:
            self.tasks[self._label(task), task.state.value] += 1

    async def look(self, store: TaskStore, now: float) -> None:
        """Ask the store what waits and runs. Raises StoreUnavailableError."""
        agents: dict[RuntimeKey, list[OpenTasks]] = {}
        for queue, found in (await store.open()).items():
            _, namespace, name = queue.split("/")
            agents.setdefault(RuntimeKey(namespace, name, Kind.AGENT_RUNTIME), []).append(found)
        waiting = {}
        for key in sorted(agents, key=str)[:MAX_AGENTS]:
            count = sum(each.count for each in agents[key])
            running = min(count, await store.held(agent_key(key), now))
            oldest = max(0.0, now - min(each.oldest for each in agents[key]))
            queued = max((now - each.waits_since for each in agents[key] if each.waits_since is not None), default=0.0)
            waiting[str(key)] = Waiting(count - running, running, oldest, max(0.0, queued))
        self.waiting = waiting

    def _label(self, task: Task) -> str:
        label = str(task.key)
        return label if label in self.tries or len(self.tries) < MAX_AGENTS else OTHER
