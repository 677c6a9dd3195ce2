"""The parts of tasks, made from those of a gateway."""

from __future__ import annotations

import random
from ipaddress import ip_network

from gateway.api.task_parts import TaskLimits, TaskParts
from gateway.core.clock import Clock
from gateway.core.errors import SettingsError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.settings import Settings
from gateway.core.tasks import TaskStore
from gateway.egress.addresses import Network
from gateway.egress.resolver import SystemResolver
from gateway.observability.counters import Counters
from gateway.routing.activator import Activator
from gateway.routing.sandbox_client import Caller
from gateway.sessions.build import Sessions
from gateway.tasks.attempt import Attempts
from gateway.tasks.counts import TaskCounts
from gateway.tasks.runner import RunnerSettings, TaskRunner
from gateway.tasks.schedules import FiringLimits, Scheduler
from gateway.tasks.webhooks import Webhooks

MAX_ANSWER_BYTES = 4 << 20  # that are kept of what an agent answers to a task


def make_tasks(
    settings: Settings,
    store: TaskStore,
    catalog: RuntimeCatalog,
    sessions: Sessions,
    activator: Activator,
    counters: Counters,
    clock: Clock,
    counts: TaskCounts,
) -> TaskParts:
    """What runs tasks, and what its API needs."""
    webhooks = Webhooks(
        SystemResolver(),
        clock,
        counts,
        random.random,
        refused=networks(settings.egress_refuse, "--egress-refuse"),
        allowed=networks(settings.webhook_allow, "--webhook-allow"),
    )
    attempts = Attempts(sessions.lifecycle, Caller(activator, clock), counters, MAX_ANSWER_BYTES)
    runner = TaskRunner(
        store,
        catalog,
        attempts,
        sessions.hibernator,
        clock,
        RunnerSettings(settings.task_lease, settings.task_retention, settings.tasks_at_once),
        counts,
        webhooks.deliver,
        is_leaving=lambda: activator.leaving,
    )
    limits = TaskLimits(max_open=settings.task_queue, max_bytes=settings.task_bytes, retention=settings.task_retention)
    firing = FiringLimits(limits.max_open, limits.max_bytes, limits.lifetime)
    scheduler = Scheduler(store, catalog, clock, firing, runner.poke)
    return TaskParts(store, runner, limits, webhooks, counts, scheduler)


def networks(text: str, setting: str) -> tuple[Network, ...]:
    """Networks as a setting names them. Raises SettingsError."""
    try:
        return tuple(ip_network(each.strip()) for each in text.split(",") if each.strip())
    except ValueError as error:
        raise SettingsError([f"{setting}: {error}"]) from None
