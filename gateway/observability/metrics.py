"""`/metrics` in the Prometheus exposition formats.

No state is kept here. A scrape renders gateway/observability/counters.py and reads gauges from the live parts. Metric
names are a contract: a test compares them with the dashboard and the alerts in manifests/monitoring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sized
from time import perf_counter

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from gateway import __version__
from gateway.core.errors import RuntimeNotFoundError
from gateway.core.interfaces import MachineBookings, RuntimeCatalog, SandboxProvider
from gateway.core.model import PoolStatus, RuntimeKey, StartKind
from gateway.core.usage import Quantity
from gateway.observability.counters import Counters, Histogram
from gateway.observability.metric_families import (
    Families,
    add_histogram,
    call_families,
    counts,
    gauges,
    histograms,
    resources,
    task_families,
)
from gateway.observability.metric_sources import AuditTrail, PoolForecasts, RouteTable, TaskLoad, TokenCount

LAG_INTERVAL_S = 0.25  # between two measurements of the event loop's lag


class Metrics:
    """`render` answers a scrape; `watch_loop` measures the event loop's lag in the background."""

    def __init__(
        self,
        counters: Counters,
        catalog: RuntimeCatalog,
        provider: SandboxProvider,
        bound: Sized,
        routes: RouteTable,
        forecasts: PoolForecasts,
        tokens: TokenCount,
        tasks: TaskLoad,
        *,
        engine: str,
        audit: AuditTrail | None = None,
    ) -> None:
        """`bound`: a collection of the sandboxes that this gateway has bound to sessions."""
        self._audit = audit
        self._counters = counters
        self._catalog, self._provider, self._bound = catalog, provider, bound
        self._routes, self._forecasts, self._tokens = routes, forecasts, tokens
        self._tasks = tasks
        self._engine = engine
        self._process = ProcessCollector(registry=None)  # not registered globally: `render` collects it

    async def render(self, accept: str) -> tuple[bytes, str]:
        """(body, content type), in the text format or in OpenMetrics, as the Accept header `accept` asks."""
        pools: dict[RuntimeKey, PoolStatus] = {}
        for runtime in self._catalog.all():
            self._counters.of(runtime.key)  # a runtime without requests is exposed with zeros
            try:
                pools[runtime.key] = await self._provider.status(runtime.key)
            except RuntimeNotFoundError:
                continue  # it was removed from the catalog since
        # All values are read here, between two awaits, so that a scrape shows one moment.
        encode, content_type = choose_encoder(accept)
        return encode(Families([*self._now(pools), *self._counted(), *self._process.collect()])), content_type

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        while True:
            due = perf_counter() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            # uvloop's timers may fire up to a millisecond early.
            self._counters.loop_lag.observe(max(0.0, perf_counter() - due))

    def _now(self, pools: Mapping[RuntimeKey, PoolStatus]) -> Iterator[Metric]:
        """Gauges, read from the live parts."""
        info = GaugeMetricFamily("wakegate_build_info", "Always 1; says what runs", labels=["version", "engine"])
        info.add_metric([__version__, self._engine], 1)
        yield info
        # From the routes and not counted up and down: what is counted so drifts with the first exit that forgets to.
        in_flight: dict[str, float] = {str(key): 0.0 for key in self._counters.runtimes}
        routes = self._routes.routes
        for route in routes.values():
            if route.in_flight:
                in_flight[str(route.runtime)] += route.in_flight
        yield gauges("wakegate_requests_in_flight", "Requests and WebSockets at sandboxes", in_flight)
        sockets = {str(key): each.websockets for key, each in self._counters.runtimes.items()}
        yield gauges("wakegate_websockets_open", "Open WebSockets", sockets)
        yield GaugeMetricFamily("wakegate_requests_held", "Requests that wait for a sandbox", self._routes.held)
        yield GaugeMetricFamily("wakegate_routes", "Live sessions with a route in memory", len(routes))
        yield GaugeMetricFamily("wakegate_sandboxes_bound", "Sandboxes that this gateway has bound", len(self._bound))
        yield GaugeMetricFamily("wakegate_draining", "1 while this gateway shuts down", int(self._routes.leaving))
        machine = self._provider if isinstance(self._provider, MachineBookings) else None
        yield resources(
            "wakegate_booked", "What sandboxes request of this machine", machine.booked() if machine else {}
        )
        yield resources("wakegate_bookable", "What they may request in all", machine.bookable() if machine else {})
        yield from self._pools(pools)

    def _pools(self, pools: Mapping[RuntimeKey, PoolStatus]) -> Iterator[Metric]:
        shown = {str(key): status for key, status in pools.items()}
        for name, text in (
            ("target", "Warm sandboxes wanted"),
            ("ready", "Warm sandboxes ready to be claimed"),
            ("starting", "Sandboxes being started"),
            ("claimed", "Sandboxes bound to sessions"),
            ("failures", "Starts that failed since the last one that did not"),
        ):
            yield gauges(f"wakegate_pool_{name}", text, {key: getattr(status, name) for key, status in shown.items()})
        lead = GaugeMetricFamily(
            "wakegate_pool_lead_time_seconds", "From ordering a sandbox to its being ready",
            labels=["runtime", "quantile"],
        )  # fmt: skip
        for key, status in shown.items():
            for quantile, seconds in (("0.5", status.lead_time_p50), ("0.9", status.lead_time_p90)):
                if seconds is not None:
                    lead.add_metric([key, quantile], seconds)
        yield lead
        forecasts = {
            str(key): pool.forecast for key, pool in self._forecasts.pools.items() if pool.forecast is not None
        }
        yield gauges(
            "wakegate_pool_forecast_level", "Warm sandboxes that the forecast asks for, before limits and guards",
            {key: forecast.level for key, forecast in forecasts.items()},
        )  # fmt: skip
        yield gauges(
            "wakegate_pool_forecast_quantile", "Share of horizons that the level is meant to cover",
            {key: forecast.quantile for key, forecast in forecasts.items()},
        )  # fmt: skip
        yield GaugeMetricFamily("wakegate_autoscaler_leads", "1 on the gateway that moves pools", self._forecasts.leads)

    def _counted(self) -> Iterator[Metric]:
        """Counters and histograms since the process started."""
        counters = self._counters
        named = [*((str(key), each) for key, each in counters.runtimes.items()), ("", counters.unrouted)]
        requests = CounterMetricFamily(
            "wakegate_requests", "Answered requests of the data path", labels=["runtime", "start", "status"]
        )
        durations = histograms("wakegate_request_duration_seconds", "From head to last byte", ["runtime", "start"])
        stages = dict(counters.stages)
        for key, each in named:
            for (start, status), count in each.requests().items():
                requests.add_metric([key, start, status], count)
            for start, times in each.times().items():
                # 5 starts of 14 buckets each; the four that a runtime never had would be most of a scrape.
                if times.total or start == StartKind.LIVE:
                    add_histogram(durations, [key, start], times)
            # The fast path counts only this one stage, and in one place, because it runs for every request.
            first = ("first_byte", StartKind.LIVE.value)
            stages[first] = stages.get(first, Histogram()).plus(each.quick)
        yield requests
        yield durations
        family = histograms("wakegate_stage_duration_seconds", "Stages of a request", ["stage", "start"])
        for (stage, start), histogram in sorted(stages.items()):
            add_histogram(family, [stage, start], histogram)
        yield family
        yield counts("wakegate_errors", "Answers that were errors of the gateway", ["code"], counters.errors)
        rejected = counters.errors["OVERLOADED"] + sum(n for (*_, code), n in counters.control.items() if code == "429")
        yield CounterMetricFamily("wakegate_queue_rejections", "Requests refused because a queue was full", rejected)
        yield counts(
            "wakegate_control_requests", "Answered requests of the control API", ["method", "route", "status"],
            counters.control,
        )  # fmt: skip
        yield from self._claims()
        yield from self._tenants()
        if self._audit is not None:
            yield from _audit_families(self._audit)
        yield CounterMetricFamily("wakegate_token_signings", "Tokens signed for sandboxes", self._tokens.signed)
        yield from call_families("store", "Calls to the session store", counters.store)
        yield from call_families("keeper", "Keeping workspaces (keep) and giving them back (restore)", counters.keeper)
        yield from call_families("kubernetes_api", "Requests to the Kubernetes API", counters.kubernetes)
        sizes = histograms("wakegate_snapshot_bytes", "Size of snapshots as stored", ["operation"])
        for operation, histogram in counters.snapshot_bytes.items():
            add_histogram(sizes, [operation], histogram)
        yield sizes
        yield from self._egress()
        yield from task_families(self._tasks)
        lag = histograms("wakegate_event_loop_lag_seconds", "How late the event loop was", [])
        add_histogram(lag, [], counters.loop_lag)
        yield lag

    def _egress(self) -> Iterator[Metric]:
        """What sandboxes reached through the egress proxy."""
        counters = self._counters
        text = "Connections of sandboxes through the egress proxy"
        yield counts("wakegate_egress_connections", text, ["outcome"], counters.egress_connections)
        yield counts("wakegate_egress_bytes", "Bytes through the egress proxy", ["direction"], counters.egress_bytes)
        text = "Starts of the egress service after it had ended"
        yield CounterMetricFamily("wakegate_egress_restarts", text, counters.egress_restarts)
        text = "Downloads of packages that were in the cache, or not"
        yield counts("wakegate_package_cache", text, ["outcome"], counters.package_cache)
        text = "Bytes that came from the package cache"
        yield CounterMetricFamily("wakegate_package_cache_saved_bytes", text, counters.package_cache_saved)
        yield GaugeMetricFamily("wakegate_package_cache_bytes", "Its size", counters.package_cache_held)

    def _tenants(self) -> Iterator[Metric]:
        """What tenants have used through this gateway; /v1/usage has it by runtime and session."""
        for quantity, name, text in (
            (Quantity.SANDBOX_SECONDS, "sandbox_seconds", "Time with a sandbox"),
            (Quantity.HIBERNATED_SECONDS, "hibernated_seconds", "Time of hibernated sessions, without a sandbox"),
            (Quantity.CPU_SECONDS, "cpu_seconds", "CPU time that sandboxes used"),
            (Quantity.MEMORY_BYTE_SECONDS, "memory_byte_seconds", "Memory that sandboxes used, times seconds"),
            (Quantity.EGRESS_BYTES, "egress_bytes", "Bytes of answers to clients"),
            (Quantity.REQUESTS, "requests", "Requests to sandboxes"),
        ):
            family = CounterMetricFamily(f"wakegate_tenant_{name}", text, labels=["tenant"])
            for tenant, totals in self._counters.tenants.by_tenant.items():
                family.add_metric([tenant], totals.get(quantity, 0.0))
            yield family
        yield from self._costs()

    def _costs(self) -> Iterator[Metric]:
        """What that cost, where there are prices. No metric has what was saved: where keeping a workspace costs more
        than its sandbox the difference falls, which a counter must not.
        """
        totals = self._counters.tenants
        if totals.currency is None:
            return
        labels = ["tenant", "currency"]
        for name, cost, text in (
            ("cost", "cost", "Cost of what tenants used"),
            (
                "cost_without_hibernation",
                "costWithoutHibernation",
                "What it had cost, had hibernated sessions kept their sandboxes",
            ),
        ):
            family = CounterMetricFamily(f"wakegate_tenant_{name}", text, labels=labels)
            for tenant, costs in totals.costs.items():
                family.add_metric([tenant, totals.currency], costs[cost])
            yield family
        family = CounterMetricFamily("wakegate_warm_pools_cost", "Cost of sandboxes in warm pools", labels=["currency"])
        family.add_metric([totals.currency], totals.warm_pool_cost)
        yield family

    def _claims(self) -> Iterator[Metric]:
        """Claims by start kind. A cold claim is a pool miss."""
        claims = CounterMetricFamily("wakegate_claims", "Sandboxes bound to sessions", labels=["runtime", "start"])
        misses = CounterMetricFamily("wakegate_pool_misses", "Claims that found the pool empty", labels=["runtime"])
        for key in self._counters.runtimes:
            for start in (StartKind.WARM, StartKind.COLD):
                claims.add_metric([str(key), start.value], self._counters.claims[key, start])
            misses.add_metric([str(key)], self._counters.claims[key, StartKind.COLD])
        yield claims
        yield misses


def _audit_families(audit: AuditTrail) -> Iterator[Metric]:
    yield CounterMetricFamily("wakegate_audit_lines", "Lines of the audit trail that were written", audit.written)
    yield CounterMetricFamily("wakegate_audit_lost", "Events that found the queue of the audit trail full", audit.lost)
    yield CounterMetricFamily(
        "wakegate_audit_failures", "Attempts to write the audit trail that failed", audit.failures
    )
    yield GaugeMetricFamily("wakegate_audit_queued", "Events that wait to be written to the audit trail", audit.queued)
    yield GaugeMetricFamily("wakegate_audit_writable", "1 while the audit trail is written", int(not audit.problem))
