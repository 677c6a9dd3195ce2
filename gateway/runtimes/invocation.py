"""Reads `spec.wakegate.invocation` of an AgentRuntime: how it is invoked, and what its tasks may do at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.core.model import Invocations
from gateway.runtimes.fields import Reader
from gateway.runtimes.schedules import read_schedules

MAX_TIMEOUT_S = 6 * 3600.0  # as a request may ask for (api/task_fields.py)
MAX_STEPS = 8
_PREFIX = "spec.wakegate.invocation."
_NAME = re.compile(r"[^.\s\[\]$*]{1,64}")
SESSION = f"up to {MAX_STEPS} names with dots between them, such as session_id or metadata.conversation"


def read_invocations(extra: Mapping[str, Any], reader: Reader) -> Invocations:
    """How the agent is invoked; `extra` is spec.wakegate."""
    given, defaults = extra.get("invocation", {}), Invocations()
    timeout = reader.duration(given, "timeout", _PREFIX, defaults.timeout)
    if timeout > MAX_TIMEOUT_S:
        reader.problem(f"{_PREFIX}timeout", "expected at most 6h", given["timeout"])
    return Invocations(
        session=_path(given.get("session", ""), reader),
        concurrency=int(given.get("concurrency", defaults.concurrency)),
        per_session=int(given.get("perSession", defaults.per_session)),
        requests=int(given.get("requests", 0)),
        requests_per_session=int(given.get("requestsPerSession", 0)),
        attempts=int(given.get("attempts", defaults.attempts)),
        timeout=timeout,
        schedules=read_schedules(extra.get("schedules", ()), reader),
    )


def _path(text: str, reader: Reader) -> tuple[str, ...]:
    """The names of a path such as `metadata.conversation`; `$.` before it, as JSONPath has it, says the same."""
    if not text:
        return ()
    names = tuple(text.removeprefix("$.").split(".", MAX_STEPS))
    if len(names) > MAX_STEPS or not all(_NAME.fullmatch(name) for name in names):
        reader.problem(f"{_PREFIX}session", f"expected {SESSION}", text)
        return ()
    return names
