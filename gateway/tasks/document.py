"""A task as clients and webhooks see it."""

from __future__ import annotations

from typing import Any

from gateway.tasks.model import State, Task


def task_document(task: Task, *, with_content: bool) -> dict[str, Any]:
    """What is said of a task; `with_content`: also what its agent has said so far."""
    answer, webhook = task.answer, task.webhook
    document: dict[str, Any] = {
        "id": task.id,
        "namespace": task.namespace,
        "agent": task.name,
        "state": task.state,
        "path": task.path,
        "session": task.session or None,
        "createdAt": task.created_at,
        "createdBy": task.caller["subject"],
        "startedAt": task.started_at or None,
        "finishedAt": task.finished_at or None,
        "attempts": task.attempts,
        "maxAttempts": task.max_attempts,
        "nextAttemptAt": task.due_at if task.state is State.QUEUED else None,
        "cancelRequested": task.cancel,
        "error": task.error or None,
        "schedule": task.schedule or None,
        "progress": {"bytes": task.progress.bytes, "events": task.progress.events},
        "result": None,
        "webhook": None,
    }
    if task.progress.last and with_content:
        document["progress"]["last"] = task.progress.last
    if answer is not None:
        document["result"] = {"status": answer.status, "contentType": answer.content_type, "bytes": answer.size}
    if webhook is not None:
        document["webhook"] = {
            "url": webhook.url, "state": webhook.state, "attempts": webhook.attempts, "error": webhook.error or None,
        }  # fmt: skip
    return document
