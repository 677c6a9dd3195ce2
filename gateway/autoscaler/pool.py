"""One runtime's pool in the loop: its demand, its last decision and the explanation of it. No I/O."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.follower import Objective, RuleCost
from gateway.autoscaler.forecast import Floats, Forecast
from gateway.autoscaler.money import Money
from gateway.autoscaler.outcomes import Outcomes
from gateway.autoscaler.rates import prior_from
from gateway.autoscaler.scaler import Decision, Observed, ScalerSpec, decide
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.autoscaler.window import RollingCount
from gateway.core.model import PoolStatus, Runtime, RuntimeKey


@dataclass(frozen=True, slots=True)
class Change:
    """A target that was changed."""

    at: float
    before: int
    after: int
    why: str


def lead_of(status: PoolStatus | None, settings: AutoscalerSettings) -> float:
    """The lead time to plan with: nine of ten starts are ready by then."""
    measured = None if status is None else status.lead_time_p90 or status.lead_time_p50
    # Above zero, as Demand.set_lead divides by it; starts of less are measured in tests only.
    return settings.default_lead if measured is None else max(measured, 0.05)


def phase_of(key: RuntimeKey) -> float:
    """A share of an interval at which to do what comes round for every runtime, from 0 to 1 and its own for each."""
    return int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=4).digest()) / 2.0**32


def rule_cost(rule: RuleCost) -> dict[str, Any]:
    """One rule of the shadow pools, for GET /v1/autoscaler."""
    return {
        "kind": "constant" if rule.constant else "forecast",
        "level": rule.level,
        "quantile": None if rule.quantile is None else round(rule.quantile, 6),
        "idleSandboxSecondsPerHour": round(rule.idle, 1),
        "missesPerHour": round(rule.misses, 4),
        "missRate": None if rule.miss_rate is None else round(rule.miss_rate, 5),
    }


@dataclass(slots=True)
class Pool:
    """State of one runtime between ticks."""

    runtime: Runtime
    settings: AutoscalerSettings
    demand: Demand
    misses: RollingCount
    target: int
    restored: bool = False
    forecast: Forecast | None = None
    status: PoolStatus | None = None
    decision: Decision | None = None
    error: str = ""  # the provider's error for the last order
    cut: str = ""  # what the budget over all runtimes took from it, a sentence
    looked_at: float = -1e18
    money: Money | None = None  # prices of this runtime, where there are any
    outcomes: Outcomes = field(default_factory=Outcomes)
    steady_at: float | None = None  # the steady clock at the last observation
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=20))

    @classmethod
    def make(
        cls,
        runtime: Runtime,
        settings: AutoscalerSettings,
        status: PoolStatus | None,
        others: Iterable[Pool] = (),
        money: Money | None = None,
    ) -> Pool:
        """A pool that knows nothing yet but what rates of claims `others` have. It stands where the provider's does."""
        lead = lead_of(status, settings)
        most = max(runtime.pool.max, runtime.pool.size)
        cold_start = None if money is None else money.cold_start_cost
        objective = Objective(
            runtime.pool.target_miss_rate,
            settings.cold_start_cost if cold_start is None else cold_start,
            settings.price_ceiling,
        )
        prior = prior_from(pool.demand.rates for pool in others)
        demand = Demand(
            objective, lead=lead, tick=settings.tick, most=most, joins=settings.joins, prior=prior,
            phase=phase_of(runtime.key),
        )  # fmt: skip
        target = runtime.pool.size if status is None else status.target
        return cls(runtime, settings, demand, RollingCount(demand.horizon), target, status=status, money=money)

    @property
    def spec(self) -> ScalerSpec:
        """The part of the runtime's manifest that decide() needs."""
        pool = self.runtime.pool
        return ScalerSpec(pool.min, pool.max, pool.mode, pool.size, lower_after=self.settings.lower_after)

    def tick(
        self, now: float, claims: int, misses: int, *, steady: float | None = None, times: Sequence[float] = ()
    ) -> Decision | None:
        """Count the claims since the last tick. Returns a decision if one is due, else None.

        `now`: epoch seconds, of a clock that may be set; `steady`: seconds of one that is not. `times`: when the claims
        came, by the first clock, where that is known.
        """
        self.misses.add(now, misses)
        self.outcomes.count(now, claims, misses, times, self.target, self.ready)
        due = self.demand.due(now, claims)
        # The breaker's cooldown, and the time for which a lower level must stand, run out without any claim: then
        # decide() is asked at each tick.
        stale = self.status is not None and self.status.failures > 0
        if not due and not stale and self.decision is not None and self.decision.lower_since is None:
            return None
        if due:
            self.demand.set_lead(lead_of(self.status, self.settings))
            self.misses.span = self.demand.horizon  # decide compares them with the claims of the same seconds
            elapsed = None if steady is None or self.steady_at is None else steady - self.steady_at
            self.steady_at = steady
            self.demand.observe(now, claims, elapsed, times)
            self.forecast = made = self.demand.forecast(now)
            self.outcomes.forecast(made, lambda: self.demand.probabilities(made))
        self.decision = decide(self.spec, self._observed(now), self.forecast if self.restored else None, now)
        return self.decision

    def _observed(self, now: float) -> Observed:
        status, last = self.status, self.decision
        return Observed(
            target=self.target,
            ready=status.ready if status else 0,
            starting=status.starting if status else 0,
            recent_claims=self.demand.recent.expire(now),
            recent_misses=self.misses.expire(now),
            failures=status.failures if status else 0,
            last_error=status.last_error if status else "",
            lower_since=last.lower_since if last else None,
            lower_to=last.lower_to if last else 0,
            tried_at=last.tried_at if last else None,
            surging=last.surging if last else False,
        )

    def moved(self, now: float, target: int, why: str) -> None:
        """Record a target that the provider has accepted."""
        if target != self.target:
            self.changes.append(Change(now, self.target, target, why))
            self.target = target

    @property
    def ready(self) -> int:
        """Sandboxes that were ready at the last look."""
        return 0 if self.status is None else self.status.ready

    def worth(self) -> Floats:
        """What each further sandbox saves, claims per second; for the budget."""
        return self.demand.values / self.demand.horizon

    def _costs(self) -> str:
        """What the pool costs and what a miss is worth to the rule that decides, sentences."""
        out = f" Holding {self.target} costs {3600.0 * self.target:,.0f} idle sandbox-seconds an hour"
        if self.money is not None:
            out += f" ({self.target * self.money.sandbox_hour:.4g} {self.money.currency})".replace(" )", ")")
        if self.decision is None or self.decision.rule not in ("forecast", "constant", "hold", "max"):
            return out + "."
        price = self.demand.follower.price(self.demand.horizon)
        if price is None:
            return out + "; the last of them has saved no claim yet."
        return out + f"; to the rule that is followed a claim without a warm sandbox is worth {price:,.1f} of them."

    def explain(self) -> dict[str, Any]:
        """This pool now, for GET /v1/autoscaler. Times are epoch seconds."""
        forecast, status, decision = self.demand.explained(), self.status, self.decision
        rate = self.demand.follower.miss_rate()
        followed, runner_up = self.demand.follower.compared()
        price = self.demand.follower.price(self.demand.horizon)
        objective = self.demand.follower.objective
        return {
            "runtime": str(self.runtime.key),
            "mode": self.runtime.pool.mode.value,
            "target": self.target,
            "wanted": decision.wanted if decision else self.target,
            "why": decision.why + self.cut + self._costs() if decision else "No decision has been made yet.",
            "rule": decision.rule if decision else "hold",
            "min": self.runtime.pool.min,
            "max": self.runtime.pool.max,
            "pool": None
            if status is None
            else {
                "ready": status.ready,
                "starting": status.starting,
                "claimed": status.claimed,
                "failures": status.failures,
                "lastError": status.last_error,
                "retryAt": status.retry_at,
            },
            "leadTime": {
                "planned": self.demand.lead,
                "p50": status.lead_time_p50 if status else None,
                "p90": status.lead_time_p90 if status else None,
            },
            "demand": None
            if forecast is None
            else {
                "at": forecast.made_at,
                "horizon": forecast.horizon,
                "expectedClaims": round(forecast.mean, 4),
                "recentClaims": self.demand.recent.total,
                "expectedMissesPerHour": round(forecast.expected_misses, 4),
            },
            "idleSandboxSecondsPerHour": 3600.0 * self.target,
            "missWorth": None if price is None else round(price, 1),
            "quantile": None if forecast is None or forecast.constant else round(forecast.quantile, 6),
            "stocking": None if forecast is None else forecast.source,
            "followedRule": rule_cost(followed),
            "runnerUp": None if runner_up is None else rule_cost(runner_up),
            "experts": None if forecast is None else forecast.weights,
            "objective": {"targetMissRate": objective.target_miss_rate}
            if objective.cold_start_cost is None
            else {"coldStartCost": objective.cold_start_cost},
            "cost": None
            if self.money is None
            else {
                "currency": self.money.currency,
                "idlePerHour": round(self.target * self.money.sandbox_hour, 6),
                "coldStart": self.money.cold_start or None,
            },
            "missRateLearned": None if rate is None else round(rate, 5),
            "learning": not self.restored,
            "error": self.error,
            "changes": [{"at": c.at, "from": c.before, "to": c.after, "why": c.why} for c in reversed(self.changes)],
        }
