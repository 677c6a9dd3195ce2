"""What-if: other targets, prices and sizes by the shadow pools' own numbers, and what following the rules has saved."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from gateway.autoscaler.money import Money, money_of
from gateway.autoscaler.pool import Pool
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.autoscaler.what_if import what_if
from gateway.core.model import RuntimeKey
from gateway.usage.prices import load_prices
from tests.support.autoscaler import poisson, runtime
from tests.support.scripted import OpenScripted
from tests.support.waiting import eventually

PRICES = """
currency = "EUR"
vcpu_hour = 0.04
cold_start = 0.01
[runtimes."default/dear"]
cold_start = 0.5
"""


def busy_pool(money: Money | None = None) -> Pool:
    """A pool that has seen two hours of a claim every five seconds, at a lead of ten."""
    pool = Pool.make(runtime(), AutoscalerSettings(default_lead=10.0), None, money=money)
    pool.restored = True
    for second, claims in enumerate(np.bincount(poisson(0.2, 7200.0).astype(int), minlength=7200).tolist()):
        pool.tick(1e9 + second, claims, 0)
    return pool


def test_what_if_prices_targets_costs_and_sizes() -> None:
    """Fewer misses cost more idle time, every target is met, and fixed sizes end where next to none misses."""
    pool = busy_pool(Money("EUR", 0.36, 0.0))
    document = what_if(pool)
    targets = {each["targetMissRate"]: each for each in document["targets"]}

    assert targets[0.2]["idleSandboxSecondsPerHour"] < targets[0.01]["idleSandboxSecondsPerHour"]
    assert all(each["missRate"] <= rate + 0.01 for rate, each in targets.items())
    costs = [each["missesPerHour"] for each in document["coldStartCosts"]]
    assert costs[0] > costs[-1]
    assert [each["level"] for each in document["fixed"]][:4] == [0, 1, 2, 3]
    assert document["fixed"][0]["missRate"] == 1.0
    assert document["fixed"][-1]["missRate"] <= 1e-3
    for each in (document["followed"], *document["targets"], *document["fixed"]):
        assert each["costPerHour"] == pytest.approx(each["idleSandboxSecondsPerHour"] / 3600.0 * 0.36, abs=1e-3)


def test_what_was_saved_stands_beside_the_fixed_pool_in_hindsight() -> None:
    """The account forgets nothing; on steady claims, where a constant is best, little is saved or lost."""
    pool = busy_pool()
    saved = what_if(pool)["saved"]

    assert saved["seconds"] == pytest.approx(7200.0, rel=0.03)
    assert saved["claims"] == pytest.approx(len(poisson(0.2, 7200.0)), rel=0.03)
    assert 0.0 <= saved["misses"] <= 0.05 * saved["claims"]
    assert abs(saved["savedSandboxSeconds"]) <= 0.35 * saved["fixedIdleSandboxSeconds"]
    assert saved["savedCost"] is None


def test_prices_decide_where_cold_starts_have_one(tmp_path: Path) -> None:
    """A cold start of 0.01 beside sandboxes of 0.04 an hour is 900 idle sandbox-seconds, and sizes the pool."""
    (tmp_path / "prices.toml").write_text(PRICES)
    prices = load_prices(tmp_path / "prices.toml")
    costs = {}
    for name in ("cheap", "dear"):
        money = money_of(prices, runtime(RuntimeKey("default", name)))
        assert money is not None
        pool = Pool.make(runtime(), AutoscalerSettings(), None, money=money)
        costs[name] = pool.demand.follower.objective.cold_start_cost

    assert costs == {"cheap": pytest.approx(900.0), "dear": pytest.approx(45_000.0)}
    assert Money("EUR", 0.04, 0.0).cold_start_cost is None, "without a price of cold starts the target decides"
    assert money_of(None, runtime()) is None


async def test_what_if_is_answered_for_a_runtime_and_404_for_others(open_gateway: OpenScripted) -> None:
    """By name, and by namespace and kind where asked; parameters that are not known are refused."""
    served, _ = await open_gateway()
    await eventually(
        lambda: any(pool.decision is not None for pool in served.gateway.autoscaler.pools.values()), "looked at"
    )
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as client:
        answer = await client.get("/v1/autoscaler/my-interpreter/what-if")
        assert answer.status_code == 200, answer.text
        assert {"followed", "targets", "coldStartCosts", "fixed", "saved"} <= answer.json().keys()
        same = await client.get("/v1/autoscaler/my-interpreter/what-if?namespace=default&kind=CodeInterpreter")
        assert same.status_code == 200, same.text
        for path, status in (("none/what-if", 404), ("my-interpreter/what-if?namespce=x", 400)):
            assert (await client.get(f"/v1/autoscaler/{path}")).status_code == status
