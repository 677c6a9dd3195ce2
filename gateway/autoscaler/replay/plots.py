"""Draws the report: demand, target and misses over time; the frontier of idle against hit rate. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.autoscaler.replay.lab import POLICIES, TraceResult
from gateway.core.errors import BadRequestError

_STYLES: dict[str, dict[str, Any]] = {
    "predictive": {"lw": 2.4, "marker": "o", "zorder": 5},
    "known-rates": {"lw": 1, "ls": ":"},  # floors, not policies that anybody could run
    "known-changes": {"lw": 1, "ls": "--"},
}


def _pyplot() -> Any:
    """matplotlib is an extra: the gateway runs without it."""
    try:
        import matplotlib
    except ImportError:
        raise BadRequestError(
            "plots need matplotlib: pip install 'wakegate[plots]' (or leave them out with --no-plots)"
        ) from None
    # Before pyplot is imported: it would else look for a display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(results: Sequence[TraceResult], folder: Path) -> list[Path]:
    """`frontier.png` for all traces that stand alone, `<trace>.png` for each of them. Raises BadRequestError."""
    plt = _pyplot()
    # Members of a fleet (FILE/FUNCTION) are dozens; a table sums them up (report.py).
    alone = [r for r in results if "/" not in r.trace.name]
    files = [_frontiers(plt, alone, folder / "frontier.png")] if alone else []
    return files + [
        _timeline(plt, r, folder / f"{r.trace.name}.png")
        for r in alone
        if any(p.policy == "predictive" for p in r.points)
    ]


def _frontiers(plt: Any, results: Sequence[TraceResult], path: Path) -> Path:
    columns = min(len(results), 2)
    # Rounded up.
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7.2 * columns, 4.6 * rows), squeeze=False)
    for ax, result in zip(axes.flat, results, strict=False):
        # A logarithmic axis has no zero: below one miss in 20,000 all is drawn at the edge.
        misses = np.maximum(1.0 - result.curve.hits, 5e-5)
        ax.plot(misses, result.curve.idle, color="0.4", lw=2, label="fixed, best in hindsight")
        for number, policy in enumerate(p for p in POLICIES if p not in ("fixed", "oracle")):
            points = sorted(
                (1.0 - p.outcome.hit_rate, p.outcome.mean_idle) for p in result.points if p.policy == policy
            )
            if points:
                style = _STYLES.get(policy, {"lw": 1, "marker": ".", "alpha": 0.8})
                ax.plot(
                    [max(m, 5e-5) for m, _ in points], [i for _, i in points], color=f"C{number}", label=policy, **style
                )
        ax.set(
            xscale="log",
            xlim=(0.5, 4e-5),
            title=result.trace.name,
            xlabel="claims that miss (log)",
            ylabel="mean idle sandboxes",
        )
        ax.set_ylim(0, 1.15 * result.curve.idle_at(0.9995))
        ax.grid(alpha=0.25)
    axes.flat[0].legend(fontsize=8)
    for ax in list(axes.flat)[len(results) :]:
        ax.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)
    return path


def _timeline(plt: Any, result: TraceResult, path: Path) -> Path:
    """The predictive policy at the middle of its knobs."""
    point = next(p for p in result.points if p.policy == "predictive")
    assert point.targets is not None
    trace, bins = result.trace, 600
    edges = np.linspace(trace.start, trace.end, bins + 1)
    days = (edges[:-1] - trace.start) / 86400.0
    per_lead = np.histogram(trace.arrivals, edges)[0] / (edges[1] - edges[0]) * result.settings.lead
    at = np.clip(np.searchsorted(point.targets.times, edges[:-1], side="right") - 1, 0, None)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(12, 5.4), sharex=True, height_ratios=(3, 1))
    top.fill_between(days, per_lead, step="post", color="C0", alpha=0.5, label=f"claims per {result.settings.lead:g} s")
    top.step(days, point.targets.levels[at], where="post", color="C1", lw=1, label=f"target (miss rate {point.knob:g})")
    top.axvline(result.settings.warm_up * trace.span / 86400.0, color="0.5", ls=":", label="scored from here")
    top.legend(fontsize=8)
    top.set(title=f"{trace.name}: {point.outcome.hit_rate:.2%} hits, {point.outcome.mean_idle:.2f} idle in the mean")
    bottom.bar(
        days, np.histogram(point.outcome.miss_times, edges)[0], width=days[1] - days[0], color="C3", align="edge"
    )
    bottom.set(ylabel="misses", xlabel="days")
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)
    return path
