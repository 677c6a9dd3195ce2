"""The report of `scripts/loadtest`: Markdown, JSON and plots, and ratios to the last accepted run."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

BASELINE = Path(__file__).with_name("baseline.json")


def machine() -> str:
    """The machine's cores, memory and Python version in one line."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({model}), {memory:.0f} GiB, Python {platform.python_version()}"


def figures(results: dict[str, Any]) -> dict[str, float]:
    """The figures that are compared with the last accepted run, by name: times and ratios only."""
    found: dict[str, float] = {}
    for name, result in results["scenarios"].items():
        for kind, times in result.get("kinds", {}).items():
            found[f"{name} {kind} p50 ms"] = times["p50"]
            found[f"{name} {kind} p99 ms"] = times["p99"]
        for bar in result["bars"]:
            if bar["figure"] and ":" not in bar["text"]:  # bars with a colon count errors of one scenario
                found[bar["text"]] = bar["figure"]
    return {name: round(value, 3) for name, value in found.items()}


def write(results: dict[str, Any], folder: Path) -> None:
    """Write report.md, results.json and, if matplotlib is installed, the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    # Before the plots, which may fail for want of a font or of memory.
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    plots = draw(results, folder)
    (folder / "report.md").write_text(markdown(results, plots))


def accept(results: dict[str, Any]) -> None:
    """Save the figures of this run, with which later runs are compared."""
    # With the machine: figures of another one are no baseline for this one's times.
    document = {"machine": results["machine"], "load": results["load"], "figures": figures(results)}
    BASELINE.write_text(json.dumps(document, indent=1) + "\n")


def markdown(results: dict[str, Any], plots: list[str]) -> str:
    """The whole report as Markdown, with links to the plots."""
    bars = [bar for result in results["scenarios"].values() for bar in result["bars"]]
    missed = [bar for bar in bars if not bar["held"]]
    lines = [
        "# Load test", "",
        f"Machine: {results['machine']}.", "",
        f"Load average: {results['load'][0]:.1f} at the start, {results['load'][1]:.1f} at the end.", "",
        f"{len(bars) - len(missed)} of {len(bars)} bars held.", "", "| bar | figure | bound | |", "|---|---|---|---|",
        *(f"| {bar['text']} | {bar['figure']:.2f} | {bar['bound']} | {_held(bar)} |" for bar in bars),
    ]  # fmt: skip
    for name, result in results["scenarios"].items():
        lines += ["", f"## {name}: {result['about']}", ""]
        if "options" in result:  # of k6
            lines += [_options(result), *_times(result["kinds"])]
            lines += ["", ", ".join(f"{what} {count:g}" for what, count in result["counts"].items())]
        if result.get("holdings"):
            lines += ["", "| | before | after |", "|---|---|---|"]
            before, after = result["holdings"]["before"], result["holdings"]["after"]
            lines += [f"| {what} | {before[what]:.1f} | {after[what]:.1f} |" for what in before]
        if result.get("output"):
            lines += ["```", result["output"].rstrip(), "```"]
    lines += ["", *against_baseline(results), *(f"![{plot}]({plot})" for plot in plots), ""]
    return "\n".join(lines)


def _times(kinds: dict[str, Any]) -> list[str]:
    """A table by start kind; nothing for a scenario whose answers have none."""
    rows = []
    for kind, times in sorted(kinds.items()):
        row = " | ".join(f"{times[each]:.1f}" for each in ("p50", "p95", "p99", "max"))
        rows.append(f"| {kind} | {times['count']:.0f} | {row} |")
    head = ["", "| start | answers | p50 ms | p95 ms | p99 ms | max ms |", "|---|---|---|---|---|---|"]
    return [*head, *rows] if rows else []


def _held(bar: dict[str, Any]) -> str:
    return "held" if bar["held"] else "**missed**"


def _options(result: dict[str, Any]) -> str:
    given = ", ".join(f"{name}={value}" for name, value in result["options"].items()) or "as the script says"
    return f"{given}; {result['seconds']:.0f} s"


def against_baseline(results: dict[str, Any]) -> list[str]:
    """A table of ratios to the last accepted figures; for times, more than 1 is slower."""
    if not BASELINE.exists():
        return []
    accepted = json.loads(BASELINE.read_text())
    now = figures(results)
    # A new figure has nothing to be compared with, and a ratio to zero says nothing.
    shared = [name for name in now if name in accepted["figures"] and accepted["figures"][name]]
    rows = [
        f"| {name} | {accepted['figures'][name]:g} | {now[name]:g} | {now[name] / accepted['figures'][name]:.2f} |"
        for name in shared
    ]
    head = f"Accepted on {accepted['machine']}, load average {accepted['load'][0]:.1f} to {accepted['load'][1]:.1f}."
    return [
        "## Compared with the last accepted run",
        "",
        head,
        "",
        "| figure | accepted | now | ratio |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def draw(results: dict[str, Any], folder: Path) -> list[str]:
    """Draw the plots and return their file names; none without matplotlib (the extra `plots`)."""
    try:
        import matplotlib as mpl

        # Before pyplot is imported, which would look for a display.
        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return []
    made = []
    for name, painter in (("latency.png", _latency), ("throughput.png", _throughput), ("pool.png", _pool)):
        figure = plt.figure(figsize=(9, 4.5), layout="constrained")
        if painter(results, figure):
            figure.savefig(folder / name, dpi=110)
            made.append(name)
        plt.close(figure)
    return made


def _latency(results: dict[str, Any], figure: Any) -> bool:
    """Percentiles, one group of bars for each scenario and start kind."""
    rows = [
        (f"{name}\n{kind}", times)
        for name, result in results["scenarios"].items()
        for kind, times in result.get("kinds", {}).items()
    ]
    if not rows:
        return False
    axes = figure.subplots()
    for index, quantile in enumerate(("p50", "p95", "p99")):
        at = [place + (index - 1) * 0.27 for place in range(len(rows))]
        axes.bar(at, [times[quantile] for _, times in rows], width=0.27, label=quantile)
    axes.set_xticks(range(len(rows)), [label for label, _ in rows], fontsize=6, rotation=90)
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds")
    axes.set_title("Latency by scenario and start kind")
    axes.legend()
    return True


def _throughput(results: dict[str, Any], figure: Any) -> bool:
    """Requests per second by connections in the closed loop, one line for each side."""
    rows = [row for row in results["scenarios"].get("compare", {}).get("rows", ()) if not row["arrivals"]]
    if not rows:
        return False
    axes = figure.subplots()
    for side in dict.fromkeys(row["side"] for row in rows):
        mine = [row for row in rows if row["side"] == side]
        # errorbar takes distances from the point, not ends.
        spread = [[row["rate"] - row["least"] for row in mine], [row["most"] - row["rate"] for row in mine]]
        axes.errorbar(
            [row["connections"] for row in mine], [row["rate"] for row in mine], spread, marker="o", label=side
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("connections")
    axes.set_ylabel("requests/s, median and spread")
    axes.set_title("Throughput against concurrency, one core each, same upstream")
    axes.legend(fontsize=8)
    return True


def _pool(results: dict[str, Any], figure: Any) -> bool:
    """The warm pool and the forecast over time, for every scenario that sampled them."""
    shown = {name: result["samples"] for name, result in results["scenarios"].items() if result.get("samples")}
    shown = {name: shown[name] for name in ("sessions", "spike", "wake_storm", "soak") if name in shown}
    if not shown:
        return False
    for axes, (name, samples) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for what in ("target", "ready", "starting", "claimed", "forecast_level"):
            values = [sample.get(f"wakegate_pool_{what}", 0.0) for sample in samples]
            axes.plot([sample["at"] for sample in samples], values, label=what.replace("_", " "), linewidth=1)
        axes.set_title(name)
        axes.set_xlabel("seconds")
    figure.axes[0].set_ylabel("sandboxes")
    figure.axes[0].legend(fontsize=7)
    return True
