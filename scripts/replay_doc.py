"""Make docs/autoscaler-report.md and the tables of docs/autoscaler.md of what scripts/replay has written.

.venv/bin/python scripts/replay_doc.py [FOLDER]     # build/replay
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.autoscaler.replay.lab import idle_on, lower_hull
from gateway.autoscaler.replay.report import HIT_RATES

DOCS = Path(__file__).resolve().parent.parent / "docs"
LEADS = ("10", "0.25", "1", "60")
BASELINES = ("keda", "kpa", "hpa", "histogram", "seasonal-naive")
AHEAD = 0.97  # of predictive's idle time: a baseline with less is counted as ahead
HEAD = """# The replay report, as printed

All of it was printed by one run of `scripts/replay`, and made into this page by `scripts/replay_doc.py`. At other leads
than 10 s, Twitter's trace is cut to 14 days.
"""
HOLDS = """## In one table

Idle time as a share of what the fixed pool with as many hits in hindsight idles: the geometric mean over the hit rates
of 90, 95, 98, 99, 99.5 and 99.9 % that are reached, for pools by a target (*predictive*) and by the price of a cold
start (*priced*). Then the baseline that comes closest to *predictive* at any hit rate: its idle time as a share of
predictive's, so that below 1 it is ahead. Of functions the means are over functions too, each at hit rates of its own.
"""
_PRINTED = re.compile(r"(<!-- printed: (\S+) (\S+) (\d) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """One trace at one hit rate."""

    trace: str
    hit_rate: float
    predictive: float  # share of fixed
    priced: float | None
    baseline: str  # the one that idles least
    beside: float | None  # its idle time as a share of predictive's


def report(built: Path, lead: str) -> Path:
    """The folder of the report at a lead time."""
    return built if lead == "10" else built / f"lead-{lead}"


def cells(trace: dict[str, Any]) -> list[Cell]:
    """A trace of report.json at each hit rate that is reached."""
    points: dict[str, list[tuple[float, float]]] = {}
    for each in trace["points"]:
        mean = each["idle_sandbox_seconds"] / each["scored_seconds"]
        points.setdefault(each["policy"], []).append((each["hit_rate"], mean))
    frontiers = {policy: lower_hull(found) for policy, found in points.items()}
    hits, idle = trace["fixed"]["hit_rate"], trace["fixed"]["mean_idle"]
    out = []
    for rate in HIT_RATES:
        ours = idle_on(frontiers["predictive"], rate)
        fixed = float(np.interp(rate, hits, idle)) if rate <= hits[-1] else 0.0
        if ours is None or not ours or not fixed:
            continue
        priced = idle_on(frontiers["priced"], rate) if "priced" in frontiers else None
        others = {name: idle_on(frontiers[name], rate) for name in BASELINES if name in frontiers}
        reached = {name: found for name, found in others.items() if found is not None}
        best = min(reached, key=lambda name: reached[name], default="")
        beside = reached[best] / ours if best else None
        out.append(Cell(trace["trace"], rate, ours / fixed, priced / fixed if priced else None, best, beside))
    return out


def mean(shares: list[float]) -> str:
    """The geometric mean; a share of nothing counts as a thousandth."""
    return f"{np.exp(np.mean(np.log(np.maximum(shares, 1e-3)))):.2f}" if shares else "-"


def holds(built: Path) -> str:
    """The table over all leads and traces, and where a baseline is ahead."""
    head = ("lead", "trace", "predictive", "priced", "closest baseline", "cells in which one is 3 % ahead")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    ahead: list[str] = []
    for lead in LEADS:
        traces: dict[str, list[Cell]] = {}
        for trace in json.loads((report(built, lead) / "report.json").read_text()):
            traces.setdefault(trace["trace"].partition("/")[0], []).extend(cells(trace))
        for name, found in traces.items():
            compared = [each for each in found if each.beside is not None]
            closest = min(compared, key=lambda each: each.beside or 0.0)
            behind = [each for each in compared if each.beside is not None and each.beside < AHEAD]
            member = "" if closest.trace == name else f" on {closest.trace.rpartition('/')[2]}"
            priced = [each.priced for each in found if each.priced is not None]
            row = (
                f"{lead} s", name, mean([each.predictive for each in found]), mean(priced),
                f"{closest.baseline}, {closest.beside:.2f} at {closest.hit_rate:.1%}{member}",
                f"{len(behind)} of {len(compared)}",
            )  # fmt: skip
            lines.append("| " + " | ".join(row) + " |")
            ahead += [
                f"| {lead} s | {each.trace.rpartition('/')[2]} | {each.hit_rate:.1%} | {each.predictive:.2f} |"
                f" {'-' if each.priced is None else format(each.priced, '.2f')} | {each.baseline}, {each.beside:.2f} |"
                for each in behind
            ]
    lines += ["", "Where a baseline is more than 3 % ahead of *predictive*:", ""]
    lines += ["| lead | trace | hits | predictive, of fixed | priced, of fixed | baseline, of predictive |"]
    lines += ["|" + " --- |" * 6, *ahead]
    return "\n".join(lines)


def section(path: Path, level: int) -> str:
    """A report without its title and pictures, its headings `level` deeper."""
    text = re.sub(r"\A# .*\n+", "", path.read_text())
    text = re.sub(r"^!\[.*\n+", "", text, flags=re.MULTILINE)
    return re.sub(r"^(#+) ", lambda found: "#" * level + f"{found[1]} ", text, flags=re.MULTILINE).strip()


def table(path: Path, name: str, number: int) -> str:
    """One table of a printed file, below the heading, or the bold line, that begins with a name."""
    text = path.read_text()
    at = re.search(rf"^(## |\*\*){re.escape(name)}", text, re.MULTILINE)
    assert at is not None, f"{path} has no {name}"
    return str(re.findall(r"(?:^\|.*\n?)+", text[at.start() :], re.MULTILINE)[number]).strip()


def main() -> None:
    """Write the documents. Raises FileNotFoundError where scripts/replay did not end."""
    built = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS.parent / "build" / "replay"
    parts = [HEAD, HOLDS, holds(built), section(built / "report.md", 0)]
    for lead in LEADS[1:]:
        parts += [f"## Lead time {lead} s", section(report(built, lead) / "report.md", 1)]
    parts += [section(built / "scenarios.md", 0), "## Idle gaps of sessions", (built / "gaps.md").read_text().strip()]
    (DOCS / "autoscaler-report.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")

    def printed(found: re.Match[str]) -> str:
        before, where, name, number, after = found.groups()
        path = built / f"{where}.md" if where in ("scenarios", "gaps") else report(built, where) / "report.md"
        return before + table(path, name, int(number)) + after

    page = DOCS / "autoscaler.md"
    page.write_text(_PRINTED.sub(printed, page.read_text()))
    shutil.copy(built / "frontier.png", DOCS / "img" / "frontier.png")


if __name__ == "__main__":
    main()
