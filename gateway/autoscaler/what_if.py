"""Answers what another target, another price or a fixed size would have cost, from the shadow pools' own numbers."""

from __future__ import annotations

from typing import Any

from gateway.autoscaler.follower import Follower, Objective, RuleCost
from gateway.autoscaler.money import Money
from gateway.autoscaler.pool import Pool, rule_cost

TARGETS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
COLD_START_COSTS_S = (50.0, 150.0, 400.0, 1000.0, 2000.0, 5000.0, 20000.0)
_FEW_MISSES = 1e-4  # of claims; a fixed size that misses fewer is the last that is listed


def what_if(pool: Pool) -> dict[str, Any]:
    """The document of GET /v1/autoscaler/{runtime}/what-if. Costs are of the claims that are remembered, per hour."""
    demand, money = pool.demand, pool.money
    shadow, followed = demand.shadow, demand.follower.objective

    def chosen(objective: Objective) -> RuleCost:
        """The rule that a pool with this objective would follow, had it just looked at the same numbers."""
        return Follower.beside(objective, shadow).compared()[0]

    return {
        "runtime": str(pool.runtime.key),
        "rememberedSeconds": round(shadow.span, 1),
        "rememberedClaims": round(shadow.claims, 1),
        "currency": None if money is None else money.currency,
        "followed": _priced(demand.follower.compared()[0], money),
        "targets": [
            {"targetMissRate": rate, **_priced(chosen(Objective(rate, None, followed.price_ceiling)), money)}
            for rate in TARGETS
        ],
        "coldStartCosts": [
            {"coldStartCost": cost, **_priced(chosen(Objective(cold_start_cost=cost)), money)}
            for cost in COLD_START_COSTS_S
        ],
        "fixed": [_priced(each, money) for each in fixed_sizes(demand.follower)],
        "saved": saved(pool),
    }


def fixed_sizes(follower: Follower) -> list[RuleCost]:
    """What fixed sizes would have cost, from 0 to the first that misses next to nothing."""
    out: list[RuleCost] = []
    for each in follower.constants():
        out.append(each)
        if each.miss_rate is None or each.miss_rate <= _FEW_MISSES:
            break
    return out


def saved(pool: Pool) -> dict[str, Any]:
    """What following the rules has idled and missed since the pool's first look, beside the fixed pool that serves as
    many claims in hindsight.
    """
    account = pool.demand.follower.account()
    money = pool.money
    return {
        "seconds": round(account.span, 1),
        "claims": round(account.claims, 1),
        "misses": round(account.misses, 1),
        "idleSandboxSeconds": round(account.idle, 1),
        "fixedIdleSandboxSeconds": round(account.fixed_idle, 1),
        "savedSandboxSeconds": round(account.fixed_idle - account.idle, 1),
        "savedCost": None if money is None else round(money.hour(account.fixed_idle - account.idle, 0.0), 6),
    }


def _priced(rule: RuleCost, money: Money | None) -> dict[str, Any]:
    document = rule_cost(rule)
    document["costPerHour"] = None if money is None else round(money.hour(rule.idle, rule.misses), 6)
    return document
