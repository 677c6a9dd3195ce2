"""What became of tasks, for /metrics."""

from __future__ import annotations

from collections import defaultdict

from gateway.tasks.model import Task


class TaskCounts:
    """Tasks that ended here, by agent and state; tries again are not an end. Webhooks by outcome."""

    def __init__(self) -> None:
        self.tasks: defaultdict[tuple[str, str, str], int] = defaultdict(int)  # by (namespace, name, state)
        self.webhooks = dict.fromkeys(("delivered", "refused", "failed"), 0)

    def ended(self, task: Task) -> None:
        """Count a task after a try: what it is now, `queued` for one that is tried again."""
        self.tasks[task.namespace, task.name, task.state.value] += 1
