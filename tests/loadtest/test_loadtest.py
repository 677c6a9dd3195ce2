"""The load scripts run: k6 and locust against a gateway with real sandboxes, and the report of what they saw."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest import processes, report, run, scenarios
from loadtest.client import generate
from tests.support.scripted import Call, OpenScripted
from tests.support.serve import serve

ROOT = Path(__file__).parents[2]
SMALL = {
    "smoke": {},
    "sessions": {"VUS": "1", "RAMP": "1s", "DURATION": "1s", "THINK_S": "0.1"},
    "tools": {"RATE": "2", "SESSIONS": "1", "DURATION": "2s", "MAX_VUS": "10"},
    "step": {"RATE": "20", "SESSIONS": "1", "DURATION": "1s", "VUS": "5", "MAX_VUS": "20"},
    "spike": {"USERS": "3"},
    "wake_storm": {"SESSIONS": "1", "REQUESTS": "3"},
    "soak": {"VUS": "1", "DURATION": "1s", "THINK_S": "0"},
    "streams": {"VUS": "1", "SECONDS": "1"},
    "websocket": {"VUS": "2", "MESSAGES": "5"},
    "canary": {"OLD": "2", "NEW": "1", "SECONDS": "2"},
}

SLOW = (pytest.mark.slow, pytest.mark.timeout(180))  # its steps wait for starts of sandboxes, which other tests delay


@pytest.fixture(scope="module")
def gateway_url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A gateway with real sandboxes for all scripts."""
    with serve(tmp_path_factory.mktemp("load") / "state", "--warm-pool", "3") as server:
        yield server.url


def tried(script: str) -> Any:
    """Three of the scripts in every run; together they use all that the others share. The rest with the slow tests."""
    return script if script in ("smoke", "wake_storm", "websocket") else pytest.param(script, marks=SLOW)


@pytest.mark.parametrize("script", [tried(script) for script in SMALL])
def test_k6_script_runs_without_an_error(script: str, gateway_url: str, tmp_path: Path) -> None:
    """Each script on a small scale: every check holds, no 5xx. Its latency thresholds are for quiet machines."""
    summary = tmp_path / "summary.json"
    _, output = scenarios.run_k6(script, gateway_url, SMALL[script], summary)
    assert summary.exists(), output
    counts = scenarios._counts(scenarios.read_summary(summary))
    assert (counts["failed checks"], counts["server_errors"], counts["broken_requests"]) == (0, 0, 0), output
    assert counts["iterations"] >= 1


def loadtest_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`scripts/loadtest` without its set-up."""
    argv = [sys.executable, "-m", "loadtest.run", *arguments]
    return subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=55)


def test_scenario_runs_against_a_gateway_that_already_runs(gateway_url: str, tmp_path: Path) -> None:
    """`--url` starts no gateway: the smoke scenario goes to that one, and its report has what was seen there."""
    done = loadtest_run("--url", f"{gateway_url}/", "--out", str(tmp_path))
    assert "held   smoke: errors" in done.stdout, done.stdout
    result = json.loads((tmp_path / "results.json").read_text())["scenarios"]
    assert list(result) == ["smoke"]
    assert result["smoke"]["samples"][0]["wakegate_pool_target"] >= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--url", "http://127.0.0.1:9"), "no gateway that is ready answers at http://127.0.0.1:9"),
        (("--url", "127.0.0.1:8080"), "expected an address such as http://"),
        (("--url", "http://127.0.0.1:9", "compare"), "compare measures a gateway that it starts itself"),
    ],
)
def test_url_that_cannot_be_loaded_is_refused_in_a_sentence(arguments: tuple[str, ...], named: str) -> None:
    """No traceback, and nothing has been started."""
    done = loadtest_run(*arguments)
    assert done.returncode != 0
    assert named in done.stdout
    assert "Traceback" not in done.stdout


def test_programs_are_found_beside_python_and_where_servers_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty PATH hides neither k6 nor nginx; what is missing is named with the way to install it."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(processes, "_SERVER_FOLDERS", (str(tmp_path),))
    server = tmp_path / "nginx"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    assert processes.require_programs("k6", "nginx") == [str(Path(sys.executable).with_name("k6")), str(server)]
    with pytest.raises(SystemExit, match=r"haproxy, taskset; .*apt-get install haproxy util-linux"):
        processes.require_programs("nginx", "haproxy", "taskset")


def test_every_k6_script_is_a_scenario_and_is_tried() -> None:
    """None is forgotten by the runner or by the test above."""
    scripts = {path.stem for path in scenarios.K6.glob("*.js")}
    assert scripts == set(scenarios.SCENARIOS) == set(SMALL)


def test_locust_file_runs_headless_without_a_failure(gateway_url: str) -> None:
    """All user classes, for seconds; locust's status is 1 when any request failed."""
    locust = Path(sys.executable).with_name("locust")
    argv = [str(locust), "-f", str(ROOT / "loadtest" / "locustfile.py"), "--host", gateway_url, "--headless"]
    argv += ["-u", "3", "-r", "3", "-t", "3s", "--stop-timeout", "30", "--only-summary"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=55)
    assert done.returncode == 0, done.stdout
    assert "run [live]" in done.stdout


async def test_open_loop_counts_time_from_when_a_request_was_due(open_gateway: OpenScripted) -> None:
    """A server that answers one request at a time, late, cannot make the load wait politely and look fast."""

    async def script(call: Call) -> None:
        await call.body()
        await asyncio.sleep(0.1)  # ten a second on one connection, at most
        await call.reply()

    gateway, _ = await open_gateway(script)
    headers = [f"x-session-id: {await gateway.session()}"]
    told = await generate(f"{gateway.url}/a", 1, 1.0, 50.0, headers)
    assert told["errors"] >= 35  # were due, and never sent
    assert 1 <= told["requests"] <= 10
    closed = await generate(f"{gateway.url}/a", 1, 0.5, 0.0, headers)
    assert (closed["errors"], closed["requests"] <= 5) == (0, True)


RESULT = {
    "machine": "a machine",
    "load": [0.1, 0.2],
    "scenarios": {
        "spike": {
            "about": "many at once", "options": {"USERS": "3"}, "seconds": 2.0, "counts": {"requests": 9.0},
            "kinds": {"warm": {"count": 3, "p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 4.0}},
            "samples": [{"at": 0.0, "wakegate_pool_ready": 1.0}, {"at": 1.0, "wakegate_pool_ready": 0.0}],
            "holdings": {"before": {"files": 1}, "after": {"files": 2}},
            "bars": [{"text": "spike: errors", "figure": 1.0, "bound": "<= 0", "held": False}],
        },
        "canary": {
            "about": "no starts are timed", "options": {}, "seconds": 2.0, "counts": {"old_failed": 0.0}, "kinds": {},
            "samples": [], "holdings": None, "bars": [],
        },
        "compare": {
            "about": "peers", "output": "a table", "bars": [],
            "rows": [{"connections": 1, "arrivals": 0, "side": "direct", "rate": 5.0, "least": 4.0, "most": 6.0}],
        },
    },
}  # fmt: skip


def test_report_lists_missed_bars_and_compares_with_the_last_accepted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, plots and ratios; what was accepted is what later runs are compared with."""
    monkeypatch.setattr(report, "BASELINE", tmp_path / "baseline.json")
    report.accept(RESULT)
    report.write(RESULT, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    for part in (
        "0 of 1 bars held",
        "| spike: errors | 1.00 | <= 0 | **missed** |",
        "| warm | 3 | 1.0 | 2.0 | 3.0 | 4.0 |",
        "| files | 1.0 | 2.0 |",
        "| spike warm p50 ms | 1 | 1 | 1.00 |",
        "old_failed 0",
    ):
        assert part in text
    for plot in ("latency.png", "throughput.png", "pool.png"):
        assert (tmp_path / "report" / plot).read_bytes().startswith(b"\x89PNG")
        assert plot in text


def test_scenario_that_cannot_run_is_reported_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway that does not come up costs its own scenario only; the report has the reason, the status is 1."""

    def broken_or_not(name: str, folder: Path, *, quick: bool) -> dict[str, Any]:
        if name == "smoke":
            raise SystemExit("the gateway did not start: no port")
        return {**RESULT["scenarios"]["spike"], "bars": []}  # type: ignore[index]

    monkeypatch.setattr(scenarios, "run", broken_or_not)
    monkeypatch.setattr(sys, "argv", ["loadtest", "smoke", "spike", "--out", str(tmp_path)])
    assert run.main() == 1
    text = (tmp_path / "report.md").read_text()
    assert "| smoke: did not run | 1.00 | <= 0 | **missed** |" in text
    assert "the gateway did not start: no port" in text
    assert "## spike: many at once" in text
    assert "MISSED smoke: did not run" in capsys.readouterr().out
