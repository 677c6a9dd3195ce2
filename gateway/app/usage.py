"""What meters the usage of tenants, made from the parts of a gateway."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator

from gateway.core.clock import Clock
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider, SessionStore
from gateway.core.settings import Settings
from gateway.core.usage import Retention
from gateway.observability.counters import Counters
from gateway.sessions.activity import Activity
from gateway.usage.meter import Meter, Size
from gateway.usage.prices import Prices
from gateway.usage.recorder import SAMPLE_INTERVAL_S, Moved, Place, Requests, UsageRecorder
from gateway.usage.report import costs


def make_usage(
    settings: Settings,
    store: SessionStore,
    provider: SandboxProvider,
    catalog: RuntimeCatalog,
    clock: Clock,
    *,
    counters: Counters,
    activity: Activity,
    prices: Prices | None,
    take_moved: Callable[[], Iterable[Moved]],
    holder: str,
    shared: bool,
    me: str,
) -> UsageRecorder:
    """The recorder of a gateway named `holder`; `shared` and `me` as in Gateway."""
    # After `takeover_after` without a heartbeat others may have taken sessions over, and count their time.
    # Half of it leaves room for a tick that is late.
    longest_gap = settings.takeover_after / 2 if me else float("inf")
    if prices is not None:
        counters.tenants.set_prices(
            prices.currency, lambda key, amounts: costs(prices, key, Size.parse(key.size), amounts)
        )
    return UsageRecorder(
        Meter(longest_gap=longest_gap),
        store,
        provider,
        catalog,
        clock,
        # A name for each run of the process: batches are numbered from 1, and would repeat after a restart.
        Place(uuid.uuid4().hex, holder, me, shared),
        interval=settings.usage_interval,
        retention=Retention(settings.usage_session_retention, settings.usage_retention),
        take_requests=lambda: _requests(counters),
        last_used=activity.latest,
        on_taken=counters.count_usage,
        take_moved=take_moved,
    )


def sample_interval(settings: Settings) -> float:
    """Seconds between two looks at what sandboxes use: several within the time after which others take over."""
    return min(SAMPLE_INTERVAL_S, settings.takeover_after / 4)


def _requests(counters: Counters) -> Iterator[Requests]:
    for entry, requests, egress_bytes in counters.traffic.take():
        yield Requests(entry.session_id, entry.tenant, entry.runtime, requests, egress_bytes)
