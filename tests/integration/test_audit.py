"""A real gateway's audit trail: who did what, over every surface; kill -9; and what `wakegate audit` says of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.api.audited import ACTIONS
from gateway.api.openapi.table import CONTROL
from gateway.api.permissions import PERMISSIONS
from gateway.audit.repeats import EVERY_S
from gateway.core.identity import Permission
from tests.support.serve import processes_of, serve
from tests.support.waiting import wait_until

MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: short}
spec: {template: {image: none}, warmPoolSize: 1, sessionTimeout: 1s}
"""


def lines_of(path: Path, action: str = "") -> list[dict[str, Any]]:
    """The events of a file, or those of one action."""
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [line for line in found if line["type"] == "event" and action in ("", line["action"])]


def wakegate(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "audit", *words], capture_output=True, text=True, timeout=40, check=False
    )


def test_every_surface_leaves_its_lines_and_no_secret(tmp_path: Path) -> None:
    """Sessions, commands, code, files, ports, tool calls: with session, outcome, client and request id."""
    path, state = tmp_path / "audit.log", tmp_path / "state"
    with serve(state, "--warm-pool", "1", "--audit-log", str(path)) as server:
        session = server.session()
        headers = {"x-session-id": session, "authorization": "Bearer hush-hush", "x-request-id": "request-7"}
        run = {"command": ["sh", "-c", "echo hush-hush"]}
        assert server.client.post("/api/execute", json=run, headers=headers).status_code == 200
        assert server.client.post("/api/run_code", json={"code": "1 + 1"}, headers=headers).status_code == 200
        assert server.client.put("/api/files/note", content=b"hush-hush", headers=headers).status_code < 300
        assert server.client.get("/api/files/note", headers=headers).status_code == 200
        server.client.get(f"/v1/sessions/{session}/ports/8000/?token=hush-hush")
        call = {"id": "c1", "type": "function", "function": {"name": "run_python", "arguments": '{"code": "2+2"}'}}
        assert server.client.post("/v1/tool_calls", json={"tool_calls": [call]}, headers=headers).status_code == 200
        server.client.post(f"/v1/sessions/{session}/hibernate")
        server.client.post(f"/v1/sessions/{session}/wake")
        server.client.get("/v1/sessions")
        server.client.delete(f"/v1/sessions/{session}")
        server.client.delete("/v1/sessions/nobodys")
    actions = [line["action"] for line in lines_of(path)]
    assert actions == [
        "gateway.start", "session.started", "session.create", "command.run", "code.run", "file.write", "port.open",
        "tool.call", "session.hibernated", "session.hibernate", "session.woken", "session.wake", "session.ended",
        "session.delete", "session.delete", "gateway.end",
    ]  # fmt: skip
    (command,) = lines_of(path, "command.run")
    assert (command["session"], command["status"], command["request_id"]) == (session, 200, "request-7")
    assert (command["runtime"], command["actor"]["address"]) == (
        "code-interpreters/default/my-interpreter",
        "127.0.0.1",
    )
    assert [line["status"] for line in lines_of(path, "session.delete")] == [204, 404]
    assert lines_of(path, "session.create")[0]["session"] == session
    assert re.fullmatch(r"[0-9a-f]{64}", lines_of(path, "tool.call")[0]["detail"]["sha256"])
    assert b"hush-hush" not in path.read_bytes()
    checked = wakegate("verify", str(path), "--state-dir", str(state))
    assert (checked.returncode, checked.stdout[:2]) == (0, "OK"), checked.stdout + checked.stderr


def test_bodies_are_in_the_trail_by_their_hash_on_every_way_through_the_gateway(tmp_path: Path) -> None:
    """At once, in pieces, in chunks, and past the parser: of commands and code, and of files with their names."""
    path, state = tmp_path / "audit.log", tmp_path / "state"
    large = os.urandom(700_000)
    with serve(state, "--warm-pool", "1", "--audit-log", str(path)) as server:
        headers = {"x-session-id": server.session()}
        command = json.dumps({"command": ["sh", "-c", "true"]}).encode()
        pieces = [command[:10], command[10:]]
        assert server.client.post("/api/execute", content=command, headers=headers).status_code == 200
        assert server.client.post("/api/execute", content=iter(pieces), headers=headers).status_code == 200
        assert server.client.put("/api/files/large", content=large, headers=headers).status_code < 300
        chunks = (large[at : at + 50_000] for at in range(0, len(large), 50_000))
        assert server.client.put("/api/files/chunked", content=chunks, headers=headers).status_code < 300
        upload = {"path": "in/body.txt", "content": "eA=="}
        assert server.client.post("/api/files", json=upload, headers=headers).status_code < 300
        assert server.client.get("/api/files/large", headers=headers).content == large
    of_command, of_large = sha256(command).hexdigest(), sha256(large).hexdigest()
    assert [line["detail"]["sha256"] for line in lines_of(path, "command.run")] == [of_command, of_command]
    first, second, third = lines_of(path, "file.write")
    for line, name in ((first, "large"), (second, "chunked")):
        found = line["detail"]
        assert (found["path"], found["bytes"], found["sha256"]) == (f"/api/files/{name}", len(large), of_large)
    assert third["detail"]["names"] == "in/body.txt"


def test_what_becomes_of_sessions_by_itself_is_in_the_trail(tmp_path: Path) -> None:
    """Idle ones that hibernate, their wakes by requests, killed sandboxes with how they ended, and ends by limits."""
    path, state, manifest = tmp_path / "audit.log", tmp_path / "state", tmp_path / "runtimes.yaml"
    manifest.write_text(MANIFEST)
    flags = ("--runtime", str(manifest), "--sweep-interval", "0.2", "--audit-log", str(path))
    with serve(state, *flags) as server:
        session = server.session("default/short")
        wait_until(lambda: bool(lines_of(path, "session.hibernated")), "it is idle and hibernated")
        server.client.patch(f"/v1/sessions/{session}", json={"idleTimeout": 3600})
        assert server.run(session, "true").status_code == 200
        for process in processes_of(state):
            with contextlib.suppress(psutil.Error):  # ended with one that was killed before it
                if "picod" in " ".join(process.cmdline()):
                    process.kill()
        wait_until(lambda: bool(lines_of(path, "session.lost")), "its sandbox was killed")
        server.client.patch(f"/v1/sessions/{session}", json={"ttl": 0.1})
        wait_until(lambda: bool(lines_of(path, "session.ended")), "its time is over")
    (hibernated,) = lines_of(path, "session.hibernated")
    assert (hibernated["session"], hibernated["actor"]["subject"]) == (session, "system")
    assert hibernated["detail"]["reason"] == "idle for 1 s"
    woken = lines_of(path, "session.woken")[0]
    assert woken["detail"]["start"] in ("wake", "wake-cold")
    assert "SIGKILL" in lines_of(path, "sandbox.ended")[0]["detail"]["reason"]
    assert "SIGKILL" in lines_of(path, "session.lost")[0]["detail"]["reason"]
    assert lines_of(path, "session.ended")[0]["detail"]["reason"] == "it reached its maximum duration"
    checked = wakegate("verify", str(path), "--state-dir", str(state))
    assert (checked.returncode, checked.stdout[:2]) == (0, "OK"), checked.stdout + checked.stderr


def test_limits_that_are_hit_are_recorded_once_and_counted(tmp_path: Path) -> None:
    """Quotas and rates, on both paths; a client that asks in a loop does not fill the disk."""
    path, state, admin, tenants = (tmp_path / name for name in ("audit.log", "state", "admin", "tenants.yaml"))
    admin.write_text("a" * 40)
    tenants.write_text("tenants: {acme: {sandboxes: 1}, bolt: {requestsPerSecond: 0.001, requestBurst: 1}}")
    flags = ("--warm-pool", "1", "--admin-key-file", str(admin), "--tenants", str(tenants), "--audit-log", str(path))
    with serve(state, *flags) as server:
        by_admin = {"authorization": f"Bearer {'a' * 40}"}
        began = time.monotonic()

        def key(tenant: str) -> dict[str, str]:
            fields = {"role": "member", "tenant": tenant}
            made = server.client.post("/v1/keys", json=fields, headers=by_admin).json()["key"]
            return {"authorization": f"Bearer {made}"}

        acme, bolt = key("acme"), key("bolt")
        creates = [server.client.post("/v1/sessions", json={}, headers=acme).status_code for _ in range(6)]
        assert creates == [201, 429, 429, 429, 429, 429]
        path_of_new = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/api/execute"
        started = [server.client.post(path_of_new, json={"command": ["true"]}, headers=acme) for _ in range(3)]
        assert [each.status_code for each in started] == [429] * 3
        assert server.client.get("/v1/caller", headers=bolt).status_code == 200
        on_control = [server.client.get("/v1/caller", headers=bolt).status_code for _ in range(3)]
        on_data = [server.client.get("/x", headers={**bolt, "x-session-id": "s"}).status_code for _ in range(3)]
        assert on_control + on_data == [429] * 6
        scrape = server.client.get("/metrics", headers=by_admin).text
        took_s = time.monotonic() - began
    found = Counter(
        (line["code"], line["detail"]["limit"], line["actor"]["tenant"]) for line in lines_of(path, "quota.denied")
    )
    # One of each in every EVERY_S: the second of a kind comes only where the machine stood still for so long.
    assert set(found) == {("QUOTA_EXCEEDED", "sandboxes", "acme"), ("RATE_LIMITED", "requestsPerSecond", "bolt")}
    assert max(found.values()) <= 1 + took_s // EVERY_S
    assert re.search(r"^wakegate_audit_lines_total [1-9]", scrape, re.MULTILINE)
    assert "wakegate_audit_writable 1.0" in scrape


def test_lines_name_the_key_and_the_tenant_and_hosts_of_ports_are_recorded(tmp_path: Path) -> None:
    """Whoever acts is in the line by the id of the key, never the key; a port is one by its host, too."""
    path, state, admin = tmp_path / "audit.log", tmp_path / "state", tmp_path / "admin"
    admin.write_text("a" * 40)
    flags = ("--warm-pool", "0", "--admin-key-file", str(admin), "--domain", "sandboxes.localhost")
    with serve(state, *flags, "--audit-log", str(path)) as server:
        by_admin = {"authorization": f"Bearer {'a' * 40}"}
        made = server.client.post("/v1/keys", json={"role": "member", "tenant": "acme"}, headers=by_admin).json()
        headers = {"authorization": f"Bearer {made['key']}"}
        session = server.client.post("/v1/sessions", json={}, headers=headers).json()["id"]
        host = {"host": f"8000-{session}.sandboxes.localhost", **headers}
        assert server.client.get("/", headers=host).status_code == 502
        server.client.delete(f"/v1/keys/{made['id']}", headers=by_admin)
    (created,) = lines_of(path, "session.create")
    assert (created["actor"]["key_id"], created["actor"]["tenant"]) == (made["id"], "acme")
    (opened,) = lines_of(path, "port.open")
    assert (opened["session"], opened["actor"]["key_id"]) == (session, made["id"])
    assert lines_of(path, "key.revoke")[0]["detail"]["key_id"] == made["id"]
    assert made["key"].encode() not in path.read_bytes()
    assert b"a" * 40 not in path.read_bytes()


def test_every_operation_that_changes_something_is_recorded() -> None:
    """Whatever is no GET has a name in the trail, except where every method is a POST and some only read.

    A GET that is passed on to a sandbox's own server opens a port, which the trail has on every way.
    """
    changing = {name for name, each in CONTROL.items() if each.method != "GET"} | {"open_terminal_proxy_get"}
    reading = {
        name for name in changing if CONTROL[name].tag == "agentscope" and PERMISSIONS[name] is Permission.READ_SESSIONS
    }
    assert changing - reading == set(ACTIONS)


def test_refusals_are_recorded_with_who_was_refused(tmp_path: Path) -> None:
    """On both paths, also of what would not be recorded had it been allowed; keys never are."""
    path, state = tmp_path / "audit.log", tmp_path / "state"
    with serve(state, "--warm-pool", "0", "--auth", "--audit-log", str(path)) as server:
        assert server.client.get("/v1/sessions").status_code == 401
        reply = server.client.post("/api/execute", json={"command": ["id"]}, headers={"x-session-id": "s"})
        assert reply.status_code == 401
        wait_until(lambda: len(lines_of(path, "auth.denied")) == 2, "both are written")
    assert [line["status"] for line in lines_of(path, "auth.denied")] == [401, 401]
    assert [line["actor"].get("role") for line in lines_of(path, "auth.denied")] != ["admin", "admin"]


def test_text_is_recorded_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """Then without credentials."""
    path = tmp_path / "audit.log"
    with serve(tmp_path / "state", "--warm-pool", "1", "--audit-log", str(path), "--audit-content", "text") as server:
        code = "import os; token='hush-hush'; print(2+2)"
        call = {
            "id": "c",
            "type": "function",
            "function": {"name": "run_python", "arguments": json.dumps({"code": code})},
        }
        server.client.post("/v1/tool_calls", json={"tool_calls": [call]}, headers={"x-session-id": server.session()})
    text = lines_of(path, "tool.call")[0]["detail"]["text"]
    assert "import os" in text
    assert "hush-hush" not in text


def test_chain_survives_kill_and_a_change_is_reported_by_file_and_line(tmp_path: Path) -> None:
    """The gateway goes on with its chain; `verify` says what was done to it, and where."""
    path, state = tmp_path / "audit.log", tmp_path / "state"
    flags = ["--warm-pool", "0", "--audit-log", str(path)]
    with serve(state, *flags) as server:
        server.client.delete("/v1/sessions/one")
        wait_until(lambda: bool(lines_of(path, "session.delete")), "it is written")
        server.kill()
    unsigned = wakegate("verify", str(path), "--state-dir", str(state))
    assert (unsigned.returncode, unsigned.stdout.split()[0]) == (3, "UNSIGNED")
    with open(path, "ab") as file:
        file.write(b'{"seq":3,"pre')  # as a kill in the middle of a write leaves it
    with serve(state, *flags) as server:
        server.client.delete("/v1/sessions/two")
    key = tmp_path / "key.pem"
    key.write_text(wakegate("key", "--state-dir", str(state)).stdout)
    elsewhere = ("--public-key", str(key), "--state-dir", str(tmp_path / "none"))
    good = wakegate("verify", str(path), *elsewhere)
    assert (good.returncode, good.stdout.split()[0]) == (0, "OK"), good.stdout
    assert "1 times, and went on" in good.stdout
    path.write_bytes(path.read_bytes().replace(b'"session":"two"', b'"session":"six"', 1))
    bad = wakegate("verify", str(path), *elsewhere)
    assert bad.returncode == 1
    assert re.search(
        rf"^TAMPERED .*{re.escape(str(path))}, line \d+ was changed|TAMPERED .*{path}, line \d+", bad.stdout
    )
    assert wakegate("verify", str(tmp_path / "nothing"), *elsewhere).returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_trail_that_is_no_file_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    """It must not run unaudited."""
    ran = subprocess.run(
        [
            sys.executable, "-m", "gateway", "serve", "--port", "0", "--warm-pool", "0",
            "--state-dir", str(tmp_path / "state"), "--audit-log", "/dev/full",
        ],
        capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "--audit-log /dev/full: cannot be written: is not a regular file" in ran.stderr


def test_gateway_refuses_what_it_cannot_record(tmp_path: Path) -> None:
    """Both paths answer 503 AUDIT_UNAVAILABLE and readiness fails, until there is room again; reads go on."""
    folder = tmp_path / "log"
    folder.mkdir()
    path = folder / "audit.log"
    flags = ["--warm-pool", "1", "--audit-log", str(path), "--audit-max-bytes", "4096"]
    with serve(tmp_path / "state", *flags) as server:
        session = server.session()
        moved = tmp_path / "moved"
        folder.rename(moved)  # there is no place for a file of that name any more

        def is_refused() -> bool:
            return server.client.delete("/v1/sessions/x").status_code == 503

        wait_until(is_refused, "the trail cannot be written")
        refused = server.client.post("/v1/sessions", json={})
        assert (refused.status_code, refused.json()["code"]) == (503, "AUDIT_UNAVAILABLE")
        with httpx.Client(base_url=server.url) as client:
            refused = client.post("/api/execute", json={"command": ["id"]}, headers={"x-session-id": session})
        assert (refused.status_code, refused.json()["code"]) == (503, "AUDIT_UNAVAILABLE")
        assert "audit trail" in server.client.get("/readyz").text
        assert server.client.get("/v1/sessions").status_code == 200
        assert server.client.get("/api/files/none", headers={"x-session-id": session}).status_code == 404
        moved.rename(folder)
        wait_until(lambda: server.client.get("/readyz").status_code == 200, "it can be written again")
        assert server.run(session, "true").status_code == 200
