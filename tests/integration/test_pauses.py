"""Real gateways that did not run for longer than their sessions may live: the files are there afterwards."""

from __future__ import annotations

import signal
import time
from datetime import datetime
from pathlib import Path

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until


def short_lived(tmp_path: Path) -> tuple[str, ...]:
    """Flags of a runtime whose sessions may be awake for three seconds."""
    runtime = tmp_path / "runtime.yaml"
    runtime.write_text(
        "apiVersion: runtime.agentcube.volcano.sh/v1alpha1\nkind: CodeInterpreter\nmetadata: {name: my-interpreter}\n"
        "spec: {warmPoolSize: 1, sessionTimeout: 1s, maxSessionDuration: 3s, template: {image: any}}\n"
    )
    return "--runtime", str(runtime), "--sweep-interval", "200ms"


def wait_past_its_end(server: Server, session: str) -> None:
    ends = datetime.fromisoformat(server.state(session)["expiresAt"]).timestamp()
    server.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: time.time() > ends + 0.5, "its maximum duration is over by the clock on the wall")


def test_files_outlive_a_gateway_that_was_suspended(tmp_path: Path) -> None:
    """SIGSTOP for longer than the maximum duration: the session is hibernated afterwards, or goes on."""
    with serve(tmp_path / "state", *short_lived(tmp_path)) as server:
        session = server.session()
        assert server.run(session, "echo kept > note").status_code == 200
        wait_past_its_end(server, session)
        server.process.send_signal(signal.SIGCONT)
        reply = server.run(session, "cat note")
        assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n"), reply.text
        wait_until(lambda: server.state(session)["state"] == "hibernated", "it is hibernated when it is idle")


def test_files_outlive_a_gateway_that_was_killed_and_started_much_later(tmp_path: Path) -> None:
    """kill -9, and the next process after the maximum duration: the session is there, and says what it lost."""
    flags = short_lived(tmp_path)
    with serve(tmp_path / "state", *flags) as server:
        session = server.session()
        assert server.run(session, "echo kept > note").status_code == 200
        wait_past_its_end(server, session)
        server.kill()
    with serve(tmp_path / "state", *flags) as server:
        reply = server.run(session, "cat note")
        assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n"), reply.text
        assert reply.headers["x-wakegate-restored"] != "none"
