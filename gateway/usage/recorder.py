"""Feeds the meter from the parts of a gateway, and writes what it has added up to the store once per interval.

Who counts a sandbox: the gateway that has it bound; where gateways share an engine, the one that holds the lease
`usage`, which also counts what belongs to no gateway: shared warm pools, and workspaces that all reach. Requests count
where they pass through. So whatever is killed or taken over, each second counts once, and at most one interval is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.clock import Clock
from gateway.core.errors import RuntimeNotFoundError
from gateway.core.interfaces import EngineMeter, RuntimeCatalog, SandboxProvider, SessionStore
from gateway.core.model import (
    Resources,
    Runtime,
    RuntimeKey,
    SandboxId,
    Session,
    SessionId,
    SessionState,
    SnapshotRef,
    StartKind,
    is_snapshot,
)
from gateway.core.units import parse_quantity
from gateway.core.usage import ORDINARY_RETENTION, Quantity, Retention, Rows
from gateway.usage.meter import Account, Meter, Moment, Size

SAMPLE_INTERVAL_S = 2.0  # between two ticks of the meter
STORED_INTERVAL_S = 60.0  # between two looks at all records, which are read a page at a time
LEASE = "usage"
# Of sessions of which a request counts on a row of their size; those of others count on that of their runtime's.
_MAX_SIZES = 10_000
_STARTS = {
    StartKind.WARM: Quantity.STARTS_WARM,
    StartKind.COLD: Quantity.STARTS_COLD,
    StartKind.WAKE: Quantity.STARTS_WAKE,
    StartKind.WAKE_COLD: Quantity.STARTS_WAKE_COLD,
}


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests to one session, and bytes of their answers, since they were last taken."""

    session_id: SessionId
    tenant: str
    runtime: RuntimeKey
    requests: int
    egress_bytes: int


@dataclass(slots=True)
class Moved:
    """Bytes that code of one session sent and received through the egress proxy, since they were last taken."""

    session_id: SessionId
    tenant: str
    runtime: RuntimeKey
    sent: int = 0
    received: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Which gateway this is. `writer`: unique to this run of it. `me`: its id, where others do not reach its sandboxes.

    `shared`: others use the same store. `holder`: its name in leases.
    """

    writer: str
    holder: str
    me: str = ""
    shared: bool = False

    @property
    def shares_engine(self) -> bool:
        """Whether other gateways reach the same sandboxes."""
        return self.shared and not self.me


class UsageRecorder:
    """`bound` and `removed` follow the bindings; `tick` and `flush` are called by loops."""

    def __init__(
        self,
        meter: Meter,
        store: SessionStore,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        clock: Clock,
        place: Place,
        *,
        interval: float,
        retention: Retention = ORDINARY_RETENTION,
        take_requests: Callable[[], Iterable[Requests]],
        last_used: Callable[[SessionId, float], float | None],
        on_taken: Callable[[Rows], None] = lambda rows: None,
        take_moved: Callable[[], Iterable[Moved]] = tuple,
    ) -> None:
        """`last_used(session, now)`: when this gateway last saw it in use. `on_taken` sees what is to be written."""
        self._meter, self._store, self._provider, self._catalog = meter, store, provider, catalog
        self._clock, self._place, self._interval, self._retention = clock, place, interval, retention
        self._take_requests, self._last_used, self._on_taken = take_requests, last_used, on_taken
        self._take_moved = take_moved
        self._engine: EngineMeter | None = provider if isinstance(provider, EngineMeter) else None
        self._used: dict[str, float] = {}  # session -> last use, of sandboxes of a shared engine
        self._sizes: dict[str, Resources] = {}  # session -> its size, of those that have one of their own and a sandbox
        self._pending: deque[tuple[int, Rows]] = deque()
        self._sequence = 0
        self._flushing = asyncio.Lock()
        self._leads = not place.shared
        self._leads_until = float("inf")
        self._pools_at: float | None = None  # monotonic second up to which warm pools were counted
        self._stored_at: float | None = None  # the same of kept workspaces

    # Called by the bindings.

    def bound(self, session: Session, sandbox_id: SandboxId, start: StartKind | None) -> None:
        """A session has a sandbox; `start`: newly, and how it came to be."""
        now, account = self._now(), self._account_of(session)
        if start in _STARTS:
            self._meter.add(account, _STARTS[start], 1, now.wall)
        if not self._place.shares_engine:
            self._meter.begin(sandbox_id, account, now)

    def resized(self, session: Session) -> None:
        """A session's sandbox has another size: its time counts as that from now on."""
        now, account = self._now(), self._account_of(session)
        if session.sandbox is not None:
            self._meter.change(session.sandbox.id, account, now, self._idle_since(session.id, now.wall))

    def removed(self, sandbox_id: SandboxId) -> None:
        """A session no longer has that sandbox."""
        if not self._place.shares_engine:
            now = self._now()
            account = self._meter.held.get(sandbox_id)
            self._meter.end(sandbox_id, now, None if account is None else self._idle_since(account.session, now.wall))
            if account is not None:
                self._sizes.pop(account.session, None)

    # Called by loops.

    async def tick(self) -> None:
        """Count the time that has passed."""
        now = self._now()
        if self._place.shares_engine and now.wall >= self._leads_until:
            self._meter.forget_all()  # from here on another gateway may count
        self._meter.tick(now, lambda session: self._idle_since(session, now.wall))

    async def flush(self) -> None:
        """Measure, and write what has come together. Raises StoreUnavailableError; the next call tries again."""
        async with self._flushing:
            await self._lead()
            if self._place.shares_engine:
                await self._follow_engine()
            await self.tick()
            await self._measure()
            await self._count_pools()
            if self._stored_at is None or self._clock.monotonic() - self._stored_at >= STORED_INTERVAL_S:
                await self._count_stored()
            now = self._clock.now()
            for each in self._take_requests():
                account = self._account(each.tenant, each.runtime, each.session_id)
                self._meter.add(account, Quantity.REQUESTS, each.requests, now)
                self._meter.add(account, Quantity.EGRESS_BYTES, each.egress_bytes, now)
            for moved in self._take_moved():
                account = self._account(moved.tenant, moved.runtime, moved.session_id)
                self._meter.add(account, Quantity.NETWORK_SENT_BYTES, moved.sent, now)
                self._meter.add(account, Quantity.NETWORK_RECEIVED_BYTES, moved.received, now)
            await self._write()

    async def _write(self) -> None:
        # Only then: while the store is away the meter adds up in rows, of which there are few, not in batches.
        if not self._pending:
            for rows in self._meter.take():
                self._sequence += 1
                self._pending.append((self._sequence, rows))
                self._on_taken(rows)
        while self._pending:
            sequence, rows = self._pending[0]
            await self._store.usage.add(self._place.writer, sequence, rows, self._retention)
            self._pending.popleft()

    async def _lead(self) -> None:
        if not self._place.shared:
            return
        lease = await self._store.acquire_lease(LEASE, self._place.holder, 3 * self._interval)
        self._leads, self._leads_until = lease is not None, 0.0 if lease is None else lease.expires_at

    async def _follow_engine(self) -> None:
        """Hold the sandboxes of a shared engine that are bound to sessions, while this gateway leads."""
        if not self._leads:
            self._meter.forget_all()
            self._used.clear()
            return
        now, held = self._now(), self._meter.held
        found = {each.id: each.session_id for each in await self._provider.list() if each.session_id is not None}
        for sandbox_id in held.keys() - found.keys():
            self._sizes.pop(held[sandbox_id].session, None)
            self._meter.end(sandbox_id, now, self._idle_since(held[sandbox_id].session, now.wall))
        used: dict[str, float] = {}
        for sandbox_id, session_id in found.items():
            session = await self._store.get(session_id)
            if session is not None:
                used[session.id] = session.last_active_at
                account = self._account_of(session)
                self._meter.begin(sandbox_id, account, self._now())
                self._meter.change(sandbox_id, account, self._now())  # another gateway may have resized it
        self._used = used

    async def _measure(self) -> None:
        ended = self._meter.ended
        sandboxes = self._meter.measurable
        if self._engine is not None and sandboxes:
            measured = await self._engine.usage(sandboxes)
            now = self._now()
            for sandbox_id in sandboxes:
                if (usage := measured.get(sandbox_id)) is not None:
                    self._meter.measured(sandbox_id, usage.cpu_s, usage.memory_bytes, now, cores=usage.cores)
        self._meter.forget_ended(ended)

    async def _count_pools(self) -> None:
        now = self._now()
        since, self._pools_at = self._pools_at, now.monotonic
        if since is None or (self._place.shares_engine and not self._leads):
            return
        for runtime in self._catalog.all():
            try:
                status = await self._provider.status(runtime.key)
            except RuntimeNotFoundError:
                continue  # it was removed from the catalog since
            passed = (now.monotonic - since) * (status.ready + status.starting)
            account = Account("", str(runtime.key.base), str(size_of(runtime)))
            self._meter.span(account, Quantity.WARM_SECONDS, passed, now.wall, over=now.monotonic - since)

    async def _count_stored(self) -> None:
        """Count kept workspaces, and the time of sessions that have no sandbox because they are hibernated."""
        now = self._now()
        if (since := self._stored_at) is not None:
            # Added up once all are read: when the store goes away between two pages the next call begins anew, and
            # counts all of the time since.
            spans = [span async for span in self._stored_spans(now, now.monotonic - since)]
            for account, quantity, amount, over in spans:
                self._meter.span(account, quantity, amount, now.wall, over=over)
        self._stored_at = now.monotonic

    async def _stored_spans(
        self, now: Moment, passed: float
    ) -> AsyncIterator[tuple[Account, Quantity, float, float | None]]:
        after: SessionId | None = None
        while True:
            page = [each async for each in self._store.sessions(after=after, limit=500)]
            for session in page:
                if session.snapshot is not None and self._counts_stored(session):
                    seconds = min(passed, max(0.0, now.wall - (session.snapshot_at or 0.0)))
                    account = self._account(session.tenant, session.runtime, session.id, session.resources)
                    if session.state is SessionState.HIBERNATED:
                        yield account, Quantity.HIBERNATED_SECONDS, seconds, None
                    size = await self._size_of_kept(session.snapshot)
                    yield account, Quantity.STORED_BYTE_SECONDS, size * seconds, seconds
            if len(page) < 500:
                return
            after = page[-1].id

    def _counts_stored(self, session: Session) -> bool:
        if session.state is SessionState.TERMINATED:
            return False
        return self._leads if session.owner == "" else session.owner == self._place.me

    async def _size_of_kept(self, reference: str) -> int:
        if is_snapshot(reference):
            return SnapshotRef(reference).size
        return 0 if self._engine is None else await self._engine.parked_bytes(reference)

    def _idle_since(self, session: str, now: float) -> float | None:
        if self._place.shares_engine:
            return self._used.get(session)
        return self._last_used(SessionId(session), now)

    def _account_of(self, session: Session) -> Account:
        """That of a session with a sandbox, whose size is remembered for the requests that it gets."""
        if session.resources is None:
            self._sizes.pop(session.id, None)
        else:
            self._sizes[session.id] = session.resources
            if len(self._sizes) > _MAX_SIZES:
                del self._sizes[next(iter(self._sizes))]
        return self._account(session.tenant, session.runtime, session.id)

    def _account(self, tenant: str, key: RuntimeKey, session: str, size: Resources | None = None) -> Account:
        runtime = self._catalog.get(key)
        shown = Size() if runtime is None else size_of(runtime, size or self._sizes.get(session))
        return Account(tenant, str(key.base), str(shown), session)

    def _now(self) -> Moment:
        return Moment(self._clock.now(), self._clock.monotonic())


def size_of(runtime: Runtime, size: Resources | None = None) -> Size:
    """What a runtime's sandboxes may use, by its limits; GPUs as the manifest's containers ask for them.

    `size`: what a session has in place of its runtime's.
    """
    limits = runtime.limits.resized(size)
    return Size(limits.cpus or 0.0, limits.memory or 0, _gpus(runtime.manifest.get("spec", {})))


def _gpus(spec: Mapping[str, Any]) -> float:
    template = spec.get("template") or spec.get("podTemplate") or {}
    containers: Sequence[Any] = (template.get("spec") or template).get("containers") or [template]
    total = 0.0
    for container in containers:
        for name, amount in ((container.get("resources") or {}).get("limits") or {}).items():
            if str(name).endswith("/gpu"):  # nvidia.com/gpu, amd.com/gpu
                try:
                    total += parse_quantity(str(amount))
                except ValueError:
                    continue
    return total
