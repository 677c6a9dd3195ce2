"""A request that another gateway passed on is not sent by memory: the store says where its session is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.clock import SystemClock
from gateway.core.identity import ANONYMOUS
from gateway.core.model import SessionId
from gateway.identity.peers import PeerSigner
from gateway.identity.shared_secret import SharedSecret
from gateway.routing.access import AccessPolicy
from gateway.routing.incoming import Incoming
from gateway.routing.target import Target
from gateway.sessions.membership import Membership
from gateway.store.memory import MemoryStore
from gateway.testing import ScriptedProvider
from tests.support.scripted import KEY, ScriptedSandbox, get, served


def scope_of(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/a",
        "raw_path": b"/a",
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"h"), (b"x-session-id", b"s-1"), *headers],
    }


@pytest.mark.parametrize(("hops", "passed_on"), [(None, False), (b"0", False), (b"1", True), (b"7", True)])
@pytest.mark.parametrize("signed", [True, False])
async def test_target_knows_whether_another_gateway_passed_the_request_on(
    hops: bytes | None, passed_on: bool, signed: bool
) -> None:
    """By the count of gateways that its head carries; only where one of them signed it is that believed."""
    access = AccessPolicy(allowed_hosts="h")
    access.peers = PeerSigner(SystemClock())
    access.peers.open(SharedSecret(b"secret"))
    headers = [] if hops is None else [(b"x-wakegate-hops", hops)]
    if signed:
        headers.append((b"x-wakegate-peer", access.peers.sign(ANONYMOUS, "GET", b"/a")))
    passed_on = passed_on and signed
    incoming = Incoming(scope_of(*headers), None, asyncio.get_running_loop().time(), access)
    assert incoming.target == Target(SessionId("s-1"), None, b"/a", passed_on=passed_on)


async def test_request_that_was_passed_on_is_not_passed_on_again_by_memory(tmp_path: Path) -> None:
    """Two gateways that each remember the other would send it to and fro. The store, read anew, says who has it now."""
    clock = SystemClock()
    store = MemoryStore(clock)
    former, own = ScriptedSandbox(lambda call: call.reply(b"former owner")), ScriptedSandbox()
    await former.start()
    await own.start()
    try:
        async with served(tmp_path, ScriptedProvider(own.endpoint), store=store, me="b") as gateway:
            announced = Membership(store, clock, "a", takeover_after=60.0)
            announced.address = f"http://{former.endpoint}"
            await announced.announce()
            session = (await gateway.gateway.lifecycle.register(KEY)).id
            record = await store.get(session)
            assert record is not None
            record = await store.put(replace(record, owner="a"))
            assert (await gateway.ask(get(session))).body == b"former owner"
            await store.put(replace(record, owner=""))  # it came to sleep there; any gateway may wake it
            remembered = gateway.gateway.activator.routes[session]
            remembered.trust_until(float("inf"))
            assert (await gateway.ask(get(session))).body == b"former owner", "a client's request goes by memory"
            signature = gateway.gateway.peers.sign(ANONYMOUS, "GET", b"/").decode()
            extra = f"x-wakegate-hops: 1\nx-wakegate-peer: {signature}\n"
            passed_on = await gateway.ask(get(session, extra=extra))
            assert (passed_on.status, passed_on.body) == (200, b"ok"), passed_on
            assert len(own.requests) == 1
    finally:
        await former.aclose()
        await own.aclose()
