"""Totals by tenant: bounded, and each amount in them once."""

from __future__ import annotations

from gateway.core.usage import Quantity, UsageKey
from gateway.observability.counters import MAX_TENANTS, OTHER_TENANTS, TenantTotals


def test_tenants_beyond_the_bound_share_a_label() -> None:
    """However many tenants there are, a scrape has a bounded number of series, and their sum is whole."""
    totals = TenantTotals()
    for _ in range(2):
        totals.count({UsageKey(0, f"t{n}", "r"): {Quantity.REQUESTS: 1.0} for n in range(MAX_TENANTS + 50)})

    assert len(totals.by_tenant) == MAX_TENANTS + 1
    assert totals.by_tenant["t0"][Quantity.REQUESTS] == 2.0
    assert totals.by_tenant[OTHER_TENANTS][Quantity.REQUESTS] == 100.0


def test_rows_of_sessions_and_warm_pools_are_no_tenants() -> None:
    """A session's amounts are in the totals already, and warm pools belong to no tenant."""
    totals = TenantTotals()
    totals.count({
        UsageKey(0, "acme", "r"): {Quantity.REQUESTS: 1.0},
        UsageKey(0, "acme", "r", "", "s1"): {Quantity.REQUESTS: 1.0},
        UsageKey(0, "", "r"): {Quantity.WARM_SECONDS: 9.0},
    })  # fmt: skip

    assert {tenant: dict(amounts) for tenant, amounts in totals.by_tenant.items()} == {"acme": {"requests": 1.0}}


def test_costs_are_those_of_the_rows_and_warm_pools_have_their_own() -> None:
    """Each row is priced as it is counted, a session's rows not again; without prices there are no costs."""
    totals = TenantTotals()
    totals.count({UsageKey(0, "acme", "r"): {Quantity.REQUESTS: 1.0}})
    assert (totals.costs, totals.currency) == ({}, None)
    totals.set_prices(
        "EUR", lambda key, amounts: {"cost": 2.0 * amounts[Quantity.REQUESTS], "warmPoolCost": float(key.runtime)}
    )
    totals.count({
        UsageKey(0, "acme", "1"): {Quantity.REQUESTS: 1.0},
        UsageKey(0, "acme", "2"): {Quantity.REQUESTS: 2.0},
        UsageKey(0, "acme", "2", "", "s1"): {Quantity.REQUESTS: 2.0},
        UsageKey(0, "", "9"): {Quantity.REQUESTS: 0.0},
    })  # fmt: skip

    assert totals.costs["acme"]["cost"] == 6.0
    assert totals.warm_pool_cost == 9.0
