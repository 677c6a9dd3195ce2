"""An agent that does not become ready: what is said of it, at its rollout and by `wakegate deploy`."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.kube.served import in_cluster
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

SERVER = """
import http.server, os, sys
class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            os._exit(3)
        self.send_response(500 if self.path == "/ready" else 200)
        self.end_headers()
        self.wfile.write(f"{os.environ['AGENT_HOST']} {os.environ['AGENT_PORT']}".encode())
    def log_message(self, *_): pass
print("loading the model", flush=True)
http.server.ThreadingHTTPServer((%s), Agent).serve_forever()
"""
WRONG = {
    "over": ("print('done')", "its command exited with status 0 before it answered; an agent is a server"),
    "broken": ("import not_there", "its command exited with status 1: "),
    "elsewhere": (SERVER % "'127.0.0.1', 5000", "it listens on 127.0.0.1 port 5000; it has to listen on AGENT_HOST"),
    "nowhere": ("import time; print('thinking', flush=True); time.sleep(600)", "it listens on no port; it has to"),
    "another-address": (SERVER % "'127.0.0.2', 8090", "it listens on 127.0.0.2 port 8090; it has to listen on"),
    "unready": (SERVER % "'127.0.0.1', 8090", "it listens on port 8090 and does not answer /ready with 2xx or 3xx"),
}


def spec(code: str, **container: Any) -> dict[str, Any]:
    made = {"name": "agent", "image": "x", "command": ["python3", "-c", code], **container}
    return {
        "targetPort": [{"pathPrefix": "/", "port": 8090, "protocol": "HTTP"}],
        "podTemplate": {"spec": {"containers": [made]}},
        "warmPoolSize": 1,
    }


def last_event(server: Server, name: str) -> str:
    events = server.client.get(f"/v1/agents/{name}").json()["status"]["events"]
    found: list[str] = [each["text"] for each in events if each["text"].startswith("failed")]
    return found[-1] if found else ""


def test_reason_says_where_it_listens_or_how_it_ended_and_what_it_printed_last(tmp_path: Path) -> None:
    """Six agents that never answer; one that listens where its environment says."""
    with serve(tmp_path / "state") as server:
        for name, (code, _) in WRONG.items():
            probe = {"readinessProbe": {"httpGet": {"path": "/ready", "port": 8090}}} if name == "unready" else {}
            # Those that end fail after three starts; the others hold the places of starts for some seconds.
            strategy = {} if name in ("over", "broken") else {"startTimeout": "12s"}
            made = server.client.post(
                "/v1/agents", json={"name": name, "spec": spec(code, **probe), "strategy": strategy}
            )
            assert made.status_code == 201, made.text
        good = "os.environ['AGENT_HOST'], int(os.environ['AGENT_PORT'])"
        server.client.post("/v1/agents", json={"name": "good", "spec": spec(SERVER % good)})
        path = "/v1/namespaces/default/agent-runtimes/good/invocations/"
        assert server.client.get(path).text == "127.0.0.1 8090"
        # A crash is one 502: the next request of the session, at once, is answered by another sandbox.
        session = {"x-session-id": server.client.get(path).headers["x-session-id"]}
        for _ in range(3):
            assert server.client.get(f"{path}crash", headers=session).status_code == 502
            assert server.client.get(path, headers=session).text == "127.0.0.1 8090"
        for name, (_, expected) in WRONG.items():
            wait_until(partial(last_event, server, name), f"{name} has failed")
            text = last_event(server, name)
            assert expected in text, text
            if name in ("elsewhere", "another-address", "unready"):
                assert text.endswith("its log ends: loading the model"), text
        assert "ModuleNotFoundError: No module named 'not_there'" in last_event(server, "broken")


@pytest.mark.slow
def test_deploy_prints_the_reason(tmp_path: Path) -> None:
    """A script that ends at once, with the last lines of its log; and slips of the command line, before an upload."""
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "main.py").write_text("raise SystemExit('MODEL_KEY is not set')")
    with serve(tmp_path / "state") as server:
        environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(tmp_path)}

        def deploy(*words: str) -> str:
            command = [sys.executable, "-m", "gateway", "deploy", str(folder), *words]
            done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
            assert done.returncode != 0
            return done.stdout + done.stderr

        assert "its command exited with status 1: MODEL_KEY is not set" in deploy()
        for words, expected in (
            (["--name", "Bad Name"], "expected a DNS name"), (["--port", "0"], "greater than or equal to 1"),
            (["--secret", "X"], "expected NAME=HOST"), (["--canary", "500"], "less than or equal to 100"),
        ):  # fmt: skip
            printed = deploy(*words)
            assert expected in printed, printed
            assert " bytes" not in printed


def test_deploy_prints_the_reason_in_a_cluster(tmp_path: Path) -> None:
    """The last lines of the container's log, which the kubelet puts into the pod's status."""
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "main.py").write_text("raise SystemExit('MODEL_KEY is not set')")
    with in_cluster(tmp_path) as (server, _):
        environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "gateway", "deploy", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode != 0
    assert "last ended with Error: MODEL_KEY is not set" in done.stderr
