"""What a gateway with real sandboxes loses when processes are killed: nothing that it answered for."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil

from gateway.core.clock import SystemClock
from gateway.core.model import SandboxId, SessionId
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from tests.support.kept_files import TREE, hibernate_and_compare
from tests.support.serve import processes_of, serve
from tests.support.waiting import wait_until


def picod_that_runs(gateway: int, command: str) -> psutil.Process:
    """The picod, below the gateway of that pid, whose sandbox runs this command. Its environment is not readable."""
    for process in psutil.Process(gateway).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if command in " ".join(process.cmdline()):
                return next(parent for parent in process.parents() if "--lifeline-fd" in parent.cmdline())
    raise AssertionError(f"nothing runs {command!r}")


def test_hibernation_keeps_every_byte(tmp_path: Path) -> None:
    """Files, modes, times and links are the same after a sleep, and the wake says what it was."""
    with serve(tmp_path / "state") as server:
        session = hibernate_and_compare(server)
        assert server.run(session, "true").headers["x-wakegate-start"] == "live"


def test_concurrent_requests_share_one_wake(tmp_path: Path) -> None:
    """Fifty requests to one sleeping session: one sandbox is claimed, and all are answered by it."""
    with serve(tmp_path / "state") as server:
        session = server.session()
        server.run(session, "echo kept > note")
        server.client.post(f"/v1/sessions/{session}/hibernate")
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(server.run(session, "cat note"))

        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.json()["stdout"] for answer in answers] == ["kept\n"] * 50
        claimed = server.client.get("/v1/runtimes").json()["runtimes"][0]["pool"]["claimed"]
        assert claimed == 1


def test_killed_gateway_loses_no_workspace_and_leaves_no_process(tmp_path: Path) -> None:
    """After kill -9 no process is left; the next gateway's records are true, and each session has its files again."""
    state = tmp_path / "state"
    with serve(state) as server:
        awake, asleep = server.session(), server.session()
        for session in (awake, asleep):
            server.run(session, f"echo {session} > name; {TREE}")
        server.client.post(f"/v1/sessions/{asleep}/hibernate")
        server.kill()
    wait_until(lambda: not processes_of(state), "no process of the killed gateway is left")
    with serve(state) as server:
        assert server.state(awake)["state"] == "lost"
        assert server.state(asleep)["state"] == "hibernated"
        first = server.run(awake, "cat name")
        assert first.json()["stdout"] == f"{awake}\n"
        assert first.headers["x-wakegate-restored"].startswith("20")
        assert "x-wakegate-restored" not in server.run(awake, "true").headers
        assert server.run(asleep, "cat name").json()["stdout"] == f"{asleep}\n"


def test_sandbox_killed_mid_request_is_502_once_and_keeps_its_files(tmp_path: Path) -> None:
    """The request under way is told, with its session's id; the next one gets a fresh sandbox and the files."""
    with serve(tmp_path / "state") as server:
        session = server.session()
        server.run(session, "echo kept > note")
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(server.run(session, "touch started; sleep 60")))
        asking.start()
        workspace = tmp_path / "state" / "workspaces" / server.state(session)["sandboxId"]
        wait_until((workspace / "started").exists, "the command runs")
        os.kill(picod_that_runs(server.process.pid, "sleep 60").pid, signal.SIGKILL)
        asking.join()
        assert answers[0].status_code == 502
        assert answers[0].headers["x-session-id"] == session
        told = server.run(session, "cat note")
        assert told.json()["stdout"] == "kept\n"
        assert told.headers["x-wakegate-restored"].startswith("20")


def test_sigterm_lets_commands_finish_and_hibernates_sessions(tmp_path: Path) -> None:
    """SIGTERM: what runs goes on to its end, then the gateway ends with status 0, and sessions are there next time."""
    state = tmp_path / "state"
    with serve(state) as server:
        session = server.session()
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(server.run(session, "touch started; sleep 1; echo done | tee note"))
        )
        asking.start()
        workspace = state / "workspaces" / server.state(session)["sandboxId"]
        wait_until((workspace / "started").exists, "the command runs")
        assert server.terminate() == 0
        asking.join()
        assert answers[0].json()["stdout"] == "done\n"
    with serve(state) as server:
        assert server.state(session)["state"] == "hibernated"
        assert server.run(session, "cat note").json()["stdout"] == "done\n"


def test_token_of_one_sandbox_is_refused_by_another(short_path: Path) -> None:
    """Code cannot read its picod's memory for one; and had it one all the same, another picod would answer 401."""
    with serve(short_path / "state") as server:
        thief, victim = server.session(), server.session()
        # The token is in picod's memory, which is not dumpable.
        script = (
            "import re,os,glob\n"
            "for mem in glob.glob('/proc/[0-9]*/mem'):\n"
            "    pid = mem.split('/')[2]\n"
            "    if pid == str(os.getpid()): continue\n"
            "    try:\n"
            "        maps = open(f'/proc/{pid}/maps').read()\n"
            "        f = open(mem,'rb',0)\n"
            "    except OSError: continue\n"
            "    for line in maps.splitlines():\n"
            "        if ' rw' not in line or 'vvar' in line: continue\n"
            "        a,b = (int(x,16) for x in line.split()[0].split('-'))\n"
            "        try: f.seek(a); data = f.read(b-a)\n"
            "        except (OSError, OverflowError, ValueError): continue\n"
            "        m = re.search(rb'eyJ[\\w-]+\\.eyJ[\\w-]+\\.[\\w-]{80,}', data)\n"
            "        if m: print(m[0].decode()); raise SystemExit\n"
        )
        path = {"path": "steal.py", "content": base64.b64encode(script.encode()).decode()}
        server.client.post("/api/files", json=path, headers={"x-session-id": thief})
        assert server.run(thief, "python3 steal.py").json()["stdout"].strip() == ""
        keys = KeyRing(short_path / "state" / "keys")
        keys.open()
        issuer = TokenIssuer(keys, SystemClock())
        token = issuer.issue(SandboxId(server.state(thief)["sandboxId"]), SessionId(thief))[0].decode()
        sockets = short_path / "state" / "run"
        bearer = {"authorization": f"Bearer {token}"}
        statuses = {}
        for session in (thief, victim):
            uds = str(sockets / (server.state(session)["sandboxId"] + ".sock"))
            with httpx.Client(transport=httpx.HTTPTransport(uds=uds), base_url="http://sandbox") as direct:
                statuses[session] = direct.get("/api/files?path=.", headers=bearer).status_code
        assert statuses == {thief: 200, victim: 401}


def test_large_upload_passes_in_flat_memory(tmp_path: Path) -> None:
    """300 MB go through to the workspace while the gateway's memory hardly moves."""
    with serve(tmp_path / "state") as server:
        session = server.session()
        gateway = psutil.Process(server.process.pid)
        server.run(session, "true")
        before = gateway.memory_info().rss
        chunk = os.urandom(1 << 20)
        reply = server.client.put(
            "/api/files/big.bin", content=(chunk for _ in range(300)), headers={"x-session-id": session}, timeout=120
        )
        assert reply.status_code == 200, reply.text
        assert server.run(session, "stat -c %s big.bin").json()["stdout"] == f"{300 << 20}\n"
        assert gateway.memory_info().rss - before < 40 << 20


def test_wrong_settings_are_all_named_and_stop_the_start(tmp_path: Path) -> None:
    """A start with several mistakes names each of them and ends with status 2."""
    argv = [sys.executable, "-m", "gateway", "serve", "--port", "99999", "--engine", "warp", "--sweep-interval", "soon"]
    ended = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "WAKEGATE_PROT": "1"}, timeout=60)
    assert ended.returncode == 2
    for word in ("--port", "--engine", "--sweep-interval", "WAKEGATE_PROT"):
        assert word in ended.stderr
    assert "Traceback" not in ended.stderr
