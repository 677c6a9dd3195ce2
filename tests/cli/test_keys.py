"""`wakegate keys` against a store on disk, and a gateway of the same store that asks for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway.cli.remote import app as remote
from tests.support.serve import serve
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def keys(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `wakegate keys` to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WAKEGATE_")}
    command = [sys.executable, "-m", "gateway", "keys", *words, "--state-dir", str(state)]
    return subprocess.run(command, capture_output=True, text=True, env=clean, cwd=ROOT, timeout=50)


def test_key_works_at_a_running_gateway_until_it_is_revoked(tmp_path: Path) -> None:
    """Made and ended by the command, while the gateway runs; it sees both within its next looks at the store."""
    state = tmp_path / "state"
    admin = keys(state, "create", "--role", "admin")
    assert admin.returncode == 0, admin.stderr
    with serve(state, "--auth") as server:
        made = keys(state, "create", "--role", "member", "--tenant", "acme", "--expires", "90d", "--name", "bot")
        key = made.stdout.strip()
        assert "member of acme" in made.stderr
        headers = {"authorization": f"Bearer {key}"}
        wait_until(lambda: server.client.get("/v1/caller", headers=headers).status_code == 200, "the key is known")
        created = server.client.post("/v1/sessions", json={}, headers={"x-api-key": key})
        assert created.status_code == 201, created.text
        run = {"command": ["sh", "-c", "echo hello; env"]}
        reply = server.client.post("/api/execute", json=run, headers={**headers, "x-session-id": created.json()["id"]})
        assert "hello" in reply.json()["stdout"]
        assert key not in reply.text

        listed = [json.loads(line) for line in keys(state, "list", "--json").stdout.splitlines()]
        assert [(each["role"], each["tenant"], each["name"]) for each in listed] == [
            ("admin", "default", ""), ("member", "acme", "bot"),
        ]  # fmt: skip
        assert key not in keys(state, "list").stdout
        rotated = keys(state, "rotate", listed[1]["id"], "--format", "e2b").stdout.strip()
        assert rotated.startswith("e2b_")
        wait_until(lambda: server.client.get("/v1/caller", headers=headers).status_code == 401, "the old key ended")
        headers = {"authorization": f"Bearer {rotated}"}
        assert server.client.get("/v1/caller", headers=headers).json()["tenant"] == "acme"
        by_admin = {"authorization": f"Bearer {admin.stdout.strip()}"}
        ids = [each["id"] for each in server.client.get("/v1/keys", headers=by_admin).json()["keys"]]
        assert server.client.delete(f"/v1/keys/{ids[-1]}", headers=by_admin).status_code == 204
        assert server.client.get("/v1/caller", headers=headers).status_code == 401
        assert httpx.get(server.url + "/v1/caller").status_code == 401


def test_wrong_arguments_are_refused_with_the_right_form(tmp_path: Path) -> None:
    """In a line, with status 2."""
    for words, hint in (
        (("create", "--role", "emperor"), "'emperor' is not one of admin, operator"),
        (("create", "--role", "member", "--tenant", "A B"), "tenant: expected a name"),
        (("create", "--role", "member", "--expires", "soon"), "--expires: expected a duration"),
        (("create", "--role", "member", "--runtime", "a/b/c"), "names no runtime"),
        (("lst",), "no such command 'lst'"),
    ):
        ended = keys(tmp_path / "state", *words)
        assert ended.returncode == 2
        assert hint in ended.stderr
        assert "Traceback" not in ended.stderr
    missing = keys(tmp_path / "state", "revoke", "nothing")
    assert (missing.returncode, missing.stderr) == (4, "wakegate: no API key 'nothing'\n")


def test_admin_makes_lists_and_ends_keys_at_a_gateway_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the gateway's address and an admin's key alone; another's is refused; no store is made on this machine."""
    admin = keys(tmp_path / "state", "create", "--role", "admin").stdout.strip()
    for name in [each for each in os.environ if each.startswith("WAKEGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def wakegate(*words: str, status: int = 0) -> str:
        assert remote.run(["keys", *words]) == status
        said = capsys.readouterr()
        return said.out if status == 0 else said.err

    with serve(tmp_path / "state", "--auth", "--warm-pool", "0") as server:
        monkeypatch.setenv("WAKEGATE_URL", server.url)
        monkeypatch.setenv("WAKEGATE_API_KEY", admin)
        made = wakegate("create", "--role", "member", "--tenant", "acme", "--name", "bot", "--expires", "90d").strip()
        as_made = server.client.get("/v1/caller", headers={"authorization": f"Bearer {made}"}).json()
        assert (as_made["role"], as_made["tenant"], as_made["expiresAt"] is not None) == ("member", "acme", True)
        (shown,) = json.loads(wakegate("ls", "--tenant", "acme", "-o", "json"))
        assert (shown["name"], shown["role"]) == ("bot", "member")
        assert made not in wakegate("ls")
        monkeypatch.setenv("WAKEGATE_API_KEY", "wk_wrong")
        unknown = wakegate("ls", status=5)
        assert unknown.startswith("wakegate: the API key or token is unknown, expired or revoked; `wakegate login`")
        monkeypatch.setenv("WAKEGATE_API_KEY", made)
        assert "may not" in wakegate("ls", status=5) or "role" in wakegate("ls", status=5)
        assert remote.run(["runtimes", "get", "my-interpreter", "--manifest"]) == 5
        assert "an admin or an operator does" in capsys.readouterr().err
        monkeypatch.setenv("WAKEGATE_API_KEY", admin)
        assert remote.run(["runtimes", "get", "my-interpreter", "--manifest"]) == 0
        assert "manifest: null" in capsys.readouterr().out
        rotated = wakegate("rotate", shown["id"], "--overlap", "1h", "--format", "e2b").strip()
        for key in (made, rotated):
            assert server.client.get("/v1/caller", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert wakegate("revoke", shown["id"]) == f"{shown['id']} revoked\n"
        assert server.client.get("/v1/caller", headers={"authorization": f"Bearer {made}"}).status_code == 401
        assert "nosuch" in wakegate("revoke", "nosuch/../..", status=4)
        # Without a key the store on this machine is meant, where the first one is made.
        monkeypatch.delenv("WAKEGATE_API_KEY")
        assert not (tmp_path / "data").exists()
        assert wakegate("ls", "-o", "name") == ""
        assert (tmp_path / "data" / "wakegate").is_dir()


def test_gateway_beyond_this_machine_needs_authentication_or_an_explicit_flag(tmp_path: Path) -> None:
    """The refusal names both switches."""
    command = [sys.executable, "-m", "gateway", "serve", "--host", "0.0.0.0", "--port", "0"]
    ended = subprocess.run(
        [*command, "--state-dir", str(tmp_path / "state")], capture_output=True, text=True, cwd=ROOT, timeout=50
    )
    assert ended.returncode == 2
    assert "--auth" in ended.stderr
    assert "--insecure-no-auth" in ended.stderr
