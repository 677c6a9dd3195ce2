"""Scripts on a preloaded interpreter, in a real sandbox behind a real gateway."""

from __future__ import annotations

from pathlib import Path

from tests.integration.served import Server, serve, wait_until

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
    """What a command prints."""
    answer = server.client.post("/api/execute", json={"command": command}, headers={"x-session-id": session}).json()
    assert answer["exit_code"] == 0, answer
    return str(answer["stdout"])


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
