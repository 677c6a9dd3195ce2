"""kill -9 while TLS is ended: what a client in a sandbox sees, that nothing leaks, and what serves the next one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.internet import Internet
from tests.support.serve import Server, child_that_runs, processes_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

VALUE = "sk-live-of-the-fault-test"
ORIGIN = "https://origin.example.com"
# No warm sandbox: the descriptors of one that is made later would count as left over.
MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: my-interpreter}
spec:
  template: {image: none}
  warmPoolSize: 0
  wakegate:
    egress: [origin.example.com]
    secrets:
      - {name: API_KEY, hosts: [origin.example.com], bearer: true, from: {env: TEST_API_KEY}}
"""
# More than any machine fetches in a test: what ends it is not its end.
LOAD = f"curl -sS -o /dev/null {ORIGIN}/bytes/99999999999; echo $? >/workspace/ended"
# A hello that is begun and never ended: its record has 512 bytes, of which three come.
HALF = (
    "exec 3<>/dev/tcp/127.0.0.1/3128; "
    r'printf "CONNECT origin.example.com:443 HTTP/1.1\r\n\r\n\x16\x03\x01\x02\x00\x01\x01\x01" >&3; '
    "while read -r never <&3; do :; done"
)


@pytest.fixture
def flags(world: Internet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a gateway whose secret has TLS ended for the origin."""
    monkeypatch.setenv("TEST_API_KEY", VALUE)
    manifest = tmp_path / "runtime.yaml"
    manifest.write_text(MANIFEST)
    return ["--runtime", str(manifest), "--egress-ca", str(world.ca), "--snapshots", (tmp_path / "kept").as_uri()]


@pytest.fixture
def server(world: Internet, flags: list[str], tmp_path: Path) -> Iterator[Server]:
    """That gateway."""
    with world.serve(tmp_path, *flags) as made:
        yield made


def load(server: Server, session: str) -> None:
    """Begin a download in the sandbox that does not end, and wait until it runs."""
    before = _received(server, session)
    server.run(session, f"rm -f ended; ({LOAD}) >log 2>&1 &")
    wait_until(lambda: _received(server, session) > before + 1_000_000, "it runs")


def _received(server: Server, session: str) -> int:
    return int(server.client.get(f"/v1/sessions/{session}/egress").json()["bytesReceived"])


def fetch(server: Server, session: str) -> tuple[str, str]:
    """What a new connection gets: curl's status of the answer, and what curl complained of."""
    shown = server.run(session, f"curl -sS -o answer -w '%{{http_code}}' {ORIGIN}/x").json()
    return shown["stdout"], shown["stderr"]


def connections(server: Server, session: str) -> dict[str, int]:
    """How many are open, and what became of the others."""
    found: dict[str, int] = server.client.get(f"/v1/sessions/{session}/egress").json()["connections"]
    return found


def egress_service(server: Server) -> psutil.Process:
    """The process of the gateway that has the connections."""
    return child_that_runs(server, "gateway.egress")


def kept_by(state: Path) -> dict[str, bytes]:
    """The authority's files."""
    return {path.name: path.read_bytes() for path in (state / "egress").iterdir()}


def test_killed_service_breaks_connections_and_leaves_nothing(server: Server, world: Internet, tmp_path: Path) -> None:
    """Three times: the client fails at once, the next connection is served with the key, and no descriptor stays."""
    session = server.session()
    assert fetch(server, session) == ("200", "")
    authority, gateway = kept_by(tmp_path / "state"), psutil.Process(server.process.pid)
    before = gateway.num_fds()
    for _ in range(3):
        load(server, session)
        os.kill(egress_service(server).pid, signal.SIGKILL)
        wait_until(lambda: server.run(session, "cat ended").json()["exit_code"] == 0, "curl has ended")
        # 18: less than was announced; 56: TLS ended without a word. Neither looks like a whole answer.
        assert server.run(session, "cat ended").json()["stdout"].strip() in ("18", "56")
        assert fetch(server, session) == ("200", "")
    assert dict(world.requests()[-1]["headers"])["authorization"] == f"Bearer {VALUE}"
    assert kept_by(tmp_path / "state") == authority
    shown = server.client.get(f"/v1/sessions/{session}/egress").json()
    cut = [line for line in shown["log"] if line["outcome"] == "cut"]
    assert [line["reason"] for line in cut] == ["the egress service ended"] * 3
    wait_until(lambda: gateway.num_fds() <= before, "the gateway has closed what belonged to the dead services")


def test_connections_of_killed_clients_leave_nothing_in_the_service(server: Server) -> None:
    """Twenty clients are killed in the middle of an answer, or of the handshake: the service closes all they had."""
    session = server.session()
    assert fetch(server, session) == ("200", "")
    wait_until(lambda: connections(server, session)["open"] == 0, "the service has closed it")
    service = egress_service(server)
    before = service.num_fds()
    for _ in range(2):
        load(server, session)
        server.run(session, f"for _ in $(seq 10); do ({LOAD}) & bash -c '{HALF}' & done >/dev/null 2>&1 &")
        wait_until(lambda: connections(server, session)["open"] == 21, "they are connected")
        server.run(session, "pkill -KILL curl; pkill -KILL -f dev/tcp")
        wait_until(lambda: service.num_fds() <= before, "the service has closed all of them")
    assert egress_service(server).pid == service.pid
    assert fetch(server, session) == ("200", "")


def test_killed_gateway_is_followed_by_one_with_the_same_authority(
    world: Internet, flags: list[str], tmp_path: Path
) -> None:
    """The sandbox ends with its gateway; on the next one its session, and a new one, are served with the key."""
    with world.serve(tmp_path, *flags) as server:
        session = server.session()
        server.run(session, "echo kept >file")
        assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
        load(server, session)
        authority = kept_by(tmp_path / "state")
        server.kill()
    wait_until(lambda: processes_of(tmp_path / "state") == [], "its service and its sandboxes have ended")
    with world.serve(tmp_path, *flags) as server:
        assert kept_by(tmp_path / "state") == authority
        for each in (session, server.session()):
            assert fetch(server, each) == ("200", "")
        assert dict(world.requests()[-1]["headers"])["authorization"] == f"Bearer {VALUE}"
