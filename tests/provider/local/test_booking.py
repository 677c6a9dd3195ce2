"""What sandboxes request of the machine: never more than is there, and what happens where it is not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.clock import SystemClock
from gateway.core.errors import NeverFitsError, NoCapacityError
from gateway.core.model import PoolSpec, Requests, Runtime, RuntimeKey, SessionId
from gateway.provider.local import LocalProvider, pools
from gateway.provider.local.booking import Booking, Capacity, Ledger, victims
from tests.support.waiting import eventually

GIB = 1 << 30
MACHINE = Capacity(4000, 8 * GIB, ("0", "1"))
REQUESTS = st.builds(Requests, millicores=st.integers(0, 4500), memory=st.integers(0, 9 * GIB), gpus=st.integers(0, 3))


@given(st.lists(st.tuples(st.sampled_from(("book", "end", "release", "twice")), REQUESTS, st.integers(0, 50))))
def test_no_more_is_booked_than_is_there(steps: list[tuple[str, Requests, int]]) -> None:
    """Whatever comes in which order: sums are exact, no GPU is given twice, and all comes back."""
    ledger, held = Ledger(MACHINE), list[Booking]()
    for what, requests, index in steps:
        if what == "book":
            short = ledger.short_of(requests)
            booking = ledger.book(requests)
            assert (booking is None) == bool(short)
            assert not short or ledger.never_fits(requests) or held
            held += [booking] if booking is not None else []
        elif held:
            chosen = held[index % len(held)]
            if what == "end":
                ledger.ends(chosen)
            else:
                held.remove(chosen)
                for _ in range(1 + (what == "twice")):
                    ledger.release(chosen)
        assert ledger.booked() == {
            "cpu": sum(each.requests.millicores for each in held) / 1000,
            "memory": sum(each.requests.memory for each in held),
            "gpu": sum(each.requests.gpus for each in held),
        }
        assert all(amount <= ledger.bookable()[name] for name, amount in ledger.booked().items())
        given_away = [gpu for each in held for gpu in each.gpus]
        assert len(given_away) == len(set(given_away))
        assert all(len(each.gpus) == each.requests.gpus for each in held)
    for each in held:
        ledger.release(each)
    assert ledger.booked() == {"cpu": 0, "memory": 0, "gpu": 0}


@given(REQUESTS, st.lists(REQUESTS, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_warm_sandboxes_end_only_where_that_makes_room(
    wanted: Requests, held: list[Requests], are_warm: list[bool]
) -> None:
    """Those chosen are enough, none of them could be spared, and where all are not enough none is chosen."""
    ledger = Ledger(MACHINE)
    bookings = [booking for each in held if (booking := ledger.book(each)) is not None]
    warm = [booking for booking, is_warm in zip(bookings, are_warm, strict=False) if is_warm]
    chosen = victims(ledger, wanted, warm)
    assert set(chosen) <= set(warm)
    if not chosen:
        assert not ledger.short_of(wanted) or ledger.short_of(wanted, without=warm)
        return
    assert not ledger.short_of(wanted, without=chosen)
    for spared in chosen:
        assert ledger.short_of(wanted, without=[each for each in chosen if each is not spared])


def test_room_of_sandboxes_that_end_is_waited_for() -> None:
    """Before it is there nothing is booked, and no further sandbox is ended for it."""
    ledger = Ledger(MACHINE)
    whole = ledger.book(Requests(millicores=4000))
    assert whole is not None
    ledger.ends(whole)
    assert ledger.book(Requests(millicores=1)) is None
    assert victims(ledger, Requests(millicores=1), [whole]) == []
    ledger.release(whole)
    assert ledger.book(Requests(millicores=1)) is not None


def test_shortage_names_each_resource_with_its_amounts() -> None:
    """What is asked for, what is free, and of how much."""
    ledger = Ledger(MACHINE)
    ledger.book(Requests(millicores=3500, memory=GIB, gpus=2))
    assert ledger.short_of(Requests(millicores=1000, memory=GIB, gpus=1)) == (
        "cpu: it requests 1, and 0.5 of 4 is free, gpu: it requests 1, and 0 of 2 is free"
    )
    assert "memory: it requests 9 GiB, and 8 GiB of 8 GiB is free" in ledger.never_fits(Requests(memory=9 * GIB))


A, B = RuntimeKey("default", "a"), RuntimeKey("default", "b")


def runtime(key: RuntimeKey, warm: int, **requests: int) -> Runtime:
    return Runtime(key, auth=False, pool=PoolSpec(size=warm), requests=Requests(**requests), code_context="off")


async def start(folder: Path, *runtimes: Runtime, capacity: Capacity = MACHINE) -> LocalProvider:
    provider = LocalProvider(
        folder / "state", folder / "keys", SystemClock(), code_context="off", sandbox_uids="shared", capacity=capacity
    )
    await provider.apply(runtimes)
    await provider.start()
    return provider


async def is_ready(provider: LocalProvider, key: RuntimeKey, count: int) -> None:
    async def ready() -> bool:
        return (await provider.status(key)).ready == count

    await eventually(ready, f"{count} of {key} are warm")


async def test_claims_come_before_warm_sandboxes_and_wait_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool fills as far as there is room and says so; a claim of another runtime takes the room of a warm one.

    What no end of a warm one makes room for waits until a session ends, or is refused with what is short.
    """
    one = Capacity(1000, 8 * GIB)
    warm, other, none = runtime(A, 5, millicores=500), runtime(B, 0, millicores=500), RuntimeKey("default", "free")
    provider = await start(tmp_path, warm, other, runtime(none, 0), capacity=one)
    try:
        await is_ready(provider, A, 2)
        status = await provider.status(A)
        assert (status.starting, status.last_error) == (0, "no room: cpu: it requests 0.5, and 0 of 1 is free")
        assert status.settled
        assert provider.booked()["cpu"] == 1.0

        first = await provider.claim(B, SessionId("s1"))
        await provider.claim(A, SessionId("s2"))
        assert provider.booked()["cpu"] == 1.0
        assert (await provider.status(A)).ready == 0

        monkeypatch.setattr(pools, "ROOM_WAIT_S", 0.2)
        with pytest.raises(NoCapacityError, match=r"no room .* cpu: it requests 0.5, and 0 of 1 is free; end or"):
            await provider.claim(B, SessionId("s3"))
        await provider.claim(none, SessionId("s4"))  # it requests nothing, and starts as ever

        monkeypatch.setattr(pools, "ROOM_WAIT_S", 60.0)
        waiting = asyncio.ensure_future(provider.claim(B, SessionId("s5")))
        await asyncio.sleep(0)
        await provider.release(first.id)
        assert (await waiting).session_id == "s5"
        assert provider.booked()["cpu"] == 1.0
    finally:
        await provider.aclose()
    assert provider.booked() == {"cpu": 0, "memory": 0, "gpu": 0}


async def test_warm_sandbox_takes_no_room_that_a_claim_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where it would fit: the claim needs more, and would wait for ever behind such."""
    monkeypatch.setattr(pools, "ROOM_WAIT_S", 60.0)
    capacity = Capacity(1000, 8 * GIB)
    provider = await start(tmp_path, runtime(A, 0, millicores=500), runtime(B, 0, millicores=1000), capacity=capacity)
    try:
        first = await provider.claim(A, SessionId("s1"))
        waiting = asyncio.ensure_future(provider.claim(B, SessionId("s2")))
        await asyncio.sleep(0)
        await provider.resize(A, 1)
        assert provider.booked()["cpu"] == 0.5
        await provider.release(first.id)
        assert (await waiting).session_id == "s2"
        assert provider.booked()["cpu"] == 1.0
        await provider.release((await provider.list())[0].id)
        await is_ready(provider, A, 1)
    finally:
        await provider.aclose()


@pytest.mark.parametrize(
    ("requests", "says"), [({"gpus": 1}, "gpu: it requests 1, and 0 of 0"), ({"memory": 9 * GIB}, "memory: .* 9 GiB")]
)
async def test_claim_that_never_fits_is_refused_at_once(tmp_path: Path, requests: dict[str, Any], says: str) -> None:
    """Waiting would not help."""
    provider = await start(tmp_path, runtime(A, 0, **requests), capacity=Capacity(1000, 8 * GIB))
    try:
        with pytest.raises(NeverFitsError, match=says) as raised:
            await provider.claim(A, SessionId("s1"))
        assert raised.value.retry_after is None
    finally:
        await provider.aclose()
