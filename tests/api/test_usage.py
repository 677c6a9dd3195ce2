"""GET /v1/usage: who reads whose usage, in which form, and what is refused."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.api.app import make_routes
from gateway.api.control_app import ControlApp
from gateway.api.openapi.table import USAGE
from gateway.api.usage import UsageAPI
from gateway.core.identity import ANONYMOUS, Identity, Role, acting_as
from gateway.core.usage import HOUR_S, Quantity, Retention, Rows, UsageKey
from gateway.identity.peers import PeerSigner
from gateway.observability.counters import Counters
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock
from gateway.usage.prices import Prices, Rates
from tests.support.records import RUNTIME, T0

HOUR = int(T0 // HOUR_S) * HOUR_S
CALLERS = {
    "anonymous": ANONYMOUS,
    "operator": Identity(Role.OPERATOR),
    "acme": Identity(Role.MEMBER, "acme"),
    "zeta": Identity(Role.VIEWER, "zeta"),
    "person": Identity(Role.MEMBER, "acme", user="ann"),
    "limited": Identity(Role.MEMBER, "acme", runtimes=frozenset(("default/other",))),
    "session": Identity(Role.SESSION, "acme"),
}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of usage alone, over a store with a few rows. The header `as` says who asks."""
    clock = ManualClock(T0)
    store = MemoryStore(clock)
    await store.start()
    old = HOUR - int(Retention().sessions) - 10 * HOUR_S
    rows: Rows = {
        UsageKey(HOUR, "acme", str(RUNTIME), "1cpu-1024Mi"): {Quantity.SANDBOX_SECONDS: 3600.0},
        UsageKey(HOUR, "acme", str(RUNTIME), "1cpu-1024Mi", "s1"): {Quantity.SANDBOX_SECONDS: 3600.0},
        UsageKey(HOUR - HOUR_S, "acme", str(RUNTIME), "1cpu-1024Mi"): {Quantity.REQUESTS: 5.0},
        UsageKey(HOUR, "zeta", str(RUNTIME), "1cpu-1024Mi"): {Quantity.REQUESTS: 7.0},
        UsageKey(HOUR, "", str(RUNTIME), "1cpu-1024Mi"): {Quantity.WARM_SECONDS: 100.0},
        UsageKey(old, "acme", str(RUNTIME), "1cpu-1024Mi"): {Quantity.REQUESTS: 11.0},
    }
    await store.usage.add("w", 1, rows)
    routes = make_routes(USAGE, UsageAPI(store, clock, Prices("EUR", Rates(vcpu_hour=0.5))).handlers())
    app = ControlApp(routes, Counters(), body_idle=60.0, peers=PeerSigner(clock))

    async def as_caller(scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        names = {name: value.decode() for name, value in scope["headers"]}
        with acting_as(CALLERS[names.get(b"as", "anonymous")]):
            await app(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(as_caller), base_url="http://gateway") as made:  # type: ignore[arg-type]
        yield made
    await store.aclose()


async def usage(client: httpx.AsyncClient, caller: str = "anonymous", **query: str) -> list[dict[str, object]]:
    """The rows that a caller is shown."""
    reply = await client.get("/v1/usage", params=query, headers={"as": caller})
    assert reply.status_code == 200, reply.text
    rows: list[dict[str, object]] = reply.json()["usage"]
    return rows


@pytest.mark.parametrize(
    ("caller", "tenants"),
    [
        ("anonymous", ["", "acme", "zeta"]), ("operator", ["", "acme", "zeta"]), ("acme", ["acme"]),
        ("zeta", ["zeta"]), ("person", ["acme"]), ("limited", []),
    ],
)  # fmt: skip
async def test_members_and_viewers_see_their_tenant_only(
    client: httpx.AsyncClient, caller: str, tenants: list[str]
) -> None:
    """Operators and admins see all; a credential for other runtimes sees none of this one's."""
    assert [row["tenant"] for row in await usage(client, caller)] == tenants
    for tenant in ("acme", "zeta"):
        shown = [row["tenant"] for row in await usage(client, caller, tenant=tenant)]
        assert shown == ([tenant] if tenant in tenants else [])


async def test_rows_of_sessions_are_not_for_one_person_of_a_tenant(client: httpx.AsyncClient) -> None:
    """Nor is any of it for the holder of a session's token."""
    assert [row["session"] for row in await usage(client, "acme", group_by="session")] == ["s1"]
    assert (await client.get("/v1/usage?group_by=session", headers={"as": "person"})).status_code == 403
    assert (await client.get("/v1/usage", headers={"as": "session"})).status_code == 403


async def test_costs_and_hours(client: httpx.AsyncClient) -> None:
    """An hour of one core at 0.50; times are whole hours, of the last day unless it is asked for more."""
    rows = await usage(client, "acme", group_by="hour")
    assert [(row["hour"], row["cost"], row["requests"]) for row in rows] == [
        ("2023-11-14T21:00:00.000Z", 0.0, 5),
        ("2023-11-14T22:00:00.000Z", 0.5, 0),
    ]
    assert sum(int(str(row["requests"])) for row in await usage(client, "acme", **{"from": "0"})) == 16
    exact = {"from": str(HOUR), "to": "2023-11-14T22:30:00+00:00"}
    reply = (await client.get("/v1/usage", params=exact)).json()
    assert (reply["from"], reply["to"], reply["currency"]) == (
        "2023-11-14T22:00:00.000Z", "2023-11-14T23:00:00.000Z", "EUR",
    )  # fmt: skip


async def test_csv_has_the_same_rows(client: httpx.AsyncClient) -> None:
    """A header line with the names of the JSON form, then a line per group."""
    reply = await client.get("/v1/usage?format=csv&group_by=tenant,runtime")
    read = list(csv.DictReader(io.StringIO(reply.text)))

    assert reply.headers["content-type"] == "text/csv; charset=utf-8"
    assert [{name: str(value) for name, value in row.items()} for row in await usage(
        client, group_by="tenant,runtime"
    )] == read  # fmt: skip


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("from=yesterday", "from"),
        ("to=-5", "to"),
        ("to=1e400", "to"),
        ("from=" + "9" * 30, "from"),
        ("from=2026-13-01T00:00:00Z", "from"),
        ("from=2023-11-14T22:00:00Z&to=2023-11-14T22:00:00Z", "from"),
        ("group_by=secret", "group_by"),
        ("group_by=tenant,tenant", "group_by"),
        ("format=xml", "format"),
        ("groupby=tenant", "groupby"),
        ("from=%00", "from"),
    ],
)
async def test_bad_query_is_refused_with_its_name(client: httpx.AsyncClient, query: str, names: str) -> None:
    """400, and the text says which parameter is wrong."""
    reply = await client.get(f"/v1/usage?{query}")
    assert reply.status_code == 400
    assert reply.json()["error"].startswith(names)


async def test_times_beyond_all_that_is_kept_give_no_rows(client: httpx.AsyncClient) -> None:
    """A range of a thousand years costs no more than what is kept of it."""
    assert await usage(client, **{"from": "0", "to": "1000"}) == []
    assert await usage(client, **{"from": "9999-01-01T00:00:00Z", "to": "9999-12-01T00:00:00Z"}) == []
