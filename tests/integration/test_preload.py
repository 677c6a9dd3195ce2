"""Scripts on a preloaded interpreter, in a real sandbox behind a real gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: my-interpreter}
spec: {template: {image: none}, warmPoolSize: 1, wakegate: {preload: [decimal]}}
"""
SCRIPT = """
import os, sys
print("decimal" in sys.modules, os.getcwd(), os.getpgrp() == os.getpid(), sorted(os.listdir("/proc/self/fd")))
"""


def run(server: Server, session: str, *command: str) -> str:
    """Run a command, which must succeed. Returns what it printed."""
    answer = server.client.post("/api/execute", json={"command": command}, headers={"x-session-id": session}).json()
    assert answer["exit_code"] == 0, answer
    return str(answer["stdout"])


PLOT = """
import sys
early = "matplotlib.pyplot" in sys.modules
import matplotlib.pyplot as plt, os
plt.plot([1, 4, 2])
plt.savefig("plot.png")
print(early, os.path.getsize("plot.png") > 1000, plt.matplotlib.get_configdir(), sorted(os.listdir(".")))
"""


def test_flag_preloads_plots_into_the_built_in_runtime(tmp_path: Path) -> None:
    """--preload reaches scripts and contexts; matplotlib keeps its files out of the workspace."""
    with serve(tmp_path / "state", "--warm-pool", "1", "--preload", "numpy,matplotlib.pyplot") as server:
        session = server.session()
        expected = "True True /tmp/.matplotlib ['plot.png']\n"
        look = "import sys; print('matplotlib.pyplot' in sys.modules)"
        wait_until(
            lambda: run(server, session, "python3", "-c", look) == "True\n", "scripts are preloaded", within=50.0
        )
        assert run(server, session, "python3", "-c", PLOT) == expected


def test_flag_that_names_no_modules_is_refused(tmp_path: Path) -> None:
    """In the words of the flag, before anything starts."""
    refused = pytest.raises(AssertionError, match=r"--preload: expected Python modules such as numpy,pandas, not 'a b'")
    with refused, serve(tmp_path / "state", "--preload", "a b"):
        pass


def test_runtimes_preload_reaches_scripts_also_after_a_wake(tmp_path: Path) -> None:
    """A script finds the runtime's modules, in a new session and in one that woke up with its files."""
    manifest = tmp_path / "runtime.yaml"
    manifest.write_text(MANIFEST)
    expected = "True /workspace True ['0', '1', '2', '3']\n"
    with serve(tmp_path / "state", "--runtime", str(manifest)) as server:
        session = server.session()
        run(server, session, "sh", "-c", f"cat > script.py <<'END'\n{SCRIPT}END\n")
        wait_until(lambda: run(server, session, "python3", "script.py") == expected, "the script is preloaded")

        assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code in (200, 202, 204)
        wait_until(lambda: server.state(session)["state"] == "hibernated", "it sleeps")
        wait_until(lambda: run(server, session, "python3", "script.py") == expected, "it woke up and is preloaded")
