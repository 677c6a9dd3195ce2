"""Counters and histograms since the start of the process. Other packages write plain numbers; `metrics` renders them.

Rejected: the counters of prometheus_client. Incrementing one with labels takes a lock and builds a tuple of strings,
which shows on the fast path. A dictionary of ints and a list of buckets do not; a scrape converts them. Labels are
bounded: served runtimes, start kinds, statuses and names from this code; never a session, never a path.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from time import perf_counter

from gateway.core.model import RuntimeKey, StartKind
from gateway.core.usage import Amounts, Rows, UsageKey
from gateway.observability.traffic import Traffic

# Upper bounds of buckets. A request on a warm route takes under a millisecond, a cold start seconds: hence the range.
DURATION_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
)  # fmt: skip
SIZE_BUCKETS_BYTES = tuple(float(1 << shift) for shift in range(10, 33, 2))  # 1 KiB .. 4 GiB
MAX_TENANTS = 100  # with labels of their own
MAX_SESSIONS = 5000  # 1 KiB each
OTHER_TENANTS = "(other)"
LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

_KNOWN_STATUSES = frozenset(int(status) for status in HTTPStatus) | {499}  # 499: the client closed the request (nginx)


class Histogram:
    """Counts of observed values per bucket, and their sum. The last bucket has no upper bound.

    Counts are not cumulative, so that observing a value changes one of them; `metrics` adds them up.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = DURATION_BUCKETS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value into its bucket and into the sum."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def total(self) -> int:
        """The number of observed values."""
        return sum(self.counts)

    def plus(self, other: Histogram) -> Histogram:
        """The sum of two histograms, which must have the same bounds."""
        merged = Histogram(self.bounds)
        merged.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        merged.sum = self.sum + other.sum
        return merged


class RuntimeCounters:
    """Requests of one runtime.

    The fast path writes only `live` (by status) and `quick`. Its responses are whole when they arrive, so first and
    last byte coincide and one observation serves for both durations.
    """

    __slots__ = ("answered", "durations", "live", "quick", "websockets")

    def __init__(self) -> None:
        self.live: defaultdict[int, int] = defaultdict(int)
        self.quick = Histogram()
        self.answered: defaultdict[tuple[str, int], int] = defaultdict(int)  # by (start kind or "none", status)
        self.durations: defaultdict[str, Histogram] = defaultdict(Histogram)  # by start kind or "none"
        self.websockets = 0  # open now

    def answer(self, start: StartKind | None, status: int, seconds: float) -> None:
        """Count a finished request of the slow path. `start` None: it never had a sandbox."""
        kind = start.value if start is not None else "none"
        self.answered[kind, status] += 1
        self.durations[kind].observe(seconds)

    def requests(self) -> dict[tuple[str, str], int]:
        """Requests of both paths by (start kind, status label)."""
        merged: defaultdict[tuple[str, str], int] = defaultdict(int)
        for status, count in self.live.items():
            merged[StartKind.LIVE.value, status_label(status)] += count
        for (kind, status), count in self.answered.items():
            merged[kind, status_label(status)] += count
        return merged

    def times(self) -> dict[str, Histogram]:
        """Durations of both paths by start kind."""
        merged = dict(self.durations)
        merged[StartKind.LIVE.value] = merged.get(StartKind.LIVE.value, Histogram()).plus(self.quick)
        return merged


class Calls:
    """Calls to a store, a keeper or a service, by operation: durations, and failures by class of error."""

    def __init__(self) -> None:
        self.durations: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.errors: defaultdict[tuple[str, str], int] = defaultdict(int)  # by (operation, class of the error)

    def failed(self, operation: str, error: Exception) -> None:
        """Count a failed call by the class of its error."""
        self.errors[operation, type(error).__name__] += 1

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Time the block as one call, whether it succeeds or raises."""
        began = perf_counter()
        try:
            yield
        except Exception as error:
            self.failed(operation, error)
            raise
        finally:
            self.durations[operation].observe(perf_counter() - began)


PriceRow = Callable[[UsageKey, Amounts], Mapping[str, float]]  # of a row: costs by their name in usage/report.py


class TenantTotals:
    """What each of at most MAX_TENANTS tenants has used since the start of the process, by quantity (core/usage.py).

    Where there are prices, `set_prices` has said so, and `costs` has what that cost, in `currency`, by tenant.
    """

    def __init__(self) -> None:
        self.by_tenant: dict[str, defaultdict[str, float]] = {}
        self.costs: dict[str, defaultdict[str, float]] = {}
        self.warm_pool_cost = 0.0
        self.currency: str | None = None  # None: there are no prices
        self._price: PriceRow | None = None

    def set_prices(self, currency: str, price: PriceRow) -> None:
        """Price each row as it is counted. Priced later, from the sums, it would not be what /v1/usage says: prices are
        by runtime and size, which no sum by tenant has.
        """
        self.currency, self._price = currency, price

    def count(self, rows: Rows) -> None:
        """Add rows as they are written to the store. Tenants beyond the bound share the label `(other)`."""
        for key, amounts in rows.items():
            if key.session:
                continue  # it is in the totals too
            prices = {} if self._price is None else self._price(key, amounts)
            if not key.tenant:  # warm pools belong to no tenant
                self.warm_pool_cost += prices.get("warmPoolCost", 0.0)
                continue
            known = key.tenant in self.by_tenant or len(self.by_tenant) < MAX_TENANTS
            totals = self.by_tenant.setdefault(key.tenant if known else OTHER_TENANTS, defaultdict(float))
            for quantity, amount in amounts.items():
                totals[quantity] += amount
            if prices:
                costs = self.costs.setdefault(key.tenant if known else OTHER_TENANTS, defaultdict(float))
                for name, cost in prices.items():
                    costs[name] += cost


class SessionTotals:
    """What each of the last MAX_SESSIONS sessions has used since the start of the process, by quantity.

    Not in /metrics, where each session would be a label of its own.
    """

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, defaultdict[str, float]] = OrderedDict()

    def count(self, rows: Rows) -> None:
        """Add rows as they are written to the store. The session that was not used for longest is forgotten."""
        for key, amounts in rows.items():
            if key.session:
                totals = self._sessions.setdefault(key.session, defaultdict(float))
                self._sessions.move_to_end(key.session)
                for quantity, amount in amounts.items():
                    totals[quantity] += amount
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def of(self, session: str) -> Amounts:
        """Of one session; empty for one that has used nothing here."""
        return self._sessions.get(session, {})


class Counters:
    """All counters of a gateway, by what they count. One instance per process."""

    def __init__(self) -> None:
        self.runtimes: dict[RuntimeKey, RuntimeCounters] = {}
        self.unrouted = RuntimeCounters()  # requests for runtimes that are not served
        self.stages: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)  # by (stage, start kind)
        self.claims: defaultdict[tuple[RuntimeKey, StartKind], int] = defaultdict(int)
        self.errors: defaultdict[str, int] = defaultdict(int)  # error responses from the gateway itself, by code
        self.control: defaultdict[tuple[str, str, str], int] = defaultdict(int)  # by (method, route, status)
        self.store = Calls()
        self.keeper = Calls()  # keeping and restoring workspaces
        self.kubernetes = Calls()  # requests to the API server, by `verb resource`
        self.snapshot_bytes: defaultdict[str, Histogram] = defaultdict(
            lambda: Histogram(SIZE_BUCKETS_BYTES)
        )  # by operation
        self.egress_connections = dict.fromkeys(("closed", "cut", "failed", "refused"), 0)  # that ended, by outcome
        self.egress_bytes = dict.fromkeys(("received", "sent"), 0)
        self.egress_restarts = 0
        self.package_cache = dict.fromkeys(("hit", "miss"), 0)
        self.package_cache_saved = 0  # bytes that were not fetched
        self.package_cache_held = 0  # bytes that it has
        self.loop_lag = Histogram(LAG_BUCKETS_S)
        self.traffic = Traffic()
        self.tenants = TenantTotals()
        self.sessions = SessionTotals()

    def count_usage(self, rows: Rows) -> None:
        """Add what is being written to the store."""
        self.tenants.count(rows)
        self.sessions.count(rows)

    def of(self, runtime: RuntimeKey) -> RuntimeCounters:
        """The counters of a served runtime, created on first use."""
        found = self.runtimes.get(runtime)
        if found is None:
            found = self.runtimes[runtime] = RuntimeCounters()
        return found

    def forget(self, runtime: RuntimeKey) -> None:
        """Show a runtime that is gone no more: an agent has a new one with each of its revisions."""
        self.runtimes.pop(runtime, None)

    def find(self, runtime: RuntimeKey | None) -> RuntimeCounters:
        """Like `of`, but an unknown runtime gets `unrouted`: clients must not be able to create label values."""
        return self.runtimes.get(runtime, self.unrouted) if runtime is not None else self.unrouted

    def claimed(self, runtime: RuntimeKey, start: StartKind, _: float) -> None:
        """Count a claim. The last argument is the time it took, which a ClaimListener also gets."""
        self.claims[runtime, start] += 1

    def stage(self, name: str, start: StartKind, seconds: float) -> None:
        """Observe the duration of one stage of a request, such as `queue` or `restore`."""
        self.stages[name, start.value].observe(seconds)


def status_label(status: int) -> str:
    """A status as a label: registered ones as they are, others as `4xx`, so that sandboxes cannot create labels."""
    return str(status) if status in _KNOWN_STATUSES else f"{status // 100}xx"
