"""Tenants and their limits: what is read, what is refused, and what the directory follows."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import BadRequestError, RateLimitError, SettingsError
from gateway.core.model import RuntimeKey
from gateway.core.quota import Resource
from gateway.identity.budgets import Budget
from gateway.identity.tenant_limits import TenantLimits, parse_limits
from gateway.identity.tenants import TenantDirectory
from gateway.identity.tenants_file import TenantsFile, read_tenants_file
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock

ALL = {
    "sessions": 100, "sandboxes": 20, "vcpu": "2500m", "memory": "64Gi", "gpus": 0, "hibernatedSessions": 1000,
    "storedBytes": "1Ti", "requestsPerSecond": 50, "requestBurst": 200, "createsPerMinute": 30.5, "maxDuration": "2h",
    "runtimes": ["my-interpreter", "team/agent"],
}  # fmt: skip


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    made = MemoryStore(ManualClock())
    await made.start()
    yield made
    await made.aclose()


def test_limits_read_back_as_they_are_shown() -> None:
    """In exact units: thousandths of a core, bytes, seconds."""
    limits = parse_limits(ALL)

    assert limits.amounts[Resource.VCPU] == 2500
    assert limits.amounts[Resource.STORED] == 1 << 40
    assert limits.amounts[Resource.GPUS] == 0
    assert limits.max_duration == 7200.0
    assert limits.allows(RuntimeKey("team", "agent"))
    assert not limits.allows(RuntimeKey("default", "other"))
    assert parse_limits(limits.document()) == limits
    assert limits.document()["vcpu"] == 2.5


def test_nothing_is_limited_without_limits() -> None:
    """An empty document and one of nulls say nothing."""
    assert not parse_limits({})
    assert not parse_limits({"sandboxes": None})
    assert parse_limits({"gpus": 0})
    assert TenantLimits().allows(RuntimeKey("a", "b"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"sandbox": 3}, "x.sandbox: unknown limit; did you mean 'sandboxes'?"),
        ({"zzz": 3}, "x.zzz: unknown limit; expected some of sessions,"),
        ({"sandboxes": -1}, "x.sandboxes: expected a whole number, 0 or more, got -1"),
        ({"sandboxes": 1.5}, "x.sandboxes: expected a whole number, 0 or more, got 1.5"),
        ({"sandboxes": True}, "x.sandboxes: expected a whole number"),
        ({"sandboxes": float("nan")}, "x.sandboxes: expected a whole number"),
        ({"sandboxes": "many"}, "x.sandboxes: expected a whole number, 0 or more, got 'many'"),
        ({"memory": "64 GB"}, "x.memory: expected a number or a quantity such as 512Mi or 64Gi, got '64 GB'"),
        ({"memory": "9e999"}, "x.memory: expected a number or a quantity"),
        ({"requestsPerSecond": 0}, "x.requestsPerSecond: expected a number above zero, got 0"),
        ({"requestsPerSecond": 1, "requestBurst": 0}, "x.requestBurst: expected a whole number, 1 or more, got 0"),
        ({"requestBurst": 5}, "x.requestBurst: means nothing without requestsPerSecond"),
        ({"maxDuration": "soon"}, "x.maxDuration: expected a duration of at least 1 s"),
        ({"runtimes": "all"}, "x.runtimes: expected a list of at most 256 names"),
        ({"runtimes": ["a/b/c"]}, "x.runtimes: 'a/b/c' names no runtime"),
        ([], "x.: expected fields such as sandboxes: 20"),
    ],
)
def test_wrong_limit_is_named_with_what_is_expected(document: object, message: str) -> None:
    """The field, what it should be, and what it is."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_limits(document, "x.")


def test_all_wrong_limits_are_named_at_once() -> None:
    """A line each."""
    with pytest.raises(ValueError, match="sandboxes") as raised:
        parse_limits({"sandboxes": -1, "gpu": 1})
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.yaml", "defaults: {sandboxes: 5}\ntenants:\n  acme: {sandboxes: 50, memory: 64Gi}\n  free:\n"),
        ("t.toml", '[defaults]\nsandboxes = 5\n[tenants.acme]\nsandboxes = 50\nmemory = "64Gi"\n[tenants.free]\n'),
    ],
)
async def test_file_has_defaults_and_tenants(tmp_path: Path, store: MemoryStore, name: str, text: str) -> None:
    """A tenant with an entry has that alone; one without has the defaults."""
    (tmp_path / name).write_text(text)
    directory = TenantDirectory(store.documents, read_tenants_file(tmp_path / name))

    assert directory.limits("acme").document() == {"sandboxes": 50, "memory": 64 << 30}
    assert directory.limits("other").document() == {"sandboxes": 5}
    assert not directory.limits("free")
    assert directory.names() == ["acme", "free"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits: {}", "limits: unknown field; expected defaults, tenants"),
        ("- a", "expected `defaults:` and `tenants:`"),
        ("tenants: [a]", "tenants: expected the name of each tenant with its limits"),
        ("tenants: {Acme: {}}", "tenants.Acme: expected a name"),
        ("tenants: {self: {}}", "tenants.self: expected a name"),
        ("tenants: {acme: {gpu: 1}}", "tenants.acme.gpu: unknown limit; did you mean 'gpus'?"),
        ("a: [", "while parsing"),
    ],
)
def test_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    """At the start, before anything runs."""
    path = tmp_path / "tenants.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        read_tenants_file(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


async def test_limits_that_are_set_replace_those_of_the_file_at_every_gateway(store: MemoryStore) -> None:
    """As soon as the other one follows."""
    file = TenantsFile(parse_limits({"sandboxes": 1}), {"acme": parse_limits({"sandboxes": 2})})
    here, there = TenantDirectory(store.documents, file), TenantDirectory(store.documents, file)
    for each in (here, there):
        await each.follow()

    assert await here.put("acme", parse_limits({"gpus": 3}))
    assert not await here.put("acme", parse_limits({"gpus": 4}))

    assert await there.follow()
    assert not await there.follow()
    assert there.limits("acme").document() == here.limits("acme").document() == {"gpus": 4}
    await here.put("acme", TenantLimits())
    assert not here.limits("acme")


async def test_deleted_tenant_stays_deleted_until_it_is_created_again(store: MemoryStore) -> None:
    """At every gateway; its limits are those of the file again."""
    here, there = TenantDirectory(store.documents), TenantDirectory(store.documents)
    await here.put("acme", parse_limits({"gpus": 3}))
    await here.delete("acme")
    await there.follow()

    assert there.is_deleted("acme")
    assert not there.is_deleted("other")
    assert there.names() == []
    assert await there.put("acme", parse_limits({}))
    assert not there.is_deleted("acme")


@pytest.mark.parametrize("name", ["", "A", "a_b", "self", "x" * 64, "-a"])
async def test_name_that_no_tenant_can_have_is_refused(store: MemoryStore, name: str) -> None:
    with pytest.raises(BadRequestError):
        await TenantDirectory(store.documents).put(name, TenantLimits())


def spend(budget: Budget) -> int:
    """How many requests it lets through now."""
    count = 0
    while budget.left >= 1:
        budget.left -= 1
        count += 1
    return count


async def test_budget_lets_through_its_burst_and_then_its_rate(store: MemoryStore) -> None:
    """And a part of both where gateways share it; the refusal says when to come back."""
    directory = TenantDirectory(store.documents)
    await directory.put("acme", parse_limits({"requestsPerSecond": 4, "requestBurst": 10}))
    budget = directory.budget("acme")
    assert isinstance(budget, Budget)
    assert directory.budget("acme") is budget
    assert directory.budget("other") is None

    directory.refill(100.0)
    assert spend(budget) == 10
    directory.refill(100.75)
    assert spend(budget) == 3
    refusal = budget.refusal()
    assert isinstance(refusal, RateLimitError)
    assert refusal.retry_after == pytest.approx(0.25)
    assert refusal.fields == {"ratelimit-limit": "4", "ratelimit-remaining": "0", "ratelimit-reset": "1"}

    directory.share_among(2)
    directory.refill(200.0)
    assert spend(budget) == 5
    directory.refill(201.5)
    assert spend(budget) == 3


async def test_gateway_that_joins_others_begins_with_its_part_and_without_a_burst(store: MemoryStore) -> None:
    """What they have let through a moment ago is not let through here again; soon after, a new bucket is full."""
    directory = TenantDirectory(store.documents)
    before = directory.has_rates
    await directory.put("acme", parse_limits({"requestsPerSecond": 8, "requestBurst": 20}))
    await directory.put("bolt", parse_limits({"requestsPerSecond": 8, "requestBurst": 20}))
    assert (before, directory.has_rates) == (False, True)
    directory.join(2)
    directory.refill(100.0)
    budget = directory.budget("acme")
    assert isinstance(budget, Budget)
    assert spend(budget) == 1
    directory.refill(100.5)
    assert spend(budget) == 2
    directory.refill(111.0)
    assert spend(budget) == 10
    later = directory.budget("bolt")
    assert isinstance(later, Budget)
    assert spend(later) == 10


async def test_budget_holds_one_request_however_small_its_part_of_the_rate(store: MemoryStore) -> None:
    """A tenant of a slow rate on many gateways would else never be served."""
    directory = TenantDirectory(store.documents)
    await directory.put("acme", parse_limits({"requestsPerSecond": 0.5}))
    budget = directory.budget("acme")
    assert isinstance(budget, Budget)
    directory.share_among(4)
    spend(budget)
    directory.refill(0.0)
    directory.refill(7.9)
    assert spend(budget) == 0
    directory.refill(8.1)
    assert spend(budget) == 1


async def test_budget_follows_changed_limits(store: MemoryStore) -> None:
    """Whoever has it in memory meets the new ones; a bucket is not filled by a change."""
    directory = TenantDirectory(store.documents)
    await directory.put("acme", parse_limits({"requestsPerSecond": 1}))
    budget = directory.budget("acme")
    assert isinstance(budget, Budget)
    assert spend(budget) == 1
    await directory.put("acme", parse_limits({"requestsPerSecond": 100}))
    assert spend(budget) == 0
    await directory.put("acme", TenantLimits())
    assert budget.left == float("inf")
    assert not directory.has_rates
