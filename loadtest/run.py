"""`scripts/loadtest [SCENARIO ...|all]`: runs load tests, each on its own gateway, and writes report/.

    scripts/loadtest --quick                                 every scenario for a few seconds
    scripts/loadtest spike soak                              these scenarios
    scripts/loadtest --url http://127.0.0.1:8080 [spike]     against a running gateway (smoke by default)

Scenarios: those of loadtest/scenarios.py (k6 against a gateway with real sandboxes), and compare, bulk, idle (the data
path only). `--quick` runs each for a few seconds; `--accept` saves the figures with which later runs are compared.
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

_TIMEOUT_S = 900.0  # compare, the longest, takes about 5 minutes

TOOLS: dict[str, tuple[str, list[str], list[str]]] = {
    "compare": ("the data path and other proxies", [], ["--seconds", "1", "--repeats", "1", "--rates", "500"]),
    "bulk": ("1 GB down and up", [], ["--megabytes", "64", "--repeats", "1"]),
    "idle": ("connections that do nothing, and a scrape", [],
             ["--clients", "300", "--sockets", "50", "--sessions", "300"]),
}  # fmt: skip


def run_tool(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Run one of the scripts that measure the data path only. Raises SystemExit if it writes no figures."""
    about, full, short = TOOLS[name]
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "figures.json"
    argv = [sys.executable, "-m", f"loadtest.{name}", "--json", str(out), *(short if quick else full)]
    # A process of its own: a tool that fails, or raises limits on descriptors, does not affect the next one.
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=_TIMEOUT_S)
    if not out.exists():
        raise SystemExit(f"{name} failed with status {done.returncode}:\n{done.stdout}")
    return {"name": name, "about": about, "output": done.stdout, **json.loads(out.read_text())}


def attempt(name: str, folder: Path, *, quick: bool, url: str | None = None) -> dict[str, Any]:
    """Run one scenario. One that fails to run becomes a missed bar with the reason, so that the others still run."""
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
    """Run the named scenarios. Returns the exit status, 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*TOOLS, *scenarios.SCENARIOS]
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help=f"all, {', '.join(names)}")
    parser.add_argument(
        "--url",
        type=lambda text: text.rstrip("/"),
        help="of a running gateway; without it one is started for each scenario. "
        "RUNTIME=NAMESPACE/NAME in the environment names another runtime than default/my-interpreter",
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds for each scenario")
    parser.add_argument("--accept", action="store_true", help="write loadtest/baseline.json")
    parser.add_argument("--out", type=Path, default=Path("report"))
    args = parser.parse_args()
    unknown = [name for name in args.scenario if name not in (*names, "all")]
    if unknown:
        parser.error(f"unknown scenario {unknown[0]!r}; expected all, {', '.join(names)}")
    if args.url is not None:
        if args.accept:
            parser.error(
                "--accept cannot be combined with --url: the figures of a remote gateway are not of this machine"
            )
        # They pin processes to cores and read their CPU time, which only works on this machine.
        if alone := [name for name in args.scenario if name in TOOLS]:
            parser.error(f"{alone[0]} measures a gateway that it starts itself; it cannot be combined with --url")
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
            report.write(results, args.out)  # after each scenario, so that an interrupted run has a report
    if args.accept:
        report.accept(results)
    print(f"wrote {args.out / 'report.md'}")
    return int(any(not bar["held"] for result in results["scenarios"].values() for bar in result["bars"]))


if __name__ == "__main__":
    raise SystemExit(main())
