"""Tenants over HTTP: who may set limits, what is answered, and what the end of a tenant ends."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import SessionState
from gateway.identity.authenticator import Authenticator
from tests.support.scripted import KEY, Message, OpenScripted, Served


class World:
    """A gateway that asks who requests come from, and a key of the tenant `acme`."""

    def __init__(self, gateway: Served) -> None:
        self.gateway = gateway
        found = gateway.gateway.surfaces.keys.authenticator
        assert found is not None
        self.authenticator: Authenticator = found

    async def key(self, role: Role = Role.MEMBER, tenant: str = "acme") -> str:
        return (await self.authenticator.directory.create(role=role, tenant=tenant))[0]

    async def ask(self, what: str, key: str, body: Any = None) -> Message:
        data = b"" if body is None else orjson.dumps(body)
        head = f"{what} HTTP/1.1\nhost: h\nauthorization: Bearer {key}\ncontent-length: {len(data)}\n"
        return await self.gateway.ask(head, data)


@pytest.fixture
async def world(open_gateway: OpenScripted) -> World:
    gateway, _ = await open_gateway(auth=True)
    return World(gateway)


async def test_limits_are_set_by_an_admin_and_seen_by_the_tenant(world: World) -> None:
    """With what is used; the first time it is 201."""
    admin, member = await world.key(Role.ADMIN, "default"), await world.key()
    limits = {"sandboxes": 3, "vcpu": 2.5}
    made = await world.ask("PUT /v1/tenants/acme", admin, {"limits": {"sandboxes": 3, "vcpu": "2500m"}})
    assert (made.status, made.json["limits"]) == (201, limits)
    assert (await world.ask("PUT /v1/tenants/acme", admin, {"limits": limits})).status == 200

    seen = await world.ask("GET /v1/tenants/self", member)
    assert (seen.status, seen.json["name"], seen.json["limits"]) == (200, "acme", limits)
    assert seen.json["used"]["sandboxes"] == 0
    assert (await world.ask("GET /v1/tenants/acme", admin)).json == seen.json
    assert seen.json in (await world.ask("GET /v1/tenants", admin)).json["tenants"]


@pytest.mark.parametrize("role", [Role.MEMBER, Role.VIEWER, Role.OPERATOR])
async def test_others_than_admins_set_no_limits_and_see_no_other_tenants(world: World, role: Role) -> None:
    """403, whichever tenant it is about."""
    key = await world.key(role)
    for what in ("GET /v1/tenants", "GET /v1/tenants/acme", "PUT /v1/tenants/acme", "DELETE /v1/tenants/acme"):
        assert (await world.ask(what, key, {})).status == 403


@pytest.mark.parametrize(
    ("what", "body", "status", "text"),
    [
        ("PUT /v1/tenants/acme", {"limits": {"sandbox": 1}}, 400, "limits.sandbox: unknown limit; did you mean"),
        ("PUT /v1/tenants/acme", {"sandboxes": 1}, 400, "sandboxes: unknown field; expected limits"),
        ("PUT /v1/tenants/acme", {"limits": 5}, 400, "expected fields such as sandboxes: 20"),
        ("PUT /v1/tenants/Acme", {}, 400, "expected a name"),
        ("GET /v1/tenants/nobody", None, 404, "no tenant 'nobody'"),
        ("DELETE /v1/tenants/nobody", None, 404, "no tenant 'nobody'"),
        ("DELETE /v1/tenants/default?sessions=maybe", None, 400, "sessions: expected keep or end"),
    ],
)
async def test_wrong_request_is_refused(world: World, what: str, body: Any, status: int, text: str) -> None:
    """With what is wrong, and nothing changes."""
    answer = await world.ask(what, await world.key(Role.ADMIN, "default"), body)
    assert (answer.status, text in answer.json["error"]) == (status, True), answer.json


async def test_deleted_tenant_has_no_keys_and_no_tokens(world: World) -> None:
    """Also tokens that name it; its sessions stay, unless they are to end too."""
    admin, member = await world.key(Role.ADMIN, "default"), await world.key()
    lifecycle, store = world.gateway.gateway.lifecycle, world.gateway.gateway.store
    with acting_as(Identity(Role.MEMBER, "acme")):
        session = (await lifecycle.create(KEY)).session
        token, _ = world.authenticator.issue_session_token(session, 60.0, subject="", paths=(), ports=())
    with acting_as(Identity(Role.MEMBER, "other")):
        others = (await lifecycle.create(KEY)).session
    assert (await world.ask("GET /v1/caller", member)).status == 200

    assert (await world.ask("DELETE /v1/tenants/acme", admin)).status == 204
    assert [(await world.ask("GET /v1/caller", each)).status for each in (member, token)] == [401, 401]
    assert (await world.ask("GET /v1/tenants/acme", admin)).status == 404
    kept = await store.get(session.id)
    assert kept is not None
    assert kept.state is SessionState.ACTIVE

    await world.ask("PUT /v1/tenants/acme", admin, {})
    assert (await world.ask("GET /v1/caller", member)).status == 401  # the key is revoked, not hidden
    assert (await world.ask("DELETE /v1/tenants/acme?sessions=end", admin)).status == 204
    ended = await store.get(session.id)
    assert ended is not None
    assert (ended.state, ended.reason) == (SessionState.TERMINATED, "its tenant was deleted")
    left = await store.get(others.id)
    assert left is not None
    assert left.state is SessionState.ACTIVE


@pytest.mark.parametrize("sessions", ["keep", "end"])
async def test_tenant_of_everybody_is_not_deleted(open_gateway: OpenScripted, sessions: str) -> None:
    """Without authentication all act for it: their sessions would end, and its keys be refused once some are made."""
    gateway, _ = await open_gateway()
    session = await gateway.session()
    answer = await gateway.ask(f"DELETE /v1/tenants/default?sessions={sessions} HTTP/1.1\nhost: h")
    assert (answer.status, answer.json["code"]) == (409, "CONFLICT")
    assert (await gateway.ask(f"GET /v1/sessions/{session} HTTP/1.1\nhost: h")).json["state"] == "active"
