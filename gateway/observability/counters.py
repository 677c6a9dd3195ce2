"""What has been counted since the start: the other packages write plain numbers here, `/metrics` reads them
(gateway/observability/metrics.py).

Why not the client library's own counters: incrementing one with labels takes a lock and builds a tuple of strings,
which is felt on the fast path. A dictionary of ints and a list of buckets are not, and are turned into the exposition
format when somebody asks. Labels are bounded: runtimes that are served, start kinds, statuses, names of ours; never a
session, never a path.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from time import perf_counter

from gateway.core.model import RuntimeKey, StartKind

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
BYTES = tuple(float(1 << shift) for shift in range(10, 33, 2))  # 1 KiB .. 4 GiB
LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

_KNOWN_STATUSES = frozenset(int(status) for status in HTTPStatus) | {499}


class Histogram:
    """Counts of values up to each bound, and beyond the last; and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value into its bucket and into the sum."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def total(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def plus(self, other: Histogram) -> Histogram:
        """Both together. They must have the same bounds."""
        merged = Histogram(self.bounds)
        merged.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        merged.sum = self.sum + other.sum
        return merged


class RuntimeCounters:
    """Requests of one runtime.

    The fast path writes `live` (by status) and `quick` only: there the first byte and the last come together, so one
    observation is both of them.
    """

    __slots__ = ("answered", "durations", "live", "quick", "websockets")

    def __init__(self) -> None:
        self.live: defaultdict[int, int] = defaultdict(int)
        self.quick = Histogram()
        self.answered: defaultdict[tuple[str, int], int] = defaultdict(int)  # by (start kind or "none", status)
        self.durations: defaultdict[str, Histogram] = defaultdict(Histogram)  # by start kind or "none"
        self.websockets = 0  # open now

    def answer(self, start: StartKind | None, status: int, seconds: float) -> None:
        """A request that did not take the fast path is over. `start` None: it never had a sandbox."""
        kind = start.value if start is not None else "none"
        self.answered[kind, status] += 1
        self.durations[kind].observe(seconds)

    def requests(self) -> dict[tuple[str, str], int]:
        """Requests by (start kind, status), both lanes together; statuses that have no name count by their hundred."""
        merged: defaultdict[tuple[str, str], int] = defaultdict(int)
        for status, count in self.live.items():
            merged[StartKind.LIVE.value, status_label(status)] += count
        for (kind, status), count in self.answered.items():
            merged[kind, status_label(status)] += count
        return merged

    def times(self) -> dict[str, Histogram]:
        """Durations by start kind, both lanes together."""
        merged = dict(self.durations)
        merged[StartKind.LIVE.value] = merged.get(StartKind.LIVE.value, Histogram()).plus(self.quick)
        return merged


class Calls:
    """Calls to a part of ours or to a service, by operation: how long they took, and which failed."""

    def __init__(self) -> None:
        self.durations: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.errors: defaultdict[tuple[str, str], int] = defaultdict(int)  # by (operation, class of the error)

    def failed(self, operation: str, error: Exception) -> None:
        """Count a failed call by the class of its error."""
        self.errors[operation, type(error).__name__] += 1

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Count the block as one call, whatever comes of it."""
        began = perf_counter()
        try:
            yield
        except Exception as error:
            self.failed(operation, error)
            raise
        finally:
            self.durations[operation].observe(perf_counter() - began)


class Counters:
    """All counters of one gateway."""

    def __init__(self) -> None:
        self.runtimes: dict[RuntimeKey, RuntimeCounters] = {}
        self.unrouted = RuntimeCounters()  # requests that named no runtime we serve
        self.stages: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)  # by (stage, start kind)
        self.claims: defaultdict[tuple[RuntimeKey, StartKind], int] = defaultdict(int)
        self.errors: defaultdict[str, int] = defaultdict(int)  # answers that were errors of ours, by code
        self.control: defaultdict[tuple[str, str, str], int] = defaultdict(int)  # by (method, route, status)
        self.store = Calls()
        self.keeper = Calls()  # keeping and giving back workspaces: hibernation and waking
        self.kubernetes = Calls()  # requests to the API server, by `verb resource`
        self.snapshot_bytes: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(BYTES))  # by operation
        self.loop_lag = Histogram(LAG)

    def of(self, runtime: RuntimeKey) -> RuntimeCounters:
        """A served runtime's counters, made if absent."""
        found = self.runtimes.get(runtime)
        if found is None:
            found = self.runtimes[runtime] = RuntimeCounters()
        return found

    def find(self, runtime: RuntimeKey | None) -> RuntimeCounters:
        """Like `of`, but a name that a client made up gets no counters of its own."""
        return self.runtimes.get(runtime, self.unrouted) if runtime is not None else self.unrouted

    def claimed(self, runtime: RuntimeKey, start: StartKind, _: float) -> None:
        """A session was given a sandbox (a `stats.ClaimListener`)."""
        self.claims[runtime, start] += 1

    def stage(self, name: str, start: StartKind, seconds: float) -> None:
        """A stage of a request took that long."""
        self.stages[name, start.value].observe(seconds)


def status_label(status: int) -> str:
    """A status as a label: those with a name as they are, others as `4xx`, so that a sandbox cannot make up labels."""
    return str(status) if status in _KNOWN_STATUSES else f"{status // 100}xx"
