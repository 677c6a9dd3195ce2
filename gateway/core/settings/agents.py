"""Invocations of agents that are kept and run later."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Tasks:
    """How many tasks a gateway keeps and runs, and for how long."""

    task_lease: float = setting(
        20.0, "time after which a task whose gateway has died is begun again by another one", kind="duration", low=1
    )
    task_retention: float = setting(
        86400.0, "how long a task that is over is kept, with its result; dead letters 7 days at least",
        kind="duration", low=1,
    )  # fmt: skip
    task_queue: int = setting(
        1000, "tasks of one tenant and agent that may wait or run; more are refused with 429", kind="int", low=1
    )
    task_bytes: int = setting(
        256 << 20, "bytes that the tasks of one tenant may hold in the store, with their results", kind="size", low=4096
    )
    tasks_at_once: int = setting(100, "tasks that one gateway runs at a time", kind="int", low=1)
    webhook_allow: str = setting(
        "",
        "networks of this machine and private ones, comma-separated, to which webhooks of tasks may be sent besides the"
        " internet (default: none)",
        kind="text",
        metavar="NETWORKS",
    )
