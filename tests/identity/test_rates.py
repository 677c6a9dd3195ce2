"""Requests per second of a tenant, over sockets: what is answered on each surface once they are used up."""

from __future__ import annotations

import pytest
import websockets

from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import SessionId
from gateway.identity.authenticator import Authenticator
from gateway.identity.tenant_limits import parse_limits
from tests.support.scripted import Message, OpenScripted, ScriptedSandbox, Served, get

ON_UVLOOP = True


class World:
    """A gateway on which the tenant `acme` may send three requests, and then one in a thousand seconds."""

    def __init__(self, gateway: Served, sandbox: ScriptedSandbox) -> None:
        self.gateway, self.sandbox = gateway, sandbox
        found = gateway.gateway.surfaces.keys.authenticator
        assert found is not None
        self.authenticator: Authenticator = found

    async def key(self, role: Role = Role.MEMBER, tenant: str = "acme") -> str:
        return (await self.authenticator.directory.create(role=role, tenant=tenant))[0]

    async def session(self, tenant: str = "acme") -> SessionId:
        with acting_as(Identity(Role.MEMBER, tenant)):
            return await self.gateway.session()

    async def ask(self, session: str, key: str) -> Message:
        return await self.gateway.ask(get(session, "/x", f"authorization: Bearer {key}\n"))

    async def control(self, path: str, key: str) -> Message:
        return await self.gateway.ask(f"GET {path} HTTP/1.1\nhost: h\nauthorization: Bearer {key}\n")


@pytest.fixture
async def world(open_gateway: OpenScripted) -> World:
    made = World(*await open_gateway(auth=True))
    limits = parse_limits({"requestsPerSecond": 0.001, "requestBurst": 3})
    await made.gateway.gateway.tenants.put("acme", limits)
    return made


async def test_requests_beyond_the_rate_are_refused_before_the_sandbox(world: World) -> None:
    """On the first request of a key, on the slow and on the fast path, over all keys of the tenant."""
    session, keys = await world.session(), [await world.key(), await world.key()]
    answers = [await world.ask(session, keys[n % 2]) for n in range(5)]
    assert [each.status for each in answers] == [200, 200, 200, 429, 429]
    assert len(world.sandbox.requests) == 3
    refused = answers[-1]
    assert refused.json["code"] == "RATE_LIMITED"
    assert (refused.json["limit"], refused.json["value"]) == ("requestsPerSecond", 0.001)
    assert 0 < int(refused.get("retry-after") or 0) <= 1000
    assert refused.get("ratelimit-remaining") == "0"
    assert refused.get("ratelimit-reset") == refused.get("retry-after")


async def test_first_request_of_a_key_counts_too(world: World) -> None:
    """It is authenticated on another way than those after it."""
    session = await world.session()
    answers = [await world.ask(session, await world.key()) for _ in range(4)]
    assert [each.status for each in answers] == [200, 200, 200, 429]


async def test_other_tenants_and_administrators_are_not_refused(world: World) -> None:
    """An admin of the tenant could not raise the limit otherwise."""
    session, other = await world.session(), await world.session("bolt")
    for _ in range(4):
        await world.ask(session, await world.key())
    assert (await world.ask(other, await world.key(tenant="bolt"))).status == 200
    assert (await world.ask(session, await world.key(Role.ADMIN))).status == 200
    assert (await world.control("/metrics", await world.key(Role.METRICS))).status == 200


@pytest.mark.parametrize(
    ("path", "shape"),
    [("/v1/sessions", "error"), ("/v1/tools", "error"), ("/v1/containers", "error")],
)
async def test_surface_answers_in_its_own_shape(world: World, path: str, shape: str) -> None:
    """With the same fields in the head."""
    key = await world.key()
    for _ in range(3):
        assert (await world.control("/v1/caller", key)).status == 200
    refused = await world.control(path, key)
    assert refused.status == 429
    assert refused.get("ratelimit-limit") == "0.001"
    error = refused.json[shape]
    text = error if isinstance(error, str) else error["message"]
    assert "requestsPerSecond: this tenant may send 0.001 requests per second" in text


async def test_answers_say_what_is_left_of_the_rate(world: World) -> None:
    """Those of the control surfaces, also errors; tenants without a rate, and who sets limits, see no such fields."""
    key = await world.key()
    answers = [await world.control(path, key) for path in ("/v1/caller", "/v1/caller", "/v1/sessions/none")]
    assert [each.status for each in answers] == [200, 200, 404]
    assert [each.get("ratelimit-remaining") for each in answers] == ["2", "1", "0"]
    assert {each.get("ratelimit-limit") for each in answers} == {"0.001"}
    assert [round(int(each.get("ratelimit-reset") or 0), -3) for each in answers] == [1000, 2000, 3000]
    for other in (await world.key(tenant="bolt"), await world.key(Role.ADMIN)):
        assert (await world.control("/v1/caller", other)).get("ratelimit-limit") is None


async def test_create_says_what_is_left_of_the_tightest_quota(world: World) -> None:
    """Not that of the rate, as long as one applies."""
    limits = parse_limits({"requestsPerSecond": 100, "sandboxes": 4, "sessions": 100, "vcpu": 1000})
    await world.gateway.gateway.tenants.put("acme", limits)
    world.authenticator.forget_all()
    key = await world.key()
    made = [
        await world.gateway.ask(
            f"POST /v1/sessions HTTP/1.1\nhost: h\nauthorization: Bearer {key}\ncontent-length: 2\n", b"{}"
        )
        for _ in range(2)
    ]
    assert [each.status for each in made] == [201, 201]
    assert [each.get("ratelimit-limit") for each in made] == ["4", "4"]
    assert [each.get("ratelimit-remaining") for each in made] == ["3", "2"]


async def test_health_is_not_counted(world: World) -> None:
    """Probes come without a key."""
    for _ in range(5):
        assert (await world.gateway.ask("GET /healthz HTTP/1.1\nhost: h\n")).status == 200


async def test_websocket_counts_as_one_request(world: World) -> None:
    """And is refused like any."""
    session, key = await world.session(), await world.key()
    for _ in range(3):
        await world.ask(session, key)
    for each in (key, await world.key()):  # one that is remembered, and one that was never used
        headers = {"x-session-id": session, "authorization": f"Bearer {each}"}
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(
                world.gateway.url.replace("http", "ws") + "/ws", additional_headers=headers, proxy=None
            ).__aenter__()
        assert refused.value.response.status_code == 429
