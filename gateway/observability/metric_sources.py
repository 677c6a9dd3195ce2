"""The live parts that gauges are read from, as far as a scrape looks at them: observability knows none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gateway.core.model import RuntimeKey, SessionId


class RouteLoad(Protocol):
    """The load of one route (routing.route.Route)."""

    @property
    def runtime(self) -> RuntimeKey:
        """The runtime of the route's session."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests and WebSockets that have not ended."""
        ...


class RouteTable(Protocol):
    """Routes of live sessions, and requests waiting for one (routing.activator.Activator)."""

    @property
    def routes(self) -> Mapping[SessionId, RouteLoad]:
        """Live routes by session id."""
        ...

    @property
    def held(self) -> int:
        """Requests that wait for a sandbox."""
        ...

    @property
    def leaving(self) -> bool:
        """Whether this gateway has announced its shutdown."""
        ...


class ForecastLevel(Protocol):
    """A forecast of demand for warm sandboxes (autoscaler.forecast)."""

    @property
    def level(self) -> float:
        """The number of warm sandboxes, before limits and guards."""
        ...

    @property
    def quantile(self) -> float:
        """The share of horizons that the level covers, 0 to 1."""
        ...


class ForecastPool(Protocol):
    """A runtime's warm pool as the autoscaler sees it."""

    @property
    def forecast(self) -> ForecastLevel | None:
        """The latest forecast; None before the first."""
        ...


class PoolForecasts(Protocol):
    """The state of the autoscaler (autoscaler.runner.Autoscaler)."""

    @property
    def pools(self) -> Mapping[RuntimeKey, ForecastPool]:
        """Forecasts and sizes of warm pools by runtime."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this gateway holds the lease to resize pools."""
        ...


class TokenCount(Protocol):
    """The number of signed tokens (sandbox.tokens.TokenIssuer)."""

    @property
    def signed(self) -> int:
        """Tokens signed since the process started."""
        ...


class AuditTrail(Protocol):
    """The audit trail (audit.log.AuditLog)."""

    written: int  # lines
    lost: int  # events that found the queue full
    failures: int  # attempts to write
    problem: str  # empty while lines are written

    @property
    def queued(self) -> int:
        """Events that wait to be written."""
        ...


class WaitingTasks(Protocol):
    """The tasks of one agent that are not over (tasks.counts.Waiting)."""

    @property
    def queued(self) -> int:
        """How many tasks wait at all gateways."""
        ...

    @property
    def running(self) -> int:
        """How many tasks this gateway runs."""
        ...

    @property
    def oldest(self) -> float:
        """Seconds since the oldest was made."""
        ...

    @property
    def oldest_queued(self) -> float:
        """The same of those that wait; 0: none does."""
        ...


class TaskLoad(Protocol):
    """Background invocations of agents (tasks.counts.TaskCounts)."""

    @property
    def waiting(self) -> Mapping[str, WaitingTasks]:
        """What is not over, by agent."""
        ...

    @property
    def tries(self) -> Mapping[str, int]:
        """Tries that this gateway began, by agent."""
        ...

    @property
    def tasks(self) -> Mapping[tuple[str, str], int]:
        """Tasks that ended at this gateway, by agent and state."""
        ...

    @property
    def webhooks(self) -> Mapping[str, int]:
        """Sent webhooks, by outcome."""
        ...
