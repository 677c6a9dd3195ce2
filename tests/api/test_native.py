"""The control surfaces: AgentCube's, byte for byte where its clients look, and Wakegate's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest

from gateway.api import session_search
from gateway.api.native import _page
from gateway.api.session_list import cursor_of
from gateway.core.errors import SandboxStartError
from gateway.core.model import PoolStatus, RuntimeKey
from gateway.runtimes.catalog import default_runtime
from gateway.testing import ScriptedProvider
from tests.support.scripted import KEY, SHARED, OpenScripted, ScriptedSandbox, Served, served

ON_UVLOOP = True
NAMED = {"name": "my-interpreter", "namespace": "default"}


@asynccontextmanager
async def client_of(gateway: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=20) as client:
        yield client


# AgentCube's control plane


async def test_agentcube_create_answers_what_its_sdk_reads(open_gateway: OpenScripted) -> None:
    """Fields in its order; warm is SandboxClaim, cold is Sandbox; the entry point is this gateway."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        reply = await client.post("/v1/code-interpreter", json={**NAMED, "ttl": 3600, "metadata": {}, "unknown": 1})
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "application/json; charset=utf-8"
        body = reply.json()
        assert list(body) == ["kind", "sessionId", "sandboxId", "sandboxName", "entryPoints"]
        assert body["kind"] == "SandboxClaim"
        host = gateway.url.removeprefix("http://")
        assert body["entryPoints"] == [{"path": "/", "protocol": "HTTP", "endpoint": host}]
    # A pool of its own that is empty from the start: one that is resized, the autoscaler may fill again meanwhile.
    gateway, _ = await open_gateway(runtimes=[default_runtime(0)])
    async with client_of(gateway) as client:
        assert (await client.post("/v1/code-interpreter", json=NAMED)).json()["kind"] == "Sandbox"


async def test_agentcube_create_honours_ttl_and_metadata(open_gateway: OpenScripted) -> None:
    """Unlike theirs."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        made = (
            await client.post("/v1/code-interpreter", json={**NAMED, "ttl": 60, "metadata": {"a": 1, "b": "c"}})
        ).json()
        shown = (await client.get(f"/v1/sessions/{made['sessionId']}")).json()
    lasts = datetime.fromisoformat(shown["expiresAt"]) - datetime.fromisoformat(shown["createdAt"])
    assert (lasts.total_seconds(), shown["metadata"]) == (60, {"a": "1", "b": "c"})


@SHARED
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "Invalid request body"),
        (b"{", 400, "Invalid request body"),
        (b"[]", 400, "Invalid request body"),
        (b"null", 400, "Invalid request body"),
        (b'{"name": "x", "name": ', 400, "Invalid request body"),
        (b"\xff\xfe", 400, "Invalid request body"),
        (b'{"a": ' + b"[" * 100_000, 400, "Invalid request body"),
        (b'{"name": 5, "namespace": "default"}', 400, "Invalid request body"),
        (b"{}", 400, "namespace is required"),
        (b'{"namespace": ""}', 400, "namespace is required"),
        (b'{"namespace": "default"}', 400, "name is required"),
        (b'{"namespace": "default", "name": "nope"}', 404, "code interpreter not found"),
        (b'{"namespace": "\\u0000", "name": "../x"}', 404, "code interpreter not found"),
        (b'{"name": "' + b"x" * (2 << 20) + b'"}', 400, "Invalid request body"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
async def test_agentcube_create_refuses_with_agentcubes_messages(
    kept_gateway: tuple[Served, ScriptedSandbox], body: bytes, status: int, message: str
) -> None:
    """Whatever the Content-Type says."""
    gateway, _ = kept_gateway
    before = gateway.provider.claims
    async with client_of(gateway) as client:
        reply = await client.post("/v1/code-interpreter", content=body, headers={"content-type": "text/plain"})
        assert (reply.status_code, reply.json()) == (status, {"message": message})
    assert gateway.provider.claims == before


@SHARED
@pytest.mark.parametrize("ttl", [0, -1, True, "soon", [], {}, 1e300, "1e9h", 10**30])
async def test_wrong_ttl_is_reported(kept_gateway: tuple[Served, ScriptedSandbox], ttl: Any) -> None:
    """On both surfaces, naming the field."""
    gateway, _ = kept_gateway
    before = gateway.provider.claims
    async with client_of(gateway) as client:
        for path, body in (("/v1/code-interpreter", NAMED), ("/v1/sessions", {"runtime": "my-interpreter"})):
            reply = await client.post(path, json={**body, "ttl": ttl})
            assert reply.status_code == 400
            assert "ttl" in reply.text
    assert gateway.provider.claims == before


async def test_agentcube_other_kind_is_not_found_by_its_name(open_gateway: OpenScripted) -> None:
    """A name of one kind is none of the other."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        reply = await client.post("/v1/agent-runtime", json=NAMED)
        assert (reply.status_code, reply.json()) == (404, {"message": "agent runtime not found"})


async def test_agentcube_delete_is_200_once_and_then_404(open_gateway: OpenScripted) -> None:
    """Either kind's path deletes; the second time it says so in its words."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        for kind in ("code-interpreter", "agent-runtime"):
            session = (await client.post("/v1/code-interpreter", json=NAMED)).json()["sessionId"]
            path = f"/v1/{kind}/sessions/{session}"
            reply = await client.request("DELETE", path, headers={"content-type": "application/json"})
            assert (reply.status_code, reply.json()) == (200, {"message": "Sandbox deleted successfully"})
            reply = await client.delete(path)
            message = f"Session ID {session} not found, maybe already deleted"
            assert (reply.status_code, reply.json()) == (404, {"message": message})
    assert await gateway.provider.list() == []


async def test_agentcube_double_slash_is_understood(open_gateway: OpenScripted) -> None:
    """Its SDK makes one of a base URL that ends in a slash."""
    gateway, _ = await open_gateway()
    answer = await gateway.ask(
        "POST //v1/code-interpreter HTTP/1.1\nhost: h\ncontent-length: 49",
        b'{"name":"my-interpreter", "namespace":"default" }',
    )
    assert answer.status == 200
    answer = await gateway.ask(f"DELETE //v1/code-interpreter/sessions/{answer.json['sessionId']} HTTP/1.1\nhost: h")
    assert answer.status == 200


@SHARED
@pytest.mark.parametrize(
    ("path", "body"),
    [("/health", {"status": "healthy"}), ("/health/live", {"status": "alive"}), ("/health/ready", {"status": "ready"})],
)
async def test_agentcube_health_answers(
    kept_gateway: tuple[Served, ScriptedSandbox], path: str, body: dict[str, str]
) -> None:
    """Both planes' checks, also with a session header on them."""
    gateway, sandbox = kept_gateway
    async with client_of(gateway) as client:
        reply = await client.get(path, headers={"x-session-id": await gateway.session()})
        assert (reply.status_code, reply.json()) == (200, body)
    assert sandbox.requests == []


async def test_agentcube_start_failure_has_a_reason(open_gateway: OpenScripted) -> None:
    """503 with Retry-After, in this surface's shape."""
    gateway, _ = await open_gateway()
    gateway.provider.fail_with = SandboxStartError("bwrap is missing")
    async with client_of(gateway) as client:
        reply = await client.post("/v1/code-interpreter", json=NAMED)
        assert (reply.status_code, reply.json()) == (503, {"message": "bwrap is missing"})
        assert reply.headers["retry-after"] == "1"


# Our own


async def test_native_session_is_created_used_and_deleted(open_gateway: OpenScripted) -> None:
    """201 with Location, then shown, used, deleted, gone."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        reply = await client.post(
            "/v1/sessions", json={"runtime": "my-interpreter", "idleTimeout": "5m", "metadata": {"k": "v"}}
        )
        made = reply.json()
        assert reply.status_code == 201
        assert reply.headers["location"] == f"/v1/sessions/{made['id']}"
        assert reply.headers["x-session-id"] == reply.headers["x-agentcube-session-id"] == made["id"]
        assert reply.headers["x-wakegate-start"] == made["start"] == "warm"
        assert made["runtime"] == {"namespace": "default", "name": "my-interpreter", "kind": "CodeInterpreter"}
        assert (made["state"], made["idleTimeout"], made["metadata"]) == ("active", 300.0, {"k": "v"})
        assert made["createdAt"].endswith("Z")
        assert (await client.get(f"/v1/sessions/{made['id']}")).json()["id"] == made["id"]
        assert (await client.get("/x", headers={"x-session-id": made["id"]})).status_code == 200
        reply = await client.delete(f"/v1/sessions/{made['id']}")
        assert (reply.status_code, reply.content) == (204, b"")
        assert (await client.delete(f"/v1/sessions/{made['id']}")).status_code == 404
        shown = (await client.get(f"/v1/sessions/{made['id']}")).json()
        assert (shown["state"], shown["reason"], shown["sandboxId"]) == ("terminated", "deleted by its user", None)
        reply = await client.get("/x", headers={"x-session-id": made["id"]})
        assert (reply.status_code, reply.json()["code"]) == (404, "SESSION_NOT_FOUND")


async def test_native_use_shows_as_activity_at_once(open_gateway: OpenScripted) -> None:
    """Before any of it reached the store."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        made = (await client.post("/v1/sessions", json={"runtime": "my-interpreter"})).json()
        await client.get("/x", headers={"x-session-id": made["id"]})
        shown = (await client.get(f"/v1/sessions/{made['id']}")).json()
    assert shown["lastActiveAt"] > made["lastActiveAt"]


@SHARED
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"runtime": ""}, "runtime: expected"),
        ({"runtime": 5}, "runtime: expected"),
        ({"runtime": {"kind": "Nope", "name": "x"}}, "runtime: expected"),
        ({"runtime": {"namespace": "x"}}, "runtime: expected"),
        ({"runtime": "my-interpreter", "ttll": 5}, "ttll: unknown field"),
        ({"runtime": "my-interpreter", "idleTimeout": "x"}, "idleTimeout: expected a duration"),
        ({"runtime": "my-interpreter", "metadata": []}, "metadata: expected an object"),
        ({"runtime": "my-interpreter", "metadata": {"a": {}}}, "metadata.a: expected text"),
        ({"runtime": "my-interpreter", "metadata": {"a": "x" * 5000}}, "metadata.a: keys hold at most"),
        ({"runtime": "my-interpreter", "metadata": {str(n): "" for n in range(65)}}, "metadata: expected an object"),
        ([], "the body must be a JSON object"),
    ],
)
async def test_native_create_names_the_wrong_field(
    kept_gateway: tuple[Served, ScriptedSandbox], body: Any, problem: str
) -> None:
    """400 in JSON, and nothing is claimed."""
    gateway, _ = kept_gateway
    before = gateway.provider.claims
    async with client_of(gateway) as client:
        reply = await client.post("/v1/sessions", json=body)
        assert (reply.status_code, reply.json()["code"]) == (400, "BAD_REQUEST")
        assert reply.json()["error"].startswith(problem)
    assert gateway.provider.claims == before


async def test_native_create_of_an_unknown_runtime_is_404(open_gateway: OpenScripted) -> None:
    """In each notation."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        for runtime in ("nope", "a/b", "a/b/c", {"name": "my-interpreter", "kind": "AgentRuntime"}, {"name": "\0"}):
            reply = await client.post("/v1/sessions", json={"runtime": runtime})
            assert (reply.status_code, reply.json()["code"]) == (404, "RUNTIME_NOT_FOUND")


async def test_native_list_pages_and_filters(open_gateway: OpenScripted) -> None:
    """Every session exactly once over the pages, newest first; `next` is null at the end; ended ones where asked."""
    gateway, _ = await open_gateway()
    made = [await gateway.session() for _ in range(7)]
    await gateway.gateway.lifecycle.terminate(made[0], "x")
    async with client_of(gateway) as client:
        seen: list[str] = []
        parameters: dict[str, str] = {"limit": "3", "state": "all"}
        while True:
            page = (await client.get("/v1/sessions", params=parameters)).json()
            seen += [session["id"] for session in page["sessions"]]
            if page["next"] is None:
                break
            parameters["after"] = page["next"]
        assert seen == made[::-1]
        assert [each["id"] for each in (await client.get("/v1/sessions")).json()["sessions"]] == made[:0:-1]
        ended = (await client.get("/v1/sessions", params={"state": "terminated"})).json()
        assert [each["id"] for each in ended["sessions"]] == made[:1]
        gone = await client.get("/v1/sessions", params={"after": "nobody"})
        assert (gone.status_code, gone.json()["error"][:6]) == (400, "after:")
        active = (await client.get("/v1/sessions", params={"state": "active"})).json()
        assert {session["id"] for session in active["sessions"]} == set(made[1:])
        for runtime, count in (("my-interpreter", 6), ("default/my-interpreter", 6), ("other/my-interpreter", 0)):
            page = (await client.get("/v1/sessions", params={"runtime": runtime})).json()
            assert len(page["sessions"]) == count


async def test_native_list_filters_by_metadata_and_is_bounded_in_bytes(open_gateway: OpenScripted) -> None:
    """All the keys that are named must have their values; a page ends before it is too large, and leads on."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        made = []
        for number in range(3):
            metadata = {"user": f"u{number}", "team": "a", **{f"k{index}": "x" * 4000 for index in range(3)}}
            made.append((await client.post("/v1/sessions", json={"metadata": metadata})).json()["id"])
        found = (await client.get("/v1/sessions?metadata.user=u1&metadata.team=a")).json()["sessions"]
        assert [each["id"] for each in found] == [made[1]]
        assert (await client.get("/v1/sessions?metadata.user=u1&metadata.team=b")).json()["sessions"] == []
        too_much = await client.post("/v1/sessions", json={"metadata": {f"k{index}": "é" * 2000 for index in range(5)}})
        assert (too_much.status_code, too_much.json()["error"][:9]) == (400, "metadata:")
    sessions = [replace(await gateway.gateway.lifecycle.get(each), metadata={"k": "x" * 600_000}) for each in made]
    page = _page(sessions, None)
    assert ([each["id"] for each in page["sessions"]], page["next"]) == (made[:1], cursor_of(sessions[0]))


async def test_search_finds_what_the_list_shows_and_nothing_else(open_gateway: OpenScripted) -> None:
    """Words of ids, states, runtimes and metadata, together with other filters; not names of fields, nor what is
    private; pages lead on, each session once."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        made = []
        for number in range(5):
            metadata = {"user": f"Ann-{number}", "note": "a=b/c"}
            made.append((await client.post("/v1/sessions", json={"metadata": metadata})).json()["id"])
        await gateway.gateway.lifecycle.terminate(made[4], "x")

        async def found(search: str, **more: str) -> list[str]:
            ids: list[str] = []
            after: dict[str, str] = {}
            while True:
                page = (await client.get("/v1/sessions", params={"search": search, **more, **after})).json()
                ids += [each["id"] for each in page["sessions"]]
                if page["next"] is None:
                    return ids
                after = {"after": page["next"]}

        live = made[3::-1]
        assert await found(made[2][4:20].upper()) == [made[2]]
        assert await found("user=ann-1") == [made[1]]
        assert await found("ANN- default/my-int active note=A=B/c", limit="3") == live
        assert await found("ann-1 ann-2") == []
        for shown_nowhere in ("created_at", "idle_timeout", "user:ann", "lost"):
            assert await found(shown_nowhere) == [], shown_nowhere
        assert await found("ann-4") == []
        assert await found("ann-4", state="all") == [made[4]]
        assert await found("ann-4 terminated", state="terminated") == [made[4]]
        assert await found("ann", runtime="other/my-interpreter") == []
        assert await found("  ") == live


async def test_search_of_many_sessions_is_bounded_and_leads_on(
    open_gateway: OpenScripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What costs too much goes on with the next request: short pages, in the end every session that is found, once."""
    gateway, _ = await open_gateway()
    made = [await gateway.session() for _ in range(6)]
    monkeypatch.setattr(session_search, "_PAGE", 2)
    monkeypatch.setattr(session_search, "MAX_COST", 20)
    async with client_of(gateway) as client:
        pages: list[list[str]] = []
        after: dict[str, str] = {}
        while not pages or after:
            reply = (await client.get("/v1/sessions", params={"search": "my-interpreter active", **after})).json()
            pages.append([each["id"] for each in reply["sessions"]])
            after = {"after": reply["next"]} if reply["next"] else {}
        assert pages == [[made[5], made[4]], [made[3], made[2]], [made[1], made[0]], []]
        assert (await client.get("/v1/sessions", params={"search": "created_at"})).json()["next"] is not None
        for wrong in ("x" * 201, "a b c d e f g h i"):
            reply = await client.get("/v1/sessions", params={"search": wrong})
            assert (reply.status_code, reply.json()["error"][:7]) == (400, "search:")


async def test_list_goes_on_behind_a_session_whose_record_is_gone(open_gateway: OpenScripted) -> None:
    """`next` says where, not only behind whom; what is no cursor is refused."""
    gateway, _ = await open_gateway()
    made = [await gateway.session() for _ in range(3)]
    async with client_of(gateway) as client:
        page = (await client.get("/v1/sessions", params={"limit": "1"})).json()
        await gateway.gateway.store.delete(made[2])
        rest = (await client.get("/v1/sessions", params={"after": page["next"]})).json()["sessions"]
        assert [each["id"] for each in rest] == [made[1], made[0]]
        for wrong in (f"{made[2]}@", f"{made[2]}@nan", f"{made[2]}@{'9' * 40}", "é@1.0"):
            reply = await client.get("/v1/sessions", params={"after": wrong})
            assert (reply.status_code, reply.json()["error"][:16]) == (400, "after: malformed")


async def test_native_create_without_a_runtime_takes_the_built_in_one(open_gateway: OpenScripted) -> None:
    """So that an empty object is enough."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        reply = await client.post("/v1/sessions", json={})
        assert (reply.status_code, reply.json()["runtime"]["name"]) == (201, "my-interpreter")


@SHARED
@pytest.mark.parametrize(
    "query",
    [
        "state=nope",
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "limit=%D9%A3",
        "limit=" + "9" * 5000,
        "page=2",
        "runtime=",
    ],
)
async def test_native_list_refuses_wrong_parameters(kept_gateway: tuple[Served, ScriptedSandbox], query: str) -> None:
    """Naming the one that is wrong."""
    gateway, _ = kept_gateway
    async with client_of(gateway) as client:
        reply = await client.get("/v1/sessions?" + query)
        assert (reply.status_code, reply.json()["code"]) == (400, "BAD_REQUEST")
        assert reply.json()["error"].startswith(query.partition("=")[0] + ": ")


@SHARED
@pytest.mark.parametrize("session", ["nobody", "%00", "%2F", "%ff", "..", "a" * 5000])
async def test_native_odd_session_ids_are_not_found(kept_gateway: tuple[Served, ScriptedSandbox], session: str) -> None:
    """404 for all that is no session, whatever bytes it has."""
    gateway, _ = kept_gateway
    for method in ("GET", "DELETE"):
        answer = await gateway.ask(f"{method} /v1/sessions/{session} HTTP/1.1\nhost: h")
        assert answer.status == 404


async def test_native_runtimes_show_their_pools(open_gateway: OpenScripted) -> None:
    """What is served, and how each pool stands."""
    gateway, _ = await open_gateway()
    await gateway.session()
    async with client_of(gateway) as client:
        [runtime] = (await client.get("/v1/runtimes")).json()["runtimes"]
    assert (runtime["namespace"], runtime["name"], runtime["kind"]) == ("default", "my-interpreter", "CodeInterpreter")
    assert (runtime["sessionTimeout"], runtime["maxSessionDuration"]) == (900.0, 28800.0)
    assert (runtime["pool"]["target"], runtime["pool"]["ready"], runtime["pool"]["claimed"]) == (3, 3, 1)


class Starting(ScriptedProvider):
    """A provider whose pool is as the test says."""

    pool = PoolStatus(KEY, 3, 0, 2, 0, 1, "no such image")

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        return self.pool


async def test_readyz_waits_for_each_pool(tmp_path: Any) -> None:
    """503 with the runtime and its problem until there is a first sandbox, or the pool has given up for now."""
    provider = Starting()
    async with served(tmp_path, provider) as gateway, client_of(gateway) as client:
        reply = await client.get("/readyz")
        assert reply.status_code == 503
        [reason] = reply.json()["reasons"]
        assert (
            reason
            == "code-interpreters/default/my-interpreter: no warm sandbox yet, 2 starting; last failure: no such image"
        )
        reply = await client.get("/health/ready")
        assert (reply.status_code, reply.json()) == (503, {"error": reason, "status": "not ready"})
        for settled in (PoolStatus(KEY, 3, 1, 2, 0, 0), PoolStatus(KEY, 3, 0, 0, 0, 3), PoolStatus(KEY, 0, 0, 0, 0, 0)):
            provider.pool = settled
            assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert (await client.get("/healthz")).status_code == 200


async def test_readyz_stays_when_a_runtime_is_added_later(tmp_path: Any) -> None:
    """Its pool is empty for every replica at once: none of them leaves the sessions that it serves."""
    provider = Starting()
    async with served(tmp_path, provider) as gateway, client_of(gateway) as client:
        for pool, status in ((provider.pool, 503), (PoolStatus(KEY, 3, 1, 2, 0, 0), 200), (provider.pool, 200)):
            provider.pool = pool
            assert (await client.get("/readyz")).status_code == status


class Hanging(Starting):
    """Its agents hang when they are started."""

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        return PoolStatus(runtime, 1, 0, 1, 0, 0) if runtime.revision else PoolStatus(KEY, 0, 0, 0, 0, 0)


async def test_readyz_waits_for_no_agent_that_somebody_deployed(tmp_path: Any) -> None:
    """One that hangs takes minutes to fail, and would hold each gateway up that starts."""
    container = {"name": "agent", "image": "x", "command": ["python3", "agent.py"]}
    spec = {"targetPort": [{"port": 8080}], "podTemplate": {"spec": {"containers": [container]}}}
    async with served(tmp_path, Hanging()) as gateway, client_of(gateway) as client:
        made = await client.post("/v1/agents", json={"name": "hangs", "spec": spec})
        assert made.status_code == 201, made.text
        assert (await client.get("/readyz")).json() == {"status": "ready"}


async def test_readyz_reports_an_unavailable_store(open_gateway: OpenScripted) -> None:
    """And so does what needs it, with 503 and Retry-After; /healthz stays well."""
    gateway, _ = await open_gateway()
    await gateway.gateway.store.aclose()
    async with client_of(gateway) as client:
        reply = await client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["reasons"][0].startswith("the session store does not answer: ")
        assert (await client.get("/health/ready")).status_code == 503  # it has not answered yet
        for reply in (
            await client.post("/v1/sessions", json={"runtime": "my-interpreter"}),
            await client.get("/v1/sessions"),
            await client.get("/x", headers={"x-session-id": "s"}),
        ):
            assert (reply.status_code, reply.json()["code"]) == (503, "STORE_UNAVAILABLE")
            assert reply.headers["retry-after"]
        assert (await client.get("/healthz")).status_code == 200
    await gateway.gateway.store.start()


async def test_readyz_reports_an_unwritable_state_directory(open_gateway: OpenScripted) -> None:
    """Not writable is not ready: no workspace could be made there."""
    gateway, _ = await open_gateway()
    state = gateway.gateway.settings.state_dir
    async with client_of(gateway) as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        state.rename(moved := state.with_name("moved"))
        reply = await client.get("/readyz")
        moved.rename(state)
    assert reply.status_code == 503
    reasons = reply.json()["reasons"]
    assert len(reasons) == 2
    assert "session store <path> was removed while this gateway ran" in reasons[0]
    assert reasons[1] == "the state directory <path> cannot be written to: No such file or directory"


async def test_health_ready_stays_while_the_store_is_unavailable(open_gateway: OpenScripted) -> None:
    """/health/ready, for load balancers, stays 200 where /readyz reports a problem; a drain turns both to 503."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        assert (await client.get("/health/ready")).json() == {"status": "ready"}
        await gateway.gateway.store.aclose()
        statuses = [(await client.get(path)).status_code for path in ("/readyz", "/health/ready")]
        assert statuses == [503, 200]
        gateway.gateway.shutdown.drain()
        reply = await client.get("/health/ready")
        assert (reply.status_code, reply.json()["error"]) == (503, "this gateway is shutting down")
    await gateway.gateway.store.start()


async def test_readyz_reports_a_drain(open_gateway: OpenScripted) -> None:
    """A balancer stops sending before the listener goes away."""
    gateway, _ = await open_gateway()
    async with client_of(gateway) as client:
        gateway.gateway.shutdown.drain()
        reply = await client.get("/readyz")
        assert (reply.status_code, reply.json()["reasons"]) == (503, ["this gateway is shutting down"])
        reply = await client.get("/x", headers={"x-wakegate-runtime": "my-interpreter"})
        assert (reply.status_code, reply.json()["code"]) == (503, "DRAINING")


async def test_slow_body_of_a_control_request_gets_408(open_gateway: OpenScripted) -> None:
    """A client that promises a body and sends none does not hold the connection for ever."""
    gateway, _ = await open_gateway(request_idle_timeout=0.3)
    for path, key in (("/v1/sessions", "error"), ("/v1/code-interpreter", "message")):
        client = await gateway.connect()
        await client.send(f"POST {path} HTTP/1.1\nhost: h\ncontent-length: 10\n\nab")
        answer = await client.answer()
        assert answer.status == 408
        assert key in answer.json
        await client.closed()


async def test_client_that_leaves_while_its_session_is_made_leaves_nothing_behind(open_gateway: OpenScripted) -> None:
    """Neither a sandbox without a session nor a session without a client is left."""
    gateway, _ = await open_gateway()
    gateway.provider.hold = asyncio.Event()
    client = await gateway.connect()
    await client.send('POST /v1/sessions HTTP/1.1\nhost: h\ncontent-length: 29\n\n{"runtime": "my-interpreter"}')
    client.abort()
    gateway.provider.hold.set()
    async with client_of(gateway) as other:
        assert (await other.get("/healthz")).status_code == 200
        async with asyncio.timeout(10):  # between the claim and the record the two differ for a moment
            while True:
                sandboxes = {sandbox.id for sandbox in await gateway.provider.list()}
                sessions = (await other.get("/v1/sessions")).json()["sessions"]
                if not sandboxes and {session["state"] for session in sessions} <= {"terminated"}:
                    break


async def test_ended_session_leaves_no_advice_behind(open_gateway: OpenScripted) -> None:
    """What a gateway learned of a session goes with it: sessions come and go for months."""
    gateway, _ = await open_gateway()
    advisor = gateway.gateway.advisor
    async with client_of(gateway) as client:
        session = (await client.post("/v1/sessions", json={"runtime": "my-interpreter"})).json()["id"]
        assert (await client.get("/x", headers={"x-session-id": session})).status_code == 200
        await advisor.run_once(time.time())
        assert advisor.advice(session) is not None
        assert (await client.delete(f"/v1/sessions/{session}")).status_code in (200, 204)
        assert advisor.advice(session) is None


async def test_manifests_are_shown_masked_where_they_are_asked_for(open_gateway: OpenScripted) -> None:
    """By name or all; unknown words are refused."""
    manifest = {"kind": "CodeInterpreter", "spec": {"env": [{"name": "API_KEY", "value": "hunter2"}]}}
    gateway, _ = await open_gateway(runtimes=[replace(default_runtime(0), manifest=manifest)])
    async with client_of(gateway) as client:

        async def asked(**query: str) -> Any:
            return (await client.get("/v1/runtimes", params=query)).json()

        assert "manifest" not in (await asked())["runtimes"][0]
        (shown,) = (await asked(runtime="default/my-interpreter", manifest="true"))["runtimes"]
        assert shown["manifest"]["spec"] == {"env": [{"name": "API_KEY", "value": "***"}]}
        assert (await asked(runtime="other/none"))["runtimes"] == []
        assert (await asked(manifest="yes"))["error"].startswith("manifest: expected true or false")
        assert (await asked(manifests="true"))["error"].startswith("manifests: unknown parameter")


async def test_failure_of_a_pool_is_shown_without_paths_of_the_host(
    open_gateway: OpenScripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lists of runtimes, which members may read, and to probes, which need no key."""
    gateway, _ = await open_gateway()
    provider = gateway.gateway.provider
    status = await provider.status(KEY)
    failing = replace(
        status, ready=0, claimed=0, failures=1, target=1, last_error="bwrap: /opt/wg/bin/bwrap: no such file"
    )
    monkeypatch.setattr(
        gateway.provider, "status", AsyncMock(return_value=replace(failing, last_loss="/opt/wg/x: full"))
    )
    async with client_of(gateway) as client:
        (shown,) = [each for each in (await client.get("/v1/runtimes")).json()["runtimes"] if each["name"] == KEY.name]
        assert shown["pool"]["lastError"] == "bwrap: <path>: no such file"
        assert shown["pool"]["lastLoss"] == "<path>: full"
        assert "/opt/wg" not in (await client.get("/readyz")).text
