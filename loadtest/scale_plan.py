"""From costs of one session to how many gateways, namespaces, clusters and Redis servers many sessions take.

Arithmetic alone: scale_sim measures the costs. What a cluster can do is not measured there, and each such figure names
where it is from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SPARE = 0.7  # of a core: more makes answers wait
PODS_A_CLUSTER = 150_000  # Kubernetes, "Considerations for large clusters"
# Pods that a cluster binds in a second. kube-scheduler's own benchmarks (test/integration/scheduler_perf) ask for 200
# to 300 of plain pods; a claim needs one pod that follows it.
STARTS_A_CLUSTER = 300
WRITES_OF_A_LIFE = 8  # create, bind, three of its status, claim, delete, the kubelet's last word
GATEWAYS = (1, 3, 6, 12, 24)


@dataclass(frozen=True)
class Costs:
    """Of one session that comes and goes, in seconds of one core, and bytes."""

    own: float  # at the gateway that claims
    follow: float  # at each other gateway that watches the namespace
    watched: float  # bytes of its events on one watch
    tick: float  # of the autoscaler, for a second of a runtime
    redis: float
    record: float  # bytes in Redis of a session that stays


def most_claims(costs: Costs, gateways: int) -> float:
    """Claims per second over all gateways that watch one namespace, one core each.

    Each has its share of them for its own, and follows the others': SPARE = rate * (own / n + follow * (n - 1) / n).
    """
    return SPARE / (costs.own / gateways + costs.follow * (gateways - 1) / gateways)


def plan(costs: Costs, *, sessions: int, awake: int, rate: int) -> Sequence[str]:
    """Which limits come first. `rate`: claims per second; `awake`: sessions with a sandbox at a time."""
    lines = ["", f"{'gateways of a namespace':<26} {'claims/s':>9} {'of each':>9} {'watch MB/s of each':>20}"]
    for gateways in GATEWAYS:
        most = most_claims(costs, gateways)
        lines.append(f"{gateways:<26} {most:>9.0f} {most / gateways:>9.0f} {most * costs.watched / 1e6:>20.1f}")
    awake = min(awake, sessions)
    three = most_claims(costs, 3)
    needs = {
        f"clusters, for pods ({PODS_A_CLUSTER} each)": awake / PODS_A_CLUSTER,
        f"clusters, for starts ({STARTS_A_CLUSTER} a second each)": rate / STARTS_A_CLUSTER,
        "namespaces with three gateways each": rate / three,
        "gateways in those": 3 * math.ceil(rate / three),
        "gateways that all watch everything": math.inf if rate >= SPARE / costs.follow else _all(costs, rate),
        "Redis servers, for writes": rate * costs.redis / SPARE,
    }
    lines.append(
        f"\n{sessions} sessions, {awake} of them awake, {rate} claims/s: {rate * WRITES_OF_A_LIFE} API writes/s"
    )
    for what, number in needs.items():
        lines.append(f"{what:<60} {'impossible' if number == math.inf else math.ceil(number):>10}")
    lines.append(f"{'GB of Redis for the records':<60} {sessions * costs.record / 1e9:>10.1f}")
    lines.append(f"{'busy runtimes that one leader of the autoscaler can size':<60} {SPARE / costs.tick:>10.0f}")
    return lines


def _all(costs: Costs, rate: int) -> float:
    return next((n for n in range(1, 10_000) if most_claims(costs, n) >= rate), math.inf)
