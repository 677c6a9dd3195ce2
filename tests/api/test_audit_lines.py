"""GET /v1/sessions/{id}/audit: by role, of one's own tenant, without what is in a session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from gateway.api.audit_lines import line_for
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import SessionId
from tests.support.records import session
from tests.support.scripted import OpenScripted, Served, key_of
from tests.support.waiting import LIMIT_S, eventually

ACME = replace(session("s1"), tenant="acme")
DETAIL = {
    "operation": "run",
    "path": "/api/files/plan.txt",
    "text": "rm",
    "names": "a, b",
    "query": "path=x",
    "bytes": 3,
}
MEMBER, OPERATOR, ADMIN = Identity(Role.MEMBER, "acme"), Identity(Role.OPERATOR, "ops"), Identity(Role.ADMIN, "ops")


def client_of(gateway: Served) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=LIMIT_S)


def line(**actor: str) -> dict[str, Any]:
    return {"time": "t", "seq": 7, "action": "code.run", "actor": actor, "status": 200, "detail": DETAIL}


def test_member_reads_lines_of_the_own_tenant_only() -> None:
    """All of them, with contents; of those that others made by claiming the session's id, none."""
    own = line(subject="ann", tenant="acme", role="member", key_id="k1", address="10.0.0.7")
    found = line_for(MEMBER, ACME, own)
    assert found is not None
    assert found["actor"] == {
        "subject": "ann",
        "tenant": "acme",
        "role": "member",
        "keyId": "k1",
        "address": "10.0.0.7",
    }
    assert (found["detail"], found["line"]) == (DETAIL, 7)
    assert line_for(MEMBER, ACME, line(subject="eve", tenant="other", role="member", address="10.0.0.9")) is None
    assert line_for(MEMBER, ACME, line(subject="anonymous", address="10.0.0.9")) is None
    assert line_for(OPERATOR, ACME, line(subject="eve", tenant="other", role="member")) is not None


def test_member_does_not_learn_who_an_operator_is() -> None:
    """What was done, and that an operator did it, or the gateway by itself."""
    found = line_for(MEMBER, ACME, line(subject="bob", tenant="ops", role="operator", key_id="k9", address="10.0.0.1"))
    assert found is not None
    assert found["actor"] == {"role": "operator"}
    found = line_for(MEMBER, ACME, line(subject="system", role="admin"))
    assert found is not None
    assert found["actor"] == {"subject": "system", "role": "admin"}


def test_operator_does_not_read_what_is_in_a_session() -> None:
    """No names of files, commands or code; an administrator reads all."""
    own = line(subject="ann", tenant="acme", role="member")
    found, all_of_it = line_for(OPERATOR, ACME, own), line_for(ADMIN, ACME, own)
    assert found is not None
    assert found["detail"] == {"operation": "run", "bytes": 3}
    assert all_of_it is not None
    assert all_of_it["detail"] == DETAIL


async def test_lines_of_a_session_are_read_back(open_gateway: OpenScripted, tmp_path: Path) -> None:
    """By those who see it and may; another tenant's session is none; parameters are checked."""
    trail = tmp_path / "audit" / "trail.log"
    trail.parent.mkdir()
    gateway, _ = await open_gateway(auth=True, audit_log=str(trail))
    with acting_as(Identity(Role.MEMBER, "acme")):
        made = await gateway.session()
    keys = {role: await key_of(gateway, "acme", role) for role in (Role.MEMBER, Role.VIEWER)}
    other = await key_of(gateway, "other")
    path = f"/v1/sessions/{made}/audit"
    async with client_of(gateway) as client:

        def as_(key: str) -> dict[str, str]:
            return {"authorization": f"Bearer {key}"}

        async def actions() -> list[str]:
            return [
                each["action"] for each in (await client.get(path, headers=as_(keys[Role.MEMBER]))).json()["events"]
            ]

        await client.patch(f"/v1/sessions/{made}", json={"metadata": {"a": "b"}}, headers=as_(keys[Role.MEMBER]))
        refused = await client.delete(f"/v1/sessions/{made}", headers=as_(other))
        assert refused.status_code == 404
        await eventually(lambda: trail.read_bytes().count(made.encode()) > 2, "the trail has both")
        assert (await actions())[0] == "session.update"
        assert "session.delete" not in await actions()
        few = (await client.get(path + "?limit=1", headers=as_(keys[Role.MEMBER]))).json()
        assert (len(few["events"]), few["complete"]) == (1, False)
        assert (await client.get(path, headers=as_(keys[Role.VIEWER]))).status_code == 403
        assert (await client.get(path, headers=as_(other))).status_code == 404
        for wrong in ("limit=0", "limit=501", "limit=%C2%B2", "page=1"):
            reply = await client.get(f"{path}?{wrong}", headers=as_(keys[Role.MEMBER]))
            assert (reply.status_code, reply.json()["error"].startswith(wrong.partition("=")[0] + ":")) == (400, True)
    assert (await gateway.gateway.store.get(SessionId(made))) is not None


async def test_gateway_without_a_trail_says_so(open_gateway: OpenScripted) -> None:
    """And how there will be one."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        reply = await client.get(f"/v1/sessions/{await gateway.session()}/audit")
    assert (reply.status_code, reply.json()["code"]) == (404, "NO_AUDIT_TRAIL")
    assert "--audit-log" in reply.json()["error"]
