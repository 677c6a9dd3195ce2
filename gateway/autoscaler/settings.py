"""Settings of the control loop; per-runtime ones are in the runtime's YAML (spec.wakegate.pool)."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.errors import SettingsError

# Idle sandbox-seconds. At 5.5 hours of an idle sandbox for each claim that is kept from a cold start of seconds, few
# would go on. A runtime with five claims a minute pays about 10,000 for one at 99 % hits, and 25,000 at 99.5 %.
DEFAULT_PRICE_CEILING = 20_000.0


@dataclass(frozen=True, slots=True)
class AutoscalerSettings:
    """Times in seconds, counts in sandboxes.

    What a pool aims at is its `targetMissRate`: the least idle that keeps misses within that share of claims. With
    `cold_start_cost` costs decide instead, for all runtimes: a cold start is worth that many idle sandbox-seconds.
    """

    tick: float = 1.0  # between looks; a runtime without news costs nothing
    lease_ttl: float = 10.0  # how long a dead leader is waited for
    flush_every: float = 1.0  # between writes of claim counts to the store
    sync_every: float = 2.0  # between reads of other replicas' claims
    shared: bool = False  # other gateways use the same store and size the same pools
    lease: str = "autoscaler"  # who holds it sizes the pools
    default_lead: float = 5.0  # of a runtime whose lead time is not measured yet
    cold_start_cost: float | None = None  # idle sandbox-seconds; None: targetMissRate decides
    price_ceiling: float | None = DEFAULT_PRICE_CEILING  # idle sandbox-seconds that one claim saved may cost; None: any
    joins: bool = False  # a miss takes the next sandbox that gets ready (local), not one of its own (kubernetes)
    max_warm: int | None = None  # warm sandboxes over all runtimes; None: each runtime's max alone
    lower_after: float = 3.0  # how long a lower level must stand before a pool goes down
    restore_days: float = 14.0  # of history that is read at the start

    def __post_init__(self) -> None:
        problems = [
            f"autoscaler {name}: {value} is not more than 0"
            for name, value in (
                ("tick", self.tick),
                ("lease_ttl", self.lease_ttl),
                ("flush_every", self.flush_every),
                ("sync_every", self.sync_every),
                ("default_lead", self.default_lead),
                ("cold_start_cost", 1.0 if self.cold_start_cost is None else self.cold_start_cost),
                ("price_ceiling", 1.0 if self.price_ceiling is None else self.price_ceiling),
            )
            if not value > 0.0
        ]
        if self.max_warm is not None and self.max_warm < 0:
            problems.append(f"autoscaler max_warm: {self.max_warm} is less than 0")
        if problems:
            raise SettingsError(problems)
