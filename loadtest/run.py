"""`scripts/loadtest [SCENARIO ...|all]`: starts what it needs, runs, stops it, and writes report/.

    scripts/loadtest --quick                                 every scenario for seconds
    scripts/loadtest spike soak                              these
    scripts/loadtest --url http://127.0.0.1:8080 [spike]     against a gateway that already runs (smoke by default)

Scenarios: those of loadtest/scenarios.py (k6 against a gateway with real sandboxes), and compare, bulk, idle (the data
path alone). `--quick` runs each for seconds; `--accept` makes this run the one that later ones are compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadtest import report, scenarios

_LONGEST_S = 900.0  # a script that takes longer hangs; compare takes about 5 minutes

TOOLS: dict[str, tuple[str, list[str], list[str]]] = {
    "compare": ("the data path beside its peers", [], ["--seconds", "1", "--repeats", "1", "--rates", "500"]),
    "bulk": ("1 GB down and up", [], ["--megabytes", "64", "--repeats", "1"]),
    "idle": ("connections that do nothing, and a scrape", [],
             ["--clients", "300", "--sockets", "50", "--sessions", "300"]),
}  # fmt: skip


def run_tool(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """One of the scripts that measure the data path alone."""
    about, full, short = TOOLS[name]
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "figures.json"
    argv = [sys.executable, "-m", f"loadtest.{name}", "--json", str(out), *(short if quick else full)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=_LONGEST_S)
    if not out.exists():
        raise SystemExit(f"{name} failed with status {done.returncode}:\n{done.stdout}")
    return {"name": name, "about": about, "output": done.stdout, **json.loads(out.read_text())}


def attempt(name: str, folder: Path, *, quick: bool, url: str | None = None) -> dict[str, Any]:
    """One scenario; what keeps it from running at all is a missed bar with the reason, and the others still run."""
    about = TOOLS[name][0] if name in TOOLS else scenarios.SCENARIOS[name].about
    try:
        if url is not None:
            return scenarios.run_against(url, name, folder, quick=quick)
        runner = run_tool if name in TOOLS else scenarios.run
        return runner(name, folder, quick=quick)
    except (Exception, SystemExit) as error:
        output = f"{type(error).__name__}: {error}"
        print(output, flush=True)
        bar = {"text": f"{name}: did not run", "figure": 1.0, "bound": "<= 0", "held": False}
        return {"name": name, "about": about, "output": output, "bars": [bar]}


def main() -> int:
    """Run the scenarios that were named; status 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*TOOLS, *scenarios.SCENARIOS]
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help=f"all, {', '.join(names)}")
    parser.add_argument(
        "--url",
        type=lambda text: text.rstrip("/"),
        help="of a gateway that already runs; without it one is started for each scenario. "
        "RUNTIME=NAMESPACE/NAME in the environment names another runtime than default/my-interpreter",
    )
    parser.add_argument("--quick", action="store_true", help="seconds each: does it work at all")
    parser.add_argument("--accept", action="store_true", help="write loadtest/baseline.json")
    parser.add_argument("--out", type=Path, default=Path("report"))
    args = parser.parse_args()
    unknown = [name for name in args.scenario if name not in (*names, "all")]
    if unknown:
        parser.error(f"unknown scenario {unknown[0]!r}; expected all, {', '.join(names)}")
    if args.url is not None:
        if args.accept:
            parser.error("--accept is for the machine's own runs; it does not go with --url")
        if alone := [name for name in args.scenario if name in TOOLS]:
            parser.error(f"{alone[0]} measures a gateway that it starts itself; it does not go with --url")
        names = list(scenarios.SCENARIOS)
        scenarios.check_gateway(args.url)
    scenario = args.scenario or (["all"] if args.url is None else ["smoke"])
    wanted = names if "all" in scenario else scenario
    results: dict[str, Any] = {"machine": report.machine(), "load": [os.getloadavg()[0], 0.0], "scenarios": {}}
    with tempfile.TemporaryDirectory(prefix="wakegate-load-") as folder:
        for name in wanted:
            print(f"{name} ...", flush=True)
            result = results["scenarios"][name] = attempt(name, Path(folder) / name, quick=args.quick, url=args.url)
            for bar in result["bars"]:
                held = "held" if bar["held"] else "MISSED"
                print(f"  {held:<6} {bar['text']}: {bar['figure']:.2f} (bar {bar['bound']})", flush=True)
            results["load"][1] = os.getloadavg()[0]
            report.write(results, args.out)  # after each, so that a run that is broken off has its report
    if args.accept:
        report.accept(results)
    print(f"wrote {args.out / 'report.md'}")
    return int(any(not bar["held"] for result in results["scenarios"].values() for bar in result["bars"]))


if __name__ == "__main__":
    raise SystemExit(main())
