"""The recorder: what a gateway's parts say becomes rows in the store, each second and each request once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.errors import StoreUnavailableError
from gateway.core.model import (
    Endpoint,
    Limits,
    Resources,
    Runtime,
    Sandbox,
    SandboxId,
    Session,
    SessionState,
    SnapshotRef,
    StartKind,
)
from gateway.core.usage import Quantity, Retention, Rows, SandboxUsage
from gateway.runtimes.catalog import StaticCatalog
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock, ScriptedProvider
from gateway.usage.meter import Meter
from gateway.usage.recorder import Place, Requests, UsageRecorder, size_of
from tests.support.records import RUNTIME, T0, session

SERVED = Runtime(RUNTIME, limits=Limits(memory=1 << 30, cpus=2.0))
INTERVAL_S = 10.0
KEPT = Retention(sessions=2 * 3600.0, totals=5 * 3600.0)


class Engine(ScriptedProvider):
    """A scripted engine whose sandboxes' usage the test sets."""

    measured: Mapping[SandboxId, SandboxUsage] = {}

    async def usage(self, sandboxes: Sequence[SandboxId]) -> Mapping[SandboxId, SandboxUsage]:
        return {each: self.measured[each] for each in sandboxes if each in self.measured}

    async def parked_bytes(self, reference: str) -> int:
        return 1000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0)


@pytest.fixture
async def store(clock: ManualClock) -> AsyncIterator[MemoryStore]:
    made = MemoryStore(clock)
    await made.start()
    yield made
    await made.aclose()


class Gateway:
    """A recorder and what is around it."""

    def __init__(self, store: MemoryStore, clock: ManualClock, place: Place, engine: Engine | None = None) -> None:
        self.engine = engine or Engine(clock=clock)
        self.requests: list[Requests] = []
        self.last_used: float | None = None
        self.recorder = UsageRecorder(
            Meter(longest_gap=4.0 if place.me else float("inf")),
            store,
            self.engine,
            StaticCatalog([SERVED]),
            clock,
            place,
            interval=INTERVAL_S,
            retention=KEPT,
            take_requests=self._take,
            last_used=lambda _session, _now: self.last_used,
        )

    def _take(self) -> list[Requests]:
        taken, self.requests = self.requests, []
        return taken


async def totals(store: MemoryStore) -> dict[str, float]:
    """Everything in the store, by quantity."""
    found: defaultdict[str, float] = defaultdict(float)
    async for _, amounts in store.usage.read(0, int(T0) * 2, sessions=False):
        for quantity, amount in amounts.items():
            found[quantity] += amount
    return dict(found)


async def test_bound_sandbox_counts_until_it_is_removed(store: MemoryStore, clock: ManualClock) -> None:
    """Time, its idle part, the start, CPU and memory of a session, in its rows and in the totals."""
    gateway = Gateway(store, clock, Place("w", "h"))
    box = SandboxId("sb-1")
    gateway.last_used = T0 + 3
    gateway.recorder.bound(session(tenant="acme"), box, StartKind.COLD)
    clock.advance(10)
    gateway.engine.measured = {box: SandboxUsage(1.5, 100.0)}
    await gateway.recorder.flush()
    clock.advance(5)
    gateway.recorder.removed(box)
    gateway.engine.measured = {box: SandboxUsage(2.0)}
    clock.advance(50)
    await gateway.recorder.flush()

    rows = [row async for row in store.usage.read(0, int(T0) * 2, sessions=True)]
    expected = {
        Quantity.SANDBOX_SECONDS: 15.0,
        Quantity.IDLE_SECONDS: 12.0,
        Quantity.STARTS_COLD: 1.0,
        Quantity.CPU_SECONDS: 2.0,
        Quantity.MEMORY_BYTE_SECONDS: 1500.0,
    }
    assert [(key.tenant, key.session, key.size) for key, _ in rows] == [("acme", "s1", "2cpu-1024Mi")]
    assert rows[0][1] == pytest.approx(expected)
    assert (await totals(store)) == pytest.approx(expected)


async def test_write_that_fails_is_repeated_and_counts_once(
    store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that applied a batch and did not answer, then was away, has each request once in the end."""
    gateway = Gateway(store, clock, Place("w", "h"))
    real, answers = store.usage.add, [True, False]

    async def flaky(writer: str, sequence: int, rows: Rows, retention: Retention) -> bool:
        if answers:
            if answers.pop(0):
                await real(writer, sequence, rows, retention)
            raise StoreUnavailableError("away")
        return await real(writer, sequence, rows, retention)

    monkeypatch.setattr(store.usage, "add", flaky)
    for _ in range(4):
        gateway.requests.append(Requests(session().id, "acme", RUNTIME, 1, 50))
        try:
            await gateway.recorder.flush()
        except StoreUnavailableError:
            continue
    await gateway.recorder.flush()

    assert await totals(store) == {Quantity.REQUESTS: 4.0, Quantity.EGRESS_BYTES: 200.0}


async def test_rows_are_kept_for_as_long_as_the_recorder_says(store: MemoryStore, clock: ManualClock) -> None:
    """Those of sessions, and totals, each for a time of its own."""
    gateway = Gateway(store, clock, Place("w", "h"))
    kinds = []
    for _ in range(3):
        gateway.requests.append(Requests(session().id, "acme", RUNTIME, 1, 50))
        await gateway.recorder.flush()
        kinds.append([[row async for row in store.usage.read(0, int(T0) * 2, sessions=each)] for each in (True, False)])
        clock.advance(4 * 3600.0)

    assert [[len(rows) for rows in kind] for kind in kinds] == [[1, 1], [1, 2], [1, 2]]


async def test_of_gateways_that_share_an_engine_one_counts(store: MemoryStore, clock: ManualClock) -> None:
    """Two gateways see the same sandbox; the leader dies, the other takes over: no second counts twice."""
    engine = Engine(clock=clock)
    await engine.apply([SERVED])
    record = await store.put(session(tenant="acme"))
    sandbox = await engine.claim(RUNTIME, record.id)
    await store.put(replace(record, sandbox=sandbox))
    one, two = (Gateway(store, clock, Place(name, name, shared=True), engine) for name in ("a", "b"))
    for gateway in (one, two):
        gateway.recorder.bound(record, sandbox.id, None)
    for _ in range(6):
        await one.recorder.flush()
        await two.recorder.flush()
        clock.advance(10)
    for _ in range(10):  # the first is dead from here on; its lease ends after three intervals
        await two.recorder.flush()
        clock.advance(10)

    # 50 s by the first; the 30 s from its last write until its lease ended are nobody's; then the second.
    assert (await totals(store))[Quantity.SANDBOX_SECONDS] == pytest.approx(50 + 70)


async def test_suspended_leader_stops_counting_when_its_lease_ends(store: MemoryStore, clock: ManualClock) -> None:
    """A leader that slept through a takeover adds nothing of that time when it goes on."""
    engine = Engine(clock=clock)
    await engine.apply([SERVED])
    record = await store.put(session())
    await engine.claim(RUNTIME, record.id)
    one, two = (Gateway(store, clock, Place(name, name, shared=True), engine) for name in ("a", "b"))
    await one.recorder.flush()
    for _ in range(8):
        clock.advance(10)
        await two.recorder.flush()
    before = (await totals(store))[Quantity.SANDBOX_SECONDS]
    await one.recorder.tick()
    await one.recorder.flush()

    assert before == pytest.approx(50.0)
    assert (await totals(store))[Quantity.SANDBOX_SECONDS] == before


async def test_warm_pools_and_kept_workspaces_count(store: MemoryStore, clock: ManualClock) -> None:
    """Warm sandboxes belong to no tenant; kept bytes and hibernated time belong to the session's."""
    gateway = Gateway(store, clock, Place("w", "h"))
    await gateway.engine.apply([SERVED])
    await gateway.engine.resize(RUNTIME, 3)
    hibernated = session(tenant="acme", state=SessionState.HIBERNATED, snapshot_at=T0)
    await store.put(replace(hibernated, snapshot=SnapshotRef.of("k", 500, "0" * 64)))
    await store.put(replace(hibernated, id=session("s2").id, snapshot="s2"))
    await store.put(replace(hibernated, id=session("s3").id, snapshot="s3", owner="another gateway"))
    await gateway.recorder.flush()
    clock.advance(60)
    await gateway.recorder.flush()

    found = {key.tenant: amounts async for key, amounts in store.usage.read(0, int(T0) * 2, sessions=False)}
    assert found[""] == pytest.approx({Quantity.WARM_SECONDS: 180.0})
    assert found["acme"] == pytest.approx({
        Quantity.HIBERNATED_SECONDS: 120.0,
        Quantity.STORED_BYTE_SECONDS: 60.0 * (500 + 1000),
    })  # fmt: skip


async def test_kept_workspaces_count_over_an_outage_between_two_pages(
    store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not read is counted by the next call with all of its time, and what was read is not counted twice."""
    gateway = Gateway(store, clock, Place("w", "h", me="me"))
    hibernated = session(tenant="acme", state=SessionState.HIBERNATED, snapshot_at=T0, owner="me")
    for index in range(501):
        await store.put(replace(hibernated, id=session(f"s{index}").id, snapshot=f"s{index}"))
    await gateway.recorder.flush()
    read = store.sessions

    async def one_page(**of: Any) -> AsyncIterator[Session]:
        if of.get("after") is not None:
            raise StoreUnavailableError("away")
        async for each in read(**of):
            yield each

    clock.advance(60)
    with monkeypatch.context() as away:
        away.setattr(store, "sessions", one_page)
        with pytest.raises(StoreUnavailableError):
            await gateway.recorder.flush()
    clock.advance(60)
    await gateway.recorder.flush()
    found = await totals(store)
    assert found[Quantity.HIBERNATED_SECONDS] == 501 * 120.0
    assert found[Quantity.STORED_BYTE_SECONDS] == 501 * 120.0 * 1000


def test_size_has_the_gpus_of_the_manifest() -> None:
    """Both kinds of manifest name GPUs in their containers' limits."""
    container = {"resources": {"limits": {"nvidia.com/gpu": 2, "cpu": "1"}}}
    interpreter = replace(SERVED, manifest={"spec": {"template": container}})
    agent = replace(SERVED, manifest={"spec": {"podTemplate": {"spec": {"containers": [container, container]}}}})

    assert [size_of(each).gpus for each in (SERVED, interpreter, agent)] == [0.0, 2.0, 4.0]


async def test_time_counts_by_the_size_of_its_moment(store: MemoryStore, clock: ManualClock) -> None:
    """A session that was resized is billed for what it had until then, and for what it has from then on."""
    gateway = Gateway(store, clock, Place("w", "h"))
    box = Sandbox(SandboxId("sb-1"), RUNTIME, Endpoint(uds="x"), StartKind.COLD, T0)
    small = session(tenant="acme", sandbox=box)
    gateway.recorder.bound(small, box.id, StartKind.COLD)
    clock.advance(10)
    large = replace(small, resources=Resources(memory=4 << 30))
    gateway.recorder.resized(large)
    clock.advance(5)
    gateway.requests.append(Requests(small.id, "acme", RUNTIME, 1, 50))
    await gateway.recorder.flush()
    gateway.recorder.removed(box.id)
    gateway.requests.append(Requests(small.id, "acme", RUNTIME, 2, 50))
    await gateway.recorder.flush()

    rows = {key.size: dict(amounts) async for key, amounts in store.usage.read(0, int(T0) * 2, sessions=False)}
    assert rows["2cpu-1024Mi"][Quantity.SANDBOX_SECONDS] == 10.0
    assert rows["2cpu-4096Mi"][Quantity.SANDBOX_SECONDS] == 5.0
    assert [rows[size][Quantity.REQUESTS] for size in ("2cpu-1024Mi", "2cpu-4096Mi")] == [2.0, 1.0]
