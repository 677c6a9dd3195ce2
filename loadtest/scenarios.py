"""The scenarios of `scripts/loadtest`: each has its own gateway, its load, and samples of the gateway meanwhile.

`run` starts that gateway; `run_against` sends the same load to a running one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from loadtest.processes import family, own_pss_mb, require_programs, started, url_in

K6 = Path(__file__).parent / "k6"
_SETTLE_S = 15.0  # until sandboxes have ended and records have expired after a soak
_CANARY = ("old_requests", "old_failed", "canary_requests", "new_failed", "new_refused", "rolled_back")
_TIMEOUT_S = 1200.0  # the soak, the longest, takes 10 minutes
_MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {{name: my-interpreter}}
spec:
  template: {{image: none}}
  warmPoolSize: {pool}
  wakegate: {{pool: {{min: {low}, max: {most}}}}}
"""


@dataclass(frozen=True)
class Scenario:
    """A k6 script with its variables for a full and for a quick run; `pool` is (min, initial size, max)."""

    script: str
    about: str
    pool: tuple[int, int, int]
    full: dict[str, str] = field(default_factory=dict)
    quick: dict[str, str] = field(default_factory=dict)
    leaks: bool = False  # compare the gateway's resources before and after
    static: bool = False  # no sandboxes: every session uses the static upstream of loadtest/peers.py


SCENARIOS = {
    each.script: each
    for each in (
        Scenario("smoke", "each operation once", (1, 2, 5)),
        Scenario("sessions", "a session per user", (2, 5, 20), {"VUS": "10", "DURATION": "40s"},
                 {"VUS": "3", "RAMP": "2s", "DURATION": "5s"}),
        Scenario("tools", "steady tool calls", (1, 10, 12), {"RATE": "20"}, {"RATE": "5", "DURATION": "5s"}),
        Scenario("step", "0 to 1,000 requests/s over live sessions, static upstream", (1, 3, 12), {"RATE": "1000"},
                 {"RATE": "100", "DURATION": "5s"}, static=True),
        Scenario("spike", "200 new sessions at once on a pool of 20", (20, 20, 20), {"USERS": "200"}, {"USERS": "25"}),
        Scenario("wake_storm", "every hibernated session at once", (5, 10, 20), {"SESSIONS": "30", "REQUESTS": "10"},
                 {"SESSIONS": "4", "REQUESTS": "3"}),
        Scenario("streams", "long streams", (1, 10, 12), {"SECONDS": "20"}, {"VUS": "3", "SECONDS": "3"}),
        Scenario("websocket", "WebSockets to a server in a sandbox", (1, 2, 5), {"VUS": "50", "MESSAGES": "200"},
                 {"VUS": "5", "MESSAGES": "20"}),
        Scenario("canary", "a release that fails is rolled back, the old revision serves on", (1, 2, 5),
                 {"OLD": "8"}, {"SECONDS": "5"}),
        Scenario("soak", "creates, hibernations, wakes and deletes", (4, 4, 4), {"DURATION": "10m", "VUS": "4"},
                 {"DURATION": "15s", "VUS": "2"}, leaks=True),
    )
}  # fmt: skip


@dataclass
class Gateway:
    """A gateway process with real sandboxes."""

    url: str
    pid: int
    state: Path

    def metrics(self) -> dict[str, float]:
        """The gateway's metrics by name, summed over all labels."""
        found: dict[str, float] = {}
        for each in text_string_to_metric_families(_get(f"{self.url}/metrics")):
            for sample in each.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def holdings(self) -> dict[str, float]:
        """Resources that a leak would increase: memory, descriptors, processes, session records, files of state."""
        # All pages and all states: a record that is never deleted shows here.
        records = sum(1 for _ in self._records())
        files = sum(len(names) for _, _, names in os.walk(self.state))
        descriptors = len(os.listdir(f"/proc/{self.pid}/fd"))
        return {
            "memory MB": own_pss_mb(self.pid),
            "descriptors": descriptors,
            "processes": len(family(self.pid)),
            "records": records,
            "files": files,
        }

    def _records(self) -> Iterator[Any]:
        after = ""
        while True:
            page = json.loads(_get(f"{self.url}/v1/sessions?state=all&limit=1000{after}"))
            yield from page["sessions"]
            if page["next"] is None:
                return
            after = f"&after={page['next']}"


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


@contextlib.contextmanager
def gateway(folder: Path, pool: tuple[int, int, int]) -> Iterator[Gateway]:
    """Run a gateway for the length of a block, after its pool is full."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "runtime.yaml"
    manifest.write_text(_MANIFEST.format(low=pool[0], pool=pool[1], most=pool[2]))
    state = folder / "state"
    argv = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--state-dir", str(state)]
    argv += [
        "--runtime",
        str(manifest),
        "--no-default-runtime",
        "--terminated-retention",
        "5s",
        "--log-level",
        "warning",
    ]
    with open(folder / "gateway.log", "w") as log, started(argv, stderr=log) as (process, line):
        one = Gateway(url_in(line), process.pid, state)
        until_full(one, pool[1])
        yield one


@contextlib.contextmanager
def static_gateway(folder: Path) -> Iterator[Gateway]:
    """Run a gateway whose sandboxes are one static upstream, so that the load measures the gateway only."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack, open(folder / "gateway.log", "w") as log:
        _, port = stack.enter_context(started([sys.executable, "-m", "loadtest.peers", "upstream"], stderr=log))
        argv = [sys.executable, "-m", "loadtest.bench_gateway", f"127.0.0.1:{port}"]
        process, line = stack.enter_context(started(argv, stderr=log))
        yield Gateway(line.split()[0], process.pid, folder)


def until_full(one: Gateway, size: int) -> None:
    """Wait until `size` warm sandboxes are ready. Raises SystemExit after 120 s."""
    deadline = time.monotonic() + 120
    while one.metrics().get("wakegate_pool_ready", 0) < size:
        if time.monotonic() > deadline:
            raise SystemExit(f"the warm pool did not hold {size} within 120 s")
        time.sleep(0.2)


@contextlib.contextmanager
def watching(one: Gateway, every: float) -> Iterator[list[dict[str, float]]]:
    """Sample the gateway during a block: seconds since its beginning, pool, requests, memory.

    There are no samples of a gateway whose /metrics cannot be read.
    """
    samples: list[dict[str, float]] = []
    ended = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        while True:
            # A gateway that is too busy to be scraped leaves a gap in the plot; the load's own errors count for the
            # bars.
            with contextlib.suppress(OSError):
                seen = one.metrics()
                names = {
                    name: value
                    for name, value in seen.items()
                    if name.startswith(("wakegate_pool_", "wakegate_requests_"))
                }
                names["memory"] = seen.get("process_resident_memory_bytes", 0.0) / 1e6
                names["descriptors"] = seen.get("process_open_fds", 0.0)
                samples.append({"at": time.monotonic() - began, **names})
            if ended.wait(every):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        watcher.join()


def run_k6(script: str, url: str, environment: dict[str, str], summary: Path) -> tuple[int, str]:
    """Run one script against one gateway. Returns k6's exit status (99: a threshold was crossed) and its output."""
    (k6,) = require_programs("k6")
    argv = [k6, "run", "--quiet", "--no-usage-report", "--summary-export", str(summary), str(K6 / f"{script}.js")]
    for name, value in environment.items():
        argv += ["--env", f"{name}={value}"]
    done = subprocess.run(
        argv,
        env={**os.environ, "BASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT_S,
    )
    return done.returncode, done.stdout


def run(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Run one scenario on a new gateway. Returns its figures."""
    scenario = SCENARIOS[name]
    options = scenario.quick if quick else scenario.full
    with static_gateway(folder) if scenario.static else gateway(folder, scenario.pool) as one:
        if scenario.leaks:  # a warm-up first: what is allocated once and kept is not a leak
            run_k6(name, one.url, {**options, "DURATION": "10s"}, folder / "warm-up.json")
            time.sleep(_SETTLE_S)
            until_full(one, scenario.pool[1])
        before = one.holdings()
        began = time.monotonic()
        with watching(one, 0.5 if not scenario.leaks else 5.0) as samples:
            status, output = run_k6(name, one.url, options, folder / "summary.json")
        took = time.monotonic() - began
        if scenario.leaks:
            time.sleep(_SETTLE_S)
            until_full(one, scenario.pool[1])  # each warm sandbox has processes and descriptors
        after = one.holdings()
    result = _result(scenario, options, folder, status, output)
    result |= {"seconds": took, "samples": samples}
    if scenario.leaks:
        result["holdings"] = {"before": before, "after": after}
        result["bars"] += _leaks(name, before, after)
    return result


def run_against(url: str, name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Run one scenario against a running gateway. Its process cannot be inspected, so leaks are not checked."""
    scenario = SCENARIOS[name]
    options = scenario.quick if quick else scenario.full
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with watching(Gateway(url, 0, folder), 0.5) as samples:
        status, output = run_k6(name, url, options, folder / "summary.json")
    return {
        **_result(scenario, options, folder, status, output),
        "seconds": time.monotonic() - began,
        "samples": samples,
    }


def check_gateway(url: str) -> None:
    """Raises SystemExit unless a gateway that is ready answers at this URL."""
    if not url.startswith(("http://", "https://")):
        raise SystemExit(f"--url {url}: expected an address such as http://127.0.0.1:8080")
    try:
        _get(f"{url}/health/ready")
    except (OSError, ValueError) as error:
        raise SystemExit(f"no gateway that is ready answers at {url}/health/ready: {error}") from None


def _result(scenario: Scenario, options: dict[str, str], folder: Path, status: int, output: str) -> dict[str, Any]:
    """The figures of one run from k6's summary, without samples of the gateway. Raises SystemExit if there is none."""
    name = scenario.script
    (folder / "k6.txt").write_text(output)
    if not (folder / "summary.json").exists():
        raise SystemExit(f"k6 did not run {name}:\n{output}")
    summary = read_summary(folder / "summary.json")
    return {
        "name": name, "about": scenario.about, "options": options, "status": status, "kinds": _kinds(summary),
        "counts": _counts(summary), "holdings": None, "bars": _bars(name, status, summary),
    }  # fmt: skip


def read_summary(path: Path) -> dict[str, Any]:
    """The metrics of a k6 summary."""
    metrics: dict[str, Any] = json.loads(path.read_text())["metrics"]
    return metrics


def _kinds(summary: dict[str, Any]) -> dict[str, Any]:
    """Count and percentiles in milliseconds, by start kind."""
    return {
        name.removeprefix("start_").replace("_", "-"): {
            "count": each["count"], "p50": each["med"], "p95": each["p(95)"], "p99": each["p(99)"], "max": each["max"],
        }
        for name, each in summary.items()
        if name.startswith("start_") and each.get("count")
    }  # fmt: skip


def _counts(summary: dict[str, Any]) -> dict[str, float]:
    counted = {"requests": "http_reqs", "iterations": "iterations", "rejections": "rejections"}
    named = ("server_errors", "broken_requests", "dropped_iterations", "ws_echoed", "woken", *_CANARY)
    counted |= {name: name for name in named}
    found = {shown: float(summary[name]["count"]) for shown, name in counted.items() if name in summary}
    if "http_reqs" in summary:
        found["requests/s"] = float(summary["http_reqs"]["rate"])
    if "checks" in summary:
        found["failed checks"] = float(summary["checks"]["fails"])
    return found


def _bars(name: str, status: int, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The bars of one run: no errors, and no threshold of the script crossed."""
    # 429 is none of them: a full pool is allowed to say so.
    failures = ("server_errors", "broken_requests", "failed checks", "old_failed", "new_failed")
    errors = sum(_counts(summary).get(each, 0) for each in failures)
    return [
        {"text": f"{name}: errors", "figure": errors, "bound": "<= 0", "held": errors == 0},
        {"text": f"{name}: k6's status (99: a threshold of the script)", "figure": status, "bound": "<= 0",
         "held": status == 0},
    ]  # fmt: skip


def _leaks(name: str, before: dict[str, float], after: dict[str, float]) -> list[dict[str, Any]]:
    """The bars of a soak: how much each resource may have grown."""
    bars: list[dict[str, Any]] = []
    # Allowances for what is not a leak: memory that the allocator keeps, and a refill that runs at the moment of
    # counting.
    for what, most in (("memory MB", 10.0), ("descriptors", 5), ("processes", 6), ("records", 0), ("files", 5)):
        grown = after[what] - before[what]
        text = f"{name}: growth of {what}"
        bars.append({"text": text, "figure": grown, "bound": f"<= {most:g}", "held": grown <= most})
    return bars
