"""Holding requests while their sandbox is made: one flight for all who wait, within bounds of number and of time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.core.errors import ConflictError, DrainingError, QueueFullError, SandboxStartError, SessionNotFoundError
from gateway.core.model import Invocations, RuntimeKey, StartKind
from gateway.routing.target import Target
from tests.support.activator import world
from tests.support.scripted import KEY, reaches
from tests.support.waiting import eventually

ON_UVLOOP = True


async def test_one_flight_serves_all_who_wait(tmp_path: Path) -> None:
    """Fifty requests for a lost session make one claim; each hears that nothing was restored, the next one does not."""
    async with world(tmp_path) as w:
        session = await w.lost()
        waiting = [w.reserve(session) for _ in range(50)]
        await eventually(lambda: w.activator.held == 50, "all wait")
        w.go()
        reservations = await asyncio.gather(*waiting)
        assert w.provider.claims == 2
        assert {r.route for r in reservations} == {w.activator.routes[session]}
        assert {r.restored for r in reservations} == {"none"}
        assert reservations[0].route.in_flight == 50
        later = await w.reserve(session)
        assert (later.start, later.restored) == (StartKind.LIVE, "none")  # no answer that says so was delivered yet
        w.activator.acknowledge(session, "none")
        assert (await w.reserve(session)).restored is None
        assert w.activator.held == 0


async def test_client_that_leaves_does_not_cancel_the_flight(tmp_path: Path) -> None:
    """Also the one that began it: the others get their sandbox, and its place is free again."""
    async with world(tmp_path) as w:
        session = await w.lost()
        waiting = [w.reserve(session) for _ in range(3)]
        await eventually(lambda: w.activator.held == 3, "all wait")
        waiting[0].cancel()
        waiting[1].cancel()
        await eventually(lambda: w.activator.held == 1, "two have left")
        w.go()
        assert (await waiting[2]).restored == "none"
        assert w.activator.routes[session].in_flight == 1


async def test_flight_continues_after_all_clients_have_left(tmp_path: Path) -> None:
    """Its sandbox is the session's; the next request finds it live."""
    async with world(tmp_path) as w:
        session = await w.lost()
        waiting = w.reserve(session)
        await eventually(lambda: w.activator.held == 1, "it waits")
        waiting.cancel()
        w.go()
        await eventually(lambda: w.provider.claims == 2, "the claim is made")
        assert (await w.reserve(session)).route.in_flight == 1
        assert w.provider.claims == 2


async def test_failed_flight_fails_all_and_the_next_tries_again(tmp_path: Path) -> None:
    """A start that failed is not remembered as an answer."""
    async with world(tmp_path) as w:
        session = await w.lost()
        waiting = [w.reserve(session) for _ in range(3)]
        await eventually(lambda: w.activator.held == 3, "all wait")
        w.provider.fail_with = SandboxStartError("out of disk")
        w.go()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in outcomes] == [SandboxStartError] * 3
        w.provider.fail_with = None
        assert (await w.reserve(session)).restored == "none"


async def test_waiters_of_one_session_are_bounded(tmp_path: Path) -> None:
    """One more is told 429 with Retry-After at once, and other sessions are not hurt by it."""
    async with world(tmp_path, hold_per_session=2) as w:
        session = await w.lost()
        waiting = [w.reserve(session) for _ in range(2)]
        await eventually(lambda: w.activator.held == 2, "both wait")
        with pytest.raises(QueueFullError) as full:
            await w.reserve(session)
        assert full.value.retry_after
        other = w.reserve(None, KEY)
        await eventually(lambda: w.activator.held == 3, "another session's waits")
        w.go()
        await asyncio.gather(*waiting, other)


async def test_waiters_in_all_are_bounded(tmp_path: Path) -> None:
    """New sessions count as well."""
    async with world(tmp_path, hold_total=2) as w:
        session = await w.lost()
        waiting = [w.reserve(session), w.reserve(None, KEY)]
        await eventually(lambda: w.activator.held == 2, "both wait")
        with pytest.raises(QueueFullError) as full:
            await w.reserve(None, KEY)
        assert full.value.retry_after
        w.go()
        await asyncio.gather(*waiting)


async def test_an_agent_says_how_many_requests_a_session_takes(tmp_path: Path) -> None:
    """No more than the gateway's own limit; further ones wait."""
    async with world(tmp_path, Invocations(requests_per_session=2), slots_per_sandbox=9) as w:
        session = await w.session()
        held = [await w.reserve(session) for _ in range(2)]
        third = w.reserve(session)
        await eventually(lambda: w.activator.held == 1, "it waits")
        assert not third.done()
        held[0].route.leave(0.0)
        assert (await third).route.slots == 2
    async with world(tmp_path / "more", Invocations(requests_per_session=9), slots_per_sandbox=2) as w:
        assert (await w.reserve(await w.session())).route.slots == 2


async def test_an_agent_takes_so_many_requests_in_all_its_sessions(tmp_path: Path) -> None:
    """More are refused at once, also on a session that is free; what ends makes room, also where others queue."""
    async with world(tmp_path, Invocations(requests=3, requests_per_session=2)) as w:
        one, two = await w.session(), await w.session()
        first, second = await w.reserve(one), await w.reserve(one)
        waiting = w.reserve(one)
        await eventually(lambda: w.activator.held == 1, "it waits")
        third = await w.reserve(two)
        with pytest.raises(QueueFullError, match="3 requests of this agent"):
            await w.reserve(two)
        assert w.activator.live(Target(two, None, b"/"), 0.0) is None
        first.route.leave(0.0)
        handed = await waiting  # it takes over the slot that ended, so there is no more room than before
        with pytest.raises(QueueFullError):
            await w.reserve(two)
        for each in (second, third, handed):
            each.route.leave(0.0)
        for session in (one, two, two):
            await w.reserve(session)


async def test_slots_queue_in_order(tmp_path: Path) -> None:
    """With two slots the third and fourth wait for their turn, first come first served."""
    async with world(tmp_path, slots_per_sandbox=2) as w:
        session = await w.session()
        first, _ = await w.reserve(session), await w.reserve(session)
        route = first.route
        order: list[int] = []
        queued = [w.reserve(session) for _ in range(3)]
        for task in queued:
            task.add_done_callback(lambda done: order.append(queued.index(done)))
        await eventually(lambda: w.activator.held == 3, "three wait")
        assert w.activator.live(Target(session, None, b"/"), w.clock.now()) is None
        for served in range(3):
            route.leave(w.clock.now())
            await reaches(lambda: order, list(range(served + 1)), "the next one has its turn")
            assert route.in_flight == 2


async def test_client_that_leaves_the_slot_queue_gives_its_turn_to_the_next(tmp_path: Path) -> None:
    """Whether it left before its turn or in the very moment of it, the slot goes to the next one."""
    async with world(tmp_path, slots_per_sandbox=1) as w:
        session = await w.session()
        route = (await w.reserve(session)).route
        queued = [w.reserve(session) for _ in range(3)]
        await eventually(lambda: w.activator.held == 3, "three wait")
        queued[0].cancel()
        await eventually(lambda: w.activator.held == 2, "one has left")
        route.leave(w.clock.now())
        queued[1].cancel()  # its turn was handed over above and it has not run since
        await eventually(lambda: queued[2].done(), "the third has its turn")
        assert (route.in_flight, route.activity.in_flight) == (1, 1)
        route.leave(w.clock.now())
        assert (route.in_flight, route.activity.in_flight) == (0, 0)


async def test_slot_queue_is_bounded(tmp_path: Path) -> None:
    """One more than may wait is told so."""
    async with world(tmp_path, slots_per_sandbox=1, hold_per_session=1) as w:
        session = await w.session()
        await w.reserve(session)
        waiting = w.reserve(session)
        await eventually(lambda: w.activator.held == 1, "one waits")
        with pytest.raises(QueueFullError):
            await w.reserve(session)
        waiting.cancel()


async def test_request_that_finds_no_free_slot_gets_429(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time of the hold rule, but with 429 and Retry-After: the sandbox lives, its session keeps it busy."""
    monkeypatch.setattr("gateway.sessions.admission.MIN_HOLD_S", 0.2)
    async with world(tmp_path, slots_per_sandbox=2) as w:
        session = await w.session()
        for _ in range(2):
            await w.reserve(session)
        with pytest.raises(QueueFullError, match=r"all 2 requests .* are under way") as refused:
            await w.reserve(session)
        assert (refused.value.status, refused.value.retry_after) == (429, 1.0)
        assert w.activator.held == 0
        assert w.activator.routes[session].in_flight == 2


@pytest.mark.parametrize("live", [True, False])
async def test_session_is_not_found_under_another_runtime(tmp_path: Path, live: bool) -> None:
    """Before and after its route is in memory."""
    async with world(tmp_path) as w:
        session = await w.session()
        if live:
            await w.reserve(session, KEY)
            with pytest.raises(SessionNotFoundError):
                w.activator.live(Target(session, RuntimeKey("default", "other"), b"/"), w.clock.now())
        with pytest.raises(SessionNotFoundError):
            await w.reserve(session, RuntimeKey("default", "other"))


async def test_draining_gateway_serves_live_sessions_and_makes_none(tmp_path: Path) -> None:
    """503 with Retry-After for what needs a sandbox; a live route is used as before."""
    async with world(tmp_path) as w:
        session = await w.session()
        await w.reserve(session)
        w.gateway.shutdown.drain()
        with pytest.raises(DrainingError) as draining:
            await w.reserve(None, KEY)
        assert (draining.value.status, draining.value.retry_after) == (503, 1)
        assert w.activator.live(Target(session, None, b"/"), w.clock.now()) is not None


async def test_token_is_renewed_before_it_ends(tmp_path: Path) -> None:
    """One signature serves four minutes of requests; then a new one is made, still good for a minute."""
    async with world(tmp_path) as w:
        session = await w.session()
        target = Target(session, None, b"/")
        route = (await w.reserve(session)).route
        head, signed = route.head, w.gateway.tokens.signed
        w.clock.advance(239)
        assert w.activator.live(target, w.clock.now()) is route
        assert (route.head, w.gateway.tokens.signed) == (head, signed)
        w.clock.advance(1)
        assert w.activator.live(target, w.clock.now()) is route
        assert route.head != head
        assert w.gateway.tokens.signed == signed + 1


async def test_ended_session_has_no_route(tmp_path: Path) -> None:
    """The next request is told 404 though its route was in memory."""
    async with world(tmp_path) as w:
        session = await w.session()
        await w.reserve(session)
        await w.gateway.lifecycle.terminate(session, "deleted")
        assert w.activator.routes == {}
        with pytest.raises(SessionNotFoundError):
            await w.reserve(session)


async def test_hibernation_that_waited_for_a_wake_leaves_the_request_its_sandbox(tmp_path: Path) -> None:
    """A verb that was queued behind the wake sees the request that is about to take its slot, and is refused."""
    async with world(tmp_path) as w:
        session = await w.lost()
        waiting = w.reserve(session)
        await eventually(lambda: w.activator.held == 1, "the request waits")
        hibernating = asyncio.create_task(w.gateway.sessions.hibernator.hibernate(session))
        only_if_idle = asyncio.create_task(w.gateway.sessions.hibernator.hibernate(session, only_if=lambda _: True))
        await asyncio.sleep(0)
        w.go()
        reservation = await waiting
        assert not await only_if_idle
        with pytest.raises(ConflictError, match="requests under way"):
            await hibernating
        assert await w.provider.find(reservation.route.sandbox.id) is not None


async def test_request_that_waits_keeps_its_session_busy(tmp_path: Path) -> None:
    """From its arrival to its slot without a gap, and no longer than it waits."""
    async with world(tmp_path) as w:
        session = await w.lost()
        waiting = w.reserve(session)
        await eventually(lambda: w.activator.held == 1, "the request waits")
        assert w.gateway.activity.busy(session)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not w.gateway.activity.busy(session)
        w.go()
