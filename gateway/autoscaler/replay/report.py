"""Writes what the laboratory found: as a Markdown table, and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.autoscaler.replay.lab import POLICIES, Point, TraceResult, idle_on, lower_hull

HIT_RATES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_MIN_WARMUP_CLAIMS = 100  # claims in the warm-up from which on a trace counts as one that had something to teach


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ratio(result: TraceResult, policy: str, hit_rate: float) -> str:
    """Mean idle and, in brackets, its share of the fixed mixture's at the same hit rate."""
    idle, base = result.idle_at(policy, hit_rate), result.idle_at("fixed", hit_rate)
    if idle is None:
        return "-"
    return f"{idle:.2f}" if policy == "fixed" or not base else f"{idle:.2f} ({idle / base:.0%})"


def equal_hits_table(result: TraceResult) -> str:
    """Mean idle sandboxes at equal hit rate, per policy."""
    present = [p for p in POLICIES if p == "fixed" or any(point.policy == p for point in result.points)]
    lines = [_row(["policy", *(f"{rate:.1%}" for rate in HIT_RATES)]), _row(["---"] * (len(HIT_RATES) + 1))]
    lines += [_row([policy, *(_ratio(result, policy, rate) for rate in HIT_RATES)]) for policy in present]
    return "\n".join(lines)


def points_table(result: TraceResult) -> str:
    """Every policy at every knob as it ran."""
    head = [
        "policy",
        "knob",
        "hit rate",
        "wait p50/p95/p99",
        "mean idle",
        "mean held",
        "idle of fixed",
        "orders per claim",
        "largest shortfall",
    ]
    lines = [_row(head), _row(["---"] * len(head))]
    for point in result.points:
        o = point.outcome
        share = f"{point.idle_of_fixed:.2f}" if point.idle_of_fixed is not None else "-"
        waits = "/".join(f"{o.wait(q):.3g}" for q in (0.5, 0.95, 0.99)) + " s"
        lines.append(
            _row(
                [
                    point.policy,
                    f"{point.knob:g}",
                    f"{o.hit_rate:.3%}",
                    waits,
                    f"{o.mean_idle:.2f}",
                    f"{o.mean_held:.2f}",
                    share,
                    f"{o.orders / max(o.claims, 1):.2f}",
                    str(o.largest_shortfall),
                ]
            )
        )
    return "\n".join(lines)


def fleet_table(results: Sequence[TraceResult]) -> str:
    """Many small traces as one fleet: per miss rate all hits and idle, against fixed pools at equal hit rates."""
    lines = [
        _row(
            [
                "miss rate",
                "hit rate of all",
                "idle of all",
                "idle of fixed pools, equal hits",
                "share",
                "worst trace",
                "median trace",
                "above 1.05",
                f"above 1.05, with {_MIN_WARMUP_CLAIMS} claims or more in the warm-up",
            ]
        ),
        _row(["---"] * 9),
    ]
    for rate in results[0].settings.miss_rates:
        mine = [(r, p) for r in results for p in r.points if p.policy == "predictive" and p.knob == rate]
        # One rate over all claims: a mean of rates would weigh a function with 3 claims like one with 3,000.
        claims, hits = sum(p.outcome.claims for _, p in mine), sum(p.outcome.hits for _, p in mine)
        idle = sum(p.outcome.mean_idle for _, p in mine)
        # Each trace at its own hit rate, so the fixed pools miss exactly as many claims, trace by trace.
        base = sum(r.curve.idle_at(p.outcome.hit_rate) for r, p in mine)
        shares = [(p.idle_of_fixed, r.trace.name) for r, p in mine if p.idle_of_fixed is not None]
        worst = max(shares, default=(0.0, "-"))
        taught = [
            p.idle_of_fixed
            for r, p in mine
            if p.idle_of_fixed is not None and len(r.trace.arrivals) - p.outcome.claims >= _MIN_WARMUP_CLAIMS
        ]
        median = float(np.median([share for share, _ in shares])) if shares else 0.0
        lines.append(
            _row(
                [
                    f"{rate:g}",
                    f"{hits / max(claims, 1):.2%}",
                    f"{idle:.1f}",
                    f"{base:.1f}",
                    f"{idle / base:.2f}" if base else "-",
                    f"{worst[0]:.2f} ({worst[1].rpartition('/')[2]})",
                    f"{median:.2f}",
                    f"{sum(share > 1.05 for share, _ in shares)} of {len(shares)}",
                    f"{sum(share > 1.05 for share in taught)} of {len(taught)}",
                ]
            )
        )
    return "\n".join(lines)


def fleet_frontiers_table(results: Sequence[TraceResult]) -> str:
    """Idle time of all pools together at equal hits of all claims, per policy with one setting of its knob for all."""
    lines = [_row(["policy", *(f"{rate:.1%}" for rate in HIT_RATES)]), _row(["---"] * (len(HIT_RATES) + 1))]
    ours: list[float | None] = [None] * len(HIT_RATES)
    for policy in POLICIES:
        knobs = sorted({p.knob for r in results for p in r.points if p.policy == policy})
        if policy == "fixed" or not knobs:
            continue  # a size for all functions is no policy that anybody would choose
        points = []
        for knob in knobs:
            outcomes = [p.outcome for r in results for p in r.points if (p.policy, p.knob) == (policy, knob)]
            claims = sum(each.claims for each in outcomes)
            points.append((sum(each.hits for each in outcomes) / claims, sum(each.mean_idle for each in outcomes)))
        frontier = lower_hull(points)
        idle = [idle_on(frontier, rate) for rate in HIT_RATES]
        shares = [None if own is None or other is None else other / own for own, other in zip(ours, idle, strict=True)]
        if policy == "predictive":
            ours = idle
        cells = [
            "-" if each is None else f"{each:.1f}" + ("" if share is None else f" ({share:.0%})")
            for each, share in zip(idle, shares, strict=True)
        ]
        lines.append(_row([policy, *cells]))
    return "\n".join(lines)


def markdown(results: Sequence[TraceResult]) -> str:
    """The whole report as Markdown."""
    s = results[0].settings
    out = [
        "# Replay",
        "",
        (
            f"Lead time {s.lead:g} s, tick {s.tick:g} s; {s.warm_up:.0%} of each trace are warm-up, the rest "
            "is scored. Idle: mean sandboxes ready and unclaimed, or given up while starting. In brackets: share "
            "of the idle of the fixed pool that has the same hit rate in hindsight (between integers a mixture)."
        ),
        "",
    ]
    # Traces of one file of functions are named FILE/FUNCTION; any other trace is a fleet of one.
    fleets: dict[str, list[TraceResult]] = {}
    for result in results:
        fleets.setdefault(result.trace.name.partition("/")[0], []).append(result)
    for name, members in fleets.items():
        out += [f"## {name}", ""]
        if len(members) > 1:
            if any(p.policy == "predictive" for p in members[0].points):
                out += [fleet_table(members), ""]
                out += [
                    (
                        "All of them together, a policy with one setting of its knob for all, at equal hits of all "
                        "claims; in brackets the share of predictive's idle time."
                    ),
                    "",
                    fleet_frontiers_table(members),
                    "",
                ]
            continue
        result = members[0]
        claims = len(result.trace.arrivals)
        out += [
            f"{claims} arrivals in {result.trace.span / 86400.0:.3g} days.",
            "",
            equal_hits_table(result),
            "",
            points_table(result),
            "",
        ]
        if result.calibration is not None:
            c = result.calibration
            experts = ", ".join(
                f"{name} {weight:.0%}" for name, weight in sorted(c.weights.items(), key=lambda item: -item[1])
            )
            out += [
                (
                    f"Calibration: wanted {c.wanted:.4f}, covered {c.covered:.4f}; pinball loss {c.pinball:.4f}. "
                    f"Experts: {experts}."
                ),
                "",
            ]
    return "\n".join(out)


def _point(point: Point) -> dict[str, Any]:
    o = point.outcome
    return {
        "policy": point.policy,
        "knob": point.knob,
        "claims": o.claims,
        "hits": o.hits,
        "hit_rate": o.hit_rate,
        "wait_p50_s": o.wait(0.5),
        "wait_p95_s": o.wait(0.95),
        "wait_p99_s": o.wait(0.99),
        "idle_sandbox_seconds": o.idle,
        "held_sandbox_seconds": o.held,
        "scored_seconds": o.span,
        "orders": o.orders,
        "largest_shortfall": o.largest_shortfall,
        "idle_of_fixed_at_equal_hits": point.idle_of_fixed,
    }


def document(results: Sequence[TraceResult]) -> list[dict[str, Any]]:
    """The figures of the report as a JSON document."""
    out = []
    for r in results:
        c = r.calibration
        out.append(
            {
                "trace": r.trace.name,
                "arrivals": len(r.trace.arrivals),
                "span_s": r.trace.span,
                "lead_s": r.settings.lead,
                "tick_s": r.settings.tick,
                "fixed": {"hit_rate": r.curve.hits.tolist(), "mean_idle": r.curve.idle.tolist()},
                "points": [_point(point) for point in r.points],
                "calibration": None
                if c is None
                else {"wanted": c.wanted, "covered": c.covered, "pinball": c.pinball, "weights": c.weights},
            }
        )
    return out


def write(results: Sequence[TraceResult], folder: Path) -> list[Path]:
    """report.md and report.json in the folder, made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "report.md", folder / "report.json"]
    files[0].write_text(markdown(results), encoding="utf-8")
    files[1].write_text(json.dumps(document(results), indent=1), encoding="utf-8")
    return files
