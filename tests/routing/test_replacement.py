"""Sandboxes that are gone, or about to be, when a request comes: who is replaced, and who is not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.runtimes.catalog import default_runtime
from gateway.testing import ScriptedProvider
from tests.support.scripted import Call, OpenScripted, ScriptedSandbox, get, served
from tests.support.waiting import eventually

ON_UVLOOP = True


async def test_sandbox_that_refuses_is_replaced_and_one_answer_says_so(open_gateway: OpenScripted) -> None:
    """Nothing was sent to the dead one, so a fresh one gets the request; the answer says what was restored."""
    gateway, old = await open_gateway()
    session = await gateway.session()
    await gateway.ask(get(session))
    fresh = ScriptedSandbox()
    await fresh.start()
    gateway.provider.endpoints = [fresh.endpoint]
    old.stop_listening()
    pool = gateway.gateway.activator.routes[session].pool
    await eventually(lambda: not pool.idle, "the gateway saw the end")
    async with aclosing(fresh):
        answers = [await gateway.ask(get(session, "/", "content-length: 2", "POST"), b"ab") for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert [answer.get("x-wakegate-restored") is None for answer in answers] == [False, True]
    assert [answer.get("x-wakegate-start") for answer in answers] == ["wake", "live"]
    assert [request.body for request in fresh.requests] == [b"ab", b"ab"]


async def test_sandbox_that_ends_while_it_lets_in_is_replaced(open_gateway: OpenScripted) -> None:
    """A killed process closes its connections before its listener: who was told of that and asks again at once, is
    not cut off a second time, and what is asked never reaches the sandbox that ends."""

    async def script(call: Call) -> None:
        call.abort()

    gateway, old = await open_gateway(script)
    session = await gateway.session()
    first = await gateway.ask(get(session, "/first"))
    async with aclosing(ScriptedSandbox()) as fresh:
        await fresh.start()
        gateway.provider.endpoints = [fresh.endpoint]
        second = await gateway.ask(get(session, "/second"))
    assert (first.status, first.json["code"], second.status) == (502, "SANDBOX_LOST", 200)
    assert second.get("x-wakegate-restored") is not None
    assert [request.path for request in (*old.requests, *fresh.requests)] == ["/first", "/health", "/second"]


@pytest.mark.parametrize("busy", [False, True])
async def test_sandbox_that_broke_one_connection_is_kept_if_it_lives(open_gateway: OpenScripted, busy: bool) -> None:
    """It is asked once before it is used again, on none of the connections from before; silence is no end."""
    both = asyncio.Barrier(2)

    async def script(call: Call) -> None:
        if call.request.path == "/both":
            await both.wait()
        if call.request.path == "/break":
            call.abort()
        elif call.request.path == "/health" and busy:
            await call.closed()
        else:
            await call.reply()

    gateway, sandbox = await open_gateway(script, connect_timeout=0.2)
    session = await gateway.session()
    await asyncio.gather(gateway.ask(get(session, "/both")), gateway.ask(get(session, "/both")))
    assert (await gateway.ask(get(session, "/break"))).status == 502
    for _ in range(2):
        assert (await gateway.ask(get(session, "/after"))).get("x-wakegate-restored") is None
    assert [request.path for request in sandbox.requests[3:]] == ["/health", "/after", "/after"]
    assert (sandbox.dials, gateway.gateway.activator.routes[session].pool.open) == (4, 1)


async def test_second_port_that_nobody_listens_on_costs_no_sandbox(tmp_path: Path) -> None:
    """An agent's other server that has not begun yet, or has crashed, is told of, and the first one keeps its memory;
    where that does not listen either, the sandbox is gone and replaced."""
    async with aclosing(ScriptedSandbox()) as first, aclosing(ScriptedSandbox()) as second:
        await first.start()
        await second.start()
        second.stop_listening()
        ports = (("/tools", second.endpoint.port), ("/", first.endpoint.port))
        provider = ScriptedProvider(first.endpoint)
        runtimes = [replace(default_runtime(3), target_ports=ports)]
        async with served(tmp_path, provider, runtimes=runtimes) as gateway:
            session = await gateway.session()
            refused = await gateway.ask(get(session, "/tools/x"))
            assert (refused.status, refused.json["code"]) == (502, "SANDBOX_UNREACHABLE")
            assert f"nothing listens on port {second.endpoint.port}" in refused.json["error"]
            assert (await gateway.ask(get(session, "/toolshed"))).get("x-wakegate-start") == "live"
            assert provider.claims == 1
            first.stop_listening()
            assert (await gateway.ask(get(session, "/tools/x"))).status == 502
            assert provider.claims == 2


async def test_unreachable_replacement_is_a_502(open_gateway: OpenScripted) -> None:
    """When the fresh sandbox cannot be dialled either, the client is told; it is not tried for ever."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    sandbox.stop_listening()
    answer = await gateway.ask(get(session))
    assert (answer.status, answer.json["code"]) == (502, "SANDBOX_UNREACHABLE")
    assert answer.get("x-session-id") == session
    assert gateway.provider.claims == 2
