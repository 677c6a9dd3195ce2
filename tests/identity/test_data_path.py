"""Requests with and without credentials, over sockets: who reaches which session, on the fast and the slow path."""

from __future__ import annotations

from typing import Any

import pytest
import websockets

from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import SessionId
from gateway.identity.authenticator import Authenticator
from gateway.identity.directory import open_directory
from tests.support.scripted import Message, OpenScripted, ScriptedSandbox, Served, get

ON_UVLOOP = True


class World:
    """A gateway that asks who requests come from, and a session of the tenant `acme`."""

    def __init__(self, gateway: Served, sandbox: ScriptedSandbox) -> None:
        self.gateway, self.sandbox = gateway, sandbox
        found = gateway.gateway.surfaces.keys.authenticator
        assert found is not None
        self.authenticator: Authenticator = found

    async def key(self, role: Role = Role.MEMBER, tenant: str = "acme", **more: Any) -> str:
        return (await self.authenticator.directory.create(role=role, tenant=tenant, **more))[0]

    async def session(self, tenant: str = "acme", user: str = "") -> SessionId:
        with acting_as(Identity(Role.MEMBER, tenant, user=user)):
            return await self.gateway.session()

    async def ask(self, session: str, credential: str, path: str = "/x") -> Message:
        """Twice, so that the second finds what the first left in memory."""
        extra = f"authorization: Bearer {credential}\n" if credential else ""
        first = await self.gateway.ask(get(session, path, extra))
        second = await self.gateway.ask(get(session, path, extra))
        assert first.status == second.status
        return second


@pytest.fixture
async def world(open_gateway: OpenScripted) -> World:
    return World(*await open_gateway(auth=True))


async def test_key_of_the_tenant_reaches_its_session_and_no_sandbox_sees_it(world: World) -> None:
    """As a bearer token and as X-API-Key."""
    session, key = await world.session(), await world.key()
    assert (await world.ask(session, key)).status == 200
    assert (await world.gateway.ask(get(session, "/x", f"x-api-key: {key}\n"))).status == 200
    for request in world.sandbox.requests:
        assert key not in str(request.fields)
        assert request.get("x-api-key") is None


async def test_address_that_guesses_keys_is_slowed_down_and_valid_keys_are_not(open_gateway: OpenScripted) -> None:
    """Requests, WebSockets and API alike, with Retry-After; new keys from the same address work, and probes."""
    world = World(*await open_gateway(auth=True, unauthenticated_rate=1))
    session, key = await world.session(), await world.key()
    for number in range(5):
        assert (await world.gateway.ask(get(session, "/x", f"x-api-key: wk_{number}\n"))).status == 401
    slowed = await world.gateway.ask(get(session, "/x", "x-api-key: wk_9\n"))
    assert (slowed.status, slowed.get("retry-after")) == (429, "1")
    assert (await world.gateway.ask("GET /v1/sessions HTTP/1.1\nhost: h\n")).status == 429
    url = world.gateway.url.replace("http", "ws") + "/ws"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(url, additional_headers={"x-session-id": session}, proxy=None).__aenter__()
    assert refused.value.response.status_code == 429
    assert (await world.gateway.ask("GET /healthz HTTP/1.1\nhost: h\n")).status == 200
    assert (await world.ask(session, key)).status == 200


@pytest.mark.parametrize("credential", ["", "wk_nonsense", "wst_a.b.c", "x" * 9000])
async def test_request_without_credentials_is_refused_before_the_session_is_read(world: World, credential: str) -> None:
    """401 with a challenge, alike for sessions that exist and for those that do not."""
    session = await world.session()
    answers = [await world.ask(each, credential) for each in (session, "no-such-session")]
    assert [each.status for each in answers] == [401, 401]
    assert answers[0].get("www-authenticate") == 'Bearer realm="wakegate"'
    assert answers[0].json == answers[1].json
    assert world.sandbox.requests == []


async def test_session_of_another_tenant_is_answered_as_unknown(world: World) -> None:
    """The same answer, also while it is live for its own tenant."""
    session = await world.session()
    assert (await world.ask(session, await world.key())).status == 200
    answer = await world.ask(session, await world.key(tenant="other"))
    unknown = await world.ask("no-such-session", await world.key(tenant="other"))
    assert (answer.status, unknown.status) == (404, 404)
    assert answer.json["error"].replace(session, "ID") == unknown.json["error"].replace("no-such-session", "ID")


async def test_session_of_another_user_of_the_tenant_is_hidden(world: World) -> None:
    """Where both credentials name a person; a key of the tenant's own sees both."""
    session = await world.session(user="ann")
    assert (await world.ask(session, await world.key(user="bob"))).status == 404
    assert (await world.ask(session, await world.key(user="ann"))).status == 200
    assert (await world.ask(session, await world.key())).status == 200


@pytest.mark.parametrize(("role", "status"), [(Role.ADMIN, 200), (Role.OPERATOR, 403), (Role.VIEWER, 403)])
async def test_role_decides_who_reaches_contents(world: World, role: Role, status: int) -> None:
    """An admin of any tenant does; operators and viewers do not."""
    session = await world.session()
    tenant = "other" if role is Role.ADMIN else "acme"
    assert (await world.ask(session, await world.key(role, tenant))).status == status


async def test_key_of_some_runtimes_reaches_no_other(world: World) -> None:
    """Its session does not exist for a key that is limited to another runtime."""
    session = await world.session()
    assert (await world.ask(session, await world.key(runtimes=["default/another"]))).status == 404
    assert (await world.ask(session, await world.key(runtimes=["default/my-interpreter"]))).status == 200


async def test_revoked_key_is_refused_on_a_live_session(world: World) -> None:
    """Although the fast path knew it from memory a moment ago."""
    session, key = await world.session(), await world.key()
    assert (await world.ask(session, key)).status == 200
    await world.authenticator.directory.revoke(key.split("_")[1])
    world.authenticator.forget_all()
    assert (await world.ask(session, key)).status == 401


async def test_session_token_reaches_its_session_only(world: World) -> None:
    """And of it only the paths that it is for."""
    session, other, key = await world.session(), await world.session(), await world.key()
    body = b'{"paths": ["/api/files"], "ttl": 60}'
    made = await world.gateway.ask(
        f"POST /v1/sessions/{session}/tokens HTTP/1.1\nhost: h\nauthorization: Bearer {key}\n"
        f"content-length: {len(body)}\n", body,
    )  # fmt: skip
    assert made.status == 201
    token = made.json["token"]
    assert (await world.ask(session, token, "/api/files/a")).status == 200
    assert (await world.ask(session, token, "/api/execute")).status == 403
    assert (await world.ask(other, token, "/api/files/a")).status == 404


async def test_websocket_needs_a_credential_too(world: World) -> None:
    """The handshake is answered 401, 404 or goes on to the sandbox."""
    session = await world.session()
    url = world.gateway.url.replace("http", "ws") + "/ws"

    async def status(credential: str) -> int:
        headers = {"x-session-id": session, "authorization": f"Bearer {credential}"}
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, additional_headers=headers, proxy=None).__aenter__()
        return refused.value.response.status_code

    assert await status("nothing") == 401
    assert await status(await world.key(tenant="other")) == 404
    assert await status(await world.key(Role.VIEWER)) == 403
    assert await status(await world.key()) == 200  # what the scripted sandbox answers to a handshake


async def test_health_needs_no_credential_and_the_rest_does(world: World) -> None:
    """Probes and the API's description are public."""
    for path in ("/healthz", "/readyz", "/health", "/openapi.json"):
        assert (await world.gateway.ask(f"GET {path} HTTP/1.1\nhost: h\n")).status == 200
    for path in ("/metrics", "/v1/sessions", "/v1/runtimes", "/v1/keys", "/v1/caller"):
        assert (await world.gateway.ask(f"GET {path} HTTP/1.1\nhost: h\n")).status == 401


async def test_two_bearer_tokens_are_refused(world: World) -> None:
    """One of them might be what a proxy in front has checked."""
    session, key = await world.session(), await world.key()
    twice = f"authorization: Bearer {key}\nauthorization: Bearer {key}\n"
    assert (await world.gateway.ask(get(session, "/x", twice))).status == 400


async def test_gateway_without_authentication_ignores_credentials(open_gateway: OpenScripted) -> None:
    """A bearer token is not looked at, and X-API-Key may be the application's."""
    gateway, sandbox = await open_gateway(strip_headers="")
    session = await gateway.session()
    assert (await gateway.ask(get(session, "/x", "authorization: Bearer nonsense\n"))).status == 200
    assert sandbox.requests[-1].get("authorization") != "Bearer nonsense"


async def test_key_that_was_just_made_elsewhere_is_known_at_once(world: World) -> None:
    """A command makes one, and its user does not wait for the gateway's next look at the store."""
    session = await world.session()
    made_by_command = await open_directory(world.gateway.gateway.store.documents, world.gateway.gateway.clock)
    key, _ = await made_by_command.create(role=Role.MEMBER, tenant="acme")
    assert (await world.ask(session, key)).status == 200
