"""GET /v1/events and the logs of a session, over a gateway whose sandbox is scripted; and the console's session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import httpx
import orjson
import pytest

from gateway.api import events as events_api
from gateway.core.clock import SystemClock
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import Kind, RuntimeKey
from gateway.identity import console_sessions
from gateway.observability import feed as feeds
from gateway.observability.feed import EventFeed
from tests.support.scripted import OpenScripted, Served, key_of
from tests.support.waiting import LIMIT_S

ON_UVLOOP = True
STREAM = {"accept": "text/event-stream"}
POOL = RuntimeKey("default", "my-interpreter", Kind.CODE_INTERPRETER)


def client_of(gateway: Served, key: str = "") -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=gateway.url, headers=headers, trust_env=False, timeout=LIMIT_S)


async def read(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Events of a stream, as {"event", "id", "data"}."""
    event: dict[str, Any] = {}
    async for line in reply.aiter_lines():
        if not line and event:
            yield {**event, "data": orjson.loads(event["data"])}
            event = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


async def test_stream_tells_what_becomes_of_a_session_and_goes_on_after_an_id(open_gateway: OpenScripted) -> None:
    """What came while nobody was connected is told on return; nothing twice."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        async with client.stream("GET", "/v1/events", headers=STREAM) as reply:
            told = read(reply)
            assert (await anext(told))["event"] == "ready"
            first = await gateway.session()
            started = await anext(told)
            assert (started["event"], started["data"]["session"]) == ("session.started", first)
            assert started["data"]["details"]["state"] == "active"
        second = await gateway.session()
        async with client.stream("GET", "/v1/events", headers={**STREAM, "last-event-id": started["id"]}) as reply:
            told = read(reply)
            assert (await anext(told))["event"] == "ready"
            assert (await anext(told))["data"]["session"] == second
        page = (await client.get("/v1/events", params={"after": started["id"]})).json()
        assert [each["session"] for each in page["events"]] == [second]
        assert (await client.get("/v1/events", params={"after": page["next"]})).json()["events"] == []
        logs = (await client.get(f"/v1/sessions/{first}/logs")).json()["events"]
        assert [each["event"] for each in logs] == ["session.started"]


async def test_id_of_another_start_is_answered_with_a_reset(open_gateway: OpenScripted) -> None:
    """The client knows then that it has to look at everything again; an id that is none is refused."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        headers = {**STREAM, "last-event-id": "0123456789ab-7"}
        async with client.stream("GET", "/v1/events", headers=headers) as reply:
            assert (await anext(read(reply)))["event"] == "reset"
        for wrong in ("x", "a-b", "a-" + "9" * 40, "-" * 300, "a-\u00b2"):
            assert (await client.get("/v1/events", params={"after": wrong})).status_code == 400
        assert (await client.get("/v1/events?kind=nosuch")).status_code == 400
        assert (await client.get("/v1/events?nosuch=1")).status_code == 400


async def test_events_are_of_ones_own_tenant_and_pools_for_operators(open_gateway: OpenScripted) -> None:
    """Neither a stream nor a page nor a filter by id shows another tenant's session, or a pool to a member."""
    gateway, _ = await open_gateway(auth=True)
    keys = {name: await key_of(gateway, name) for name in ("acme", "other")}
    operator = await key_of(gateway, "default", Role.OPERATOR)
    with acting_as(Identity(Role.MEMBER, "acme")):
        session = await gateway.session()
    gateway.gateway.feed.of_pool(POOL, 1, 3, "three are expected")
    for key, expected in ((keys["acme"], [session]), (keys["other"], []), (operator, [session, None])):
        async with client_of(gateway, key) as client:
            page = (await client.get("/v1/events")).json()
            assert [each.get("session") for each in page["events"]] == expected
            named = (await client.get("/v1/events", params={"session": session})).json()["events"]
            assert len(named) == (session in expected)
    async with client_of(gateway, keys["other"]) as client:
        assert (await client.get(f"/v1/sessions/{session}/logs")).status_code == 404
        async with client.stream("GET", "/v1/events", headers=STREAM) as reply:
            told = read(reply)
            await anext(told)
            with acting_as(Identity(Role.MEMBER, "acme")):
                await gateway.session()
            with acting_as(Identity(Role.MEMBER, "other")):
                own = await gateway.session()
            assert (await anext(told))["data"]["session"] == own
    async with client_of(gateway) as client:
        assert (await client.get("/v1/events")).status_code == 401


async def test_streams_are_counted_and_a_closed_one_makes_room(
    open_gateway: OpenScripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant holds so many; the next gets 429, until one is closed."""
    monkeypatch.setattr(events_api, "MAX_VIEWERS_PER_TENANT", 1)
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        async with client.stream("GET", "/v1/events", headers=STREAM) as reply:
            await anext(read(reply))
            refused = await client.get("/v1/events", headers=STREAM)
            assert (refused.status_code, refused.json()["code"]) == (429, "TOO_MANY_VIEWERS")
        async with asyncio.timeout(LIMIT_S):
            while True:
                await gateway.session()  # the stream notices with its next event that nobody reads it
                async with client.stream("GET", "/v1/events", headers=STREAM) as reply:
                    if reply.status_code == 200:
                        break


async def test_slow_viewer_is_told_how_much_it_has_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring goes on without it: what is kept is bounded, whoever reads."""
    monkeypatch.setattr(feeds, "MAX_EVENTS", 10)
    feed = EventFeed(SystemClock())
    for number in range(25):
        feed.of_pool(POOL, number, number + 1, "w" * 10_000)
    lost, fresh = feed.after(2, lambda event: True)
    assert lost == 13
    assert [each.number for each in fresh] == list(range(16, 26))
    assert len(str(fresh[0].details)) < 1000
    assert feed.after(25, lambda event: True) == (0, [])


async def test_consoles_cookie_and_token_are_worth_something_together_only(open_gateway: OpenScripted) -> None:
    """Neither alone, nor with another session's half; the key's end is theirs, and a sandbox never sees the cookie."""
    gateway, sandbox = await open_gateway(auth=True)
    key = await key_of(gateway, "acme")
    async with client_of(gateway, key) as client:
        made = await client.post("/v1/console/session")
        other = await client.post("/v1/console/session")
    assert made.status_code == 201
    assert key not in made.text + str(made.headers)
    field = made.headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=Strict", "Secure", "Path=/"):
        assert word in field
    assert "Domain" not in field
    cookie = f"{console_sessions.COOKIE}={SimpleCookie(field)[console_sessions.COOKIE].value}"
    foreign = f"{console_sessions.COOKIE}={SimpleCookie(other.headers['set-cookie'])[console_sessions.COOKIE].value}"
    token = f"Bearer {made.json()['token']}"
    async with client_of(gateway) as client:

        async def status(**headers: str) -> int:
            return (await client.get("/v1/caller", headers=headers)).status_code

        assert await status(authorization=token, cookie="a=b; " + cookie) == 200
        assert await status(cookie=cookie) == 401
        assert await status(authorization=token) == 401
        assert await status(authorization=token, cookie=foreign) == 401
        assert await status(authorization=token, cookie=cookie[:-4] + "AAAA") == 401
        assert await status(authorization=token, cookie=cookie, origin="https://evil.example") == 403
        with acting_as(Identity(Role.MEMBER, "acme")):
            session = await gateway.session()
        reply = await client.get("/x", headers={"authorization": token, "cookie": cookie, "x-session-id": session})
        assert reply.status_code == 200
        assert sandbox.requests
        assert console_sessions.COOKIE not in str([each.fields for each in sandbox.requests])
        authenticator = gateway.gateway.surfaces.keys.authenticator
        assert authenticator is not None
        await authenticator.directory.revoke((await authenticator.directory.list("acme"))[0].id)
        authenticator.forget_all()
        assert await status(authorization=token, cookie=cookie) == 401


async def test_page_is_for_browsers_and_programs_get_what_they_always_got(open_gateway: OpenScripted) -> None:
    """By Accept; with a session header / is the sandbox's. Nothing but the console's own files is below /console/."""
    gateway, _ = await open_gateway(auth=True)
    async with client_of(gateway) as client:
        page = await client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = page.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["cross-origin-opener-policy"] == "same-origin"
        for accept in ("*/*", "application/json"):
            assert (await client.get("/", headers={"accept": accept})).json()["code"] == "NOT_FOUND"
        script = await client.get("/console/app.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert (
            await client.get("/console/app.js", headers={"if-none-match": script.headers["etag"]})
        ).status_code == 304
        for outside in ("/console/../__init__.py", "/console/%2e%2e/__init__.py", "/console/nosuch.js", "/console/"):
            assert (await client.get(outside)).status_code == 404
