"""How many sandboxes are warm before somebody asks."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class WarmPools:
    """What the autoscaler weighs; what a single runtime asks for is in its manifest."""

    autoscaler_tick: float = setting(1.0, "interval between autoscaler decisions", kind="duration", low=0.05)
    cold_start_cost: float = setting(
        0.0,
        "cost of a cold start, in seconds of an idle sandbox; 0: each runtime's targetMissRate decides",
        kind="duration",
        low=0,
    )
    price_ceiling: float = setting(
        20_000.0,
        "most idle time of a sandbox that a pool spends to save one claim from a cold start, whatever its"
        " targetMissRate; 0: no limit",
        kind="duration",
        low=0,
    )
    max_warm: int = setting(
        0, "warm sandboxes over all runtimes; 0: only each runtime's pool.max applies", kind="int", low=0
    )
    wake_cost: float = setting(
        300.0, "cost of a wake, in seconds of an idle sandbox, for advice on sessions", kind="duration", low=0
    )
    advised_hibernation: bool = setting(
        False, "hibernate sessions before their idle timeout when their past idle times suggest it", kind="flag"
    )
    prewake: bool = setting(False, "wake hibernated sessions shortly before a likely request", kind="flag")
