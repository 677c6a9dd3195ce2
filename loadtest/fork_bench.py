"""Scripts on a preloaded interpreter compared with fresh ones, and the cheapest command, through a gateway in one run.

    scripts/bench fork_bench [--runs 60]

One gateway with two runtimes that differ in `preload: [numpy, pandas]` only, a live session of each, one request at a
time, in turns of 20. Prints p50 and p90 and the ratio to a fresh interpreter; exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from loadtest.figures import quantile
from loadtest.local import Caller
from loadtest.processes import started, url_in

_MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {{name: {name}}}
spec: {{template: {{image: none}}, warmPoolSize: 1, wakegate: {{preload: [{preload}]}}}}
---
"""
_SCRIPTS = {
    "script.py": "import numpy, pandas\n",
    "frame.py": "import numpy, pandas\nprint(pandas.DataFrame(numpy.arange(20).reshape(4, 5)).describe())\n",
    "exit.py": "import sys, numpy, pandas\nsys.exit(0)\n",
    "file.py": "import numpy, pandas\nleft = open('left', 'w')\nleft.write('x')\n",
}
ROW = 20  # runs of one session, one after another
_BARS = {("script.py", "forked"): 10.0, ("true", "fresh"): 3.0}  # ms, p50


class Session:
    """A session of one runtime, through the gateway's HTTP API."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client, self._id = client, session
        self._caller = Caller(str(client.base_url), session)

    def run(self, *command: str) -> tuple[float, dict[str, Any]]:
        """Run one command, which must succeed. Returns milliseconds and the answer."""
        took, answer = self._caller.post("/api/execute", {"command": command})
        if answer["exit_code"]:
            raise SystemExit(f"{command}: {answer}")
        return took, answer

    def write(self, name: str, text: str) -> None:
        """Write a file into the workspace."""
        reply = self._client.put(f"/api/files/{name}", content=text, headers={"x-session-id": self._id})
        reply.raise_for_status()


def measure(url: str, runs: int) -> int:
    """Print the table. Returns how many bars were missed."""
    with httpx.Client(base_url=url, timeout=60) as client:
        sessions: dict[str, Session] = {}
        for name in ("fresh", "forked"):
            reply = client.post("/v1/sessions", json={"runtime": f"default/{name}"})
            sessions[name] = Session(client, reply.raise_for_status().json()["id"])
            for script, text in _SCRIPTS.items():
                sessions[name].write(script, text)
        ahead = ("python3", "-c", "import sys; print('pandas' in sys.modules)")
        # The preloaded interpreter is ready some seconds after its sandbox; until then scripts run on fresh ones.
        while sessions["forked"].run(*ahead)[1]["stdout"] != "True\n":
            time.sleep(0.2)
        missed = 0
        print(f"{'':<12}{'path':<8}{'p50 ms':>8}{'p90 ms':>8}{'of fresh':>10}   load {os.getloadavg()[0]:.1f}")
        for what in ("true", "python3 -c", *_SCRIPTS):
            command = {"true": ("true",), "python3 -c": ("python3", "-c", "pass")}.get(what, ("python3", what))
            times: dict[str, list[float]] = {name: [] for name in sessions}
            for _ in range(max(1, runs // ROW)):
                for name, session in sessions.items():
                    # Not counted: the first run of a turn refills caches that the other session has emptied.
                    session.run(*command)
                    times[name] += [session.run(*command)[0] for _ in range(ROW)]
            base = quantile(times["fresh"], 0.5)
            for name, values in times.items():
                p50, bar = quantile(values, 0.5), _BARS.get((what, name))
                verdict = "" if bar is None else f"   bar {bar:g} ms: {'met' if p50 <= bar else 'MISSED'}"
                missed += bar is not None and p50 > bar
                print(f"{what:<12}{name:<8}{p50:8.2f}{quantile(values, 0.9):8.2f}{p50 / base:10.3f}{verdict}")
        return missed


def main() -> int:
    """Start a gateway, measure, end it."""
    parser = argparse.ArgumentParser(description="Scripts on a preloaded interpreter beside fresh ones.")
    parser.add_argument("--runs", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wakegate-bench-") as name:
        folder = Path(name)
        manifest = folder / "runtimes.yaml"
        made = (("fresh", ""), ("forked", "numpy, pandas"))
        manifest.write_text("".join(_MANIFEST.format(name=name, preload=preload) for name, preload in made))
        argv = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--state-dir", str(folder / "state")]
        argv += ["--no-default-runtime", "--code-context", "lazy"]  # no kernel that starts meanwhile
        with started([*argv, "--runtime", str(manifest)]) as (_, line):
            return min(1, measure(url_in(line), args.runs))


if __name__ == "__main__":
    raise SystemExit(main())
