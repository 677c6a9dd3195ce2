"""Tasks that tests begin with."""

from __future__ import annotations

from typing import Any

from gateway.tasks import decisions
from gateway.tasks.model import Answer, Task

T0 = 1_700_000_000.0
CALLER = {"role": "member", "tenant": "acme", "subject": "k", "user": "", "key_id": "", "runtimes": [], "session": ""}
DAY_S = 86400.0


def task(**changes: Any) -> Task:
    """One that waits."""
    fields: dict[str, Any] = {
        "id": "t", "namespace": "acme", "name": "greeter", "caller": CALLER, "path": "/run", "headers": (("a", "b"),),
        "created_at": T0, "due_at": T0, "deadline": T0 + 3600, "timeout": 60.0, "max_attempts": 3, "keys": ("agent",),
    }  # fmt: skip
    return Task(**{**fields, **changes})


def run(one: Task, at: float) -> Task:
    return decisions.begun(one, "me", at, 20.0)


def ended(one: Task, status: int, at: float) -> Task:
    return decisions.answered(one, Answer(status, "text/plain", 5), at, DAY_S, 1.0)
