"""An agent is its tenant's: for others neither it nor its runtime exists, and they cannot take its rights."""

from __future__ import annotations

import httpx

from gateway.core.identity import Role
from tests.support.scripted import OpenScripted
from tests.support.waiting import LIMIT_S

SPEC = {
    "targetPort": [{"port": 8080, "protocol": "HTTP"}],
    "podTemplate": {"spec": {"containers": [{"name": "a", "image": "x", "command": ["true"]}]}},
}
PATH = "/v1/namespaces/acme/agent-runtimes/greeter/invocations/"


async def test_another_tenants_agent_does_not_exist(open_gateway: OpenScripted) -> None:
    """Read, changed, used or listed; a viewer of its own tenant reads it and changes nothing."""
    gateway, _ = await open_gateway(auth=True)
    authenticator = gateway.gateway.surfaces.keys.authenticator
    assert authenticator is not None
    keys = {}
    for name, tenant, role in (
        ("owner", "acme", Role.MEMBER), ("viewer", "acme", Role.VIEWER), ("other", "other", Role.MEMBER),
        ("admin", "default", Role.ADMIN),
    ):  # fmt: skip
        keys[name] = (await authenticator.directory.create(role=role, tenant=tenant))[0]

    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=LIMIT_S) as client:

        async def ask(who: str, method: str, path: str, **more: object) -> httpx.Response:
            headers = {"authorization": f"Bearer {keys[who]}", "host": "h"}
            return await client.request(method, path, headers=headers, **more)  # type: ignore[arg-type]

        made = await ask("owner", "POST", "/v1/agents", json={"name": "greeter", "spec": SPEC})
        assert (made.status_code, made.json()["namespace"], made.json()["owner"]) == (201, "acme", "acme")
        for method, path in (
            ("GET", "/v1/agents/greeter"), ("PATCH", "/v1/agents/greeter"), ("DELETE", "/v1/agents/greeter"),
            ("POST", "/v1/agents/greeter/stop"), ("POST", "/v1/agents/greeter/start"),
            ("GET", "/v1/agents/greeter/revisions"), ("GET", "/v1/agents/greeter/rollout"),
            ("GET", "/api/v1/agents/greeter"), ("DELETE", "/api/v1/agents/greeter"),
        ):  # fmt: skip
            for query in ("", "?namespace=acme"):
                reply = await ask("other", method, path + query, json={} if method == "PATCH" else None)
                assert reply.status_code == 404, f"{method} {path}{query}: {reply.text}"
        assert (await ask("other", "GET", PATH)).status_code == 404
        session = {"runtime": {"namespace": "acme", "name": "greeter", "kind": "AgentRuntime"}}
        assert (await ask("other", "POST", "/v1/sessions", json=session)).status_code == 404
        for path in ("/v1/agents", "/v1/runtimes"):
            assert "greeter" not in (await ask("other", "GET", path)).text
            assert "greeter" in (await ask("owner", "GET", path)).text
            assert "greeter" in (await ask("admin", "GET", path)).text
        taken = await ask("other", "POST", "/v1/agents", json={"name": "greeter", "spec": SPEC})
        assert (taken.status_code, taken.json()["namespace"]) == (201, "other")
        assert (await ask("viewer", "GET", "/v1/agents/greeter")).status_code == 200
        assert (await ask("viewer", "POST", "/v1/agents/greeter/stop")).status_code == 403
        for refused in (
            {"owner": "acme"}, {"namespace": "acme"}, {"spec": SPEC | {"wakegate": {"egress": ["any"]}}},
            {"spec": SPEC | {"wakegate": {"secrets": [{"name": "KEY", "hosts": ["h"]}]}}},
        ):  # fmt: skip
            reply = await ask("other", "POST", "/v1/agents", json={"name": "more", "spec": SPEC, **refused})
            assert reply.status_code == 403, reply.text
