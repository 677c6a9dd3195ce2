"""The start of a gateway and its day on real sandboxes: the banner's lines, bursts, leavers, and refusals."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.serve import RUNTIME, Server, serve
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the tests that leave it well."""
    with serve(tmp_path_factory.mktemp("gateway") / "state", "--warm-pool", "2") as started:
        yield started


def run(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """`wakegate serve` with these flags, which ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--warm-pool", "0", *flags],
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def test_gateway_of_one_machine_loads_no_driver_and_no_laboratory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both cost memory and time at the start, and are for others."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with serve(tmp_path / "state", "--warm-pool", "0") as server:
        said = server.log.read_text().splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in said if line.startswith("import time:")}
    assert "gateway.app" in loaded
    assert not loaded & {"redis", "aiocache", "gateway.autoscaler.replay.cli"}


@pytest.mark.parametrize("flags", [(), ("--auth",)])
def test_banner_lists_what_is_served_and_commands_that_work(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A newcomer pastes them one after the other into a shell and sees output of a sandbox; a key is made first."""
    state = tmp_path / "state"
    with serve(state, "--warm-pool", "1", *flags) as server:
        assert server.process.stdout is not None
        lines: list[str] = []
        while len([line for line in lines if "curl" in line]) < 3:
            lines.append(server.process.stdout.readline().strip())
        text = "\n".join(lines)
        for word in ("code-interpreters/default/my-interpreter", "isolation", str(state)):
            assert word in text
        assert [line.split()[0] for line in lines].count("limits") == 1
        commands = [line for line in lines if "curl" in line or "KEY=" in line]
        assert max(len(line) for line in lines if line not in commands and "warning" not in line) < 160
        ran = subprocess.run(
            ["bash", "-euc", "\n".join(commands)],
            env={"PATH": os.environ["PATH"]},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert "Hello" in ran.stdout
        assert "Linux" in ran.stdout


def test_client_that_leaves_ends_its_command(server: Server) -> None:
    """The whole tree of it, inside the sandbox."""
    session = server.session()
    body = {"command": ["sh", "-c", "touch begun; sh -c 'sleep 31415' & sleep 31416"], "timeout": "600s"}
    with suppress(httpx.ReadTimeout):
        server.client.post("/api/execute", headers={"x-session-id": session}, json=body, timeout=1.0)
    assert "begun" in server.run(session, "ls").json()["stdout"]
    look = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    wait_until(lambda: "sleep 3141" not in server.run(session, look).json()["stdout"], "the command has ended")


def test_empty_file_goes_up_and_comes_back(server: Server) -> None:
    """Zero bytes are a body like any other."""
    headers = {"x-session-id": server.session()}
    reply = server.client.post("/api/files", headers=headers, files={"file": b""}, data={"path": "empty"})
    assert (reply.status_code, reply.json()["size"]) == (200, 0)
    reply = server.client.get("/api/files/empty", headers=headers)
    assert (reply.status_code, reply.content) == (200, b"")


def test_full_tmp_affects_that_session_only(server: Server) -> None:
    """No space left is an error of its command; neighbours, the gateway and the session itself go on."""
    full, neighbour = server.session(), server.session()
    said = server.run(full, "head -c 1G /dev/zero > /tmp/big; echo status $?").json()
    assert "status 1" in said["stdout"]
    assert server.run(neighbour, "echo well").json()["stdout"] == "well\n"
    assert server.run(full, "echo well").json()["stdout"] == "well\n"


async def test_burst_over_the_pool_is_served_without_sharing(server: Server) -> None:
    """Twelve sessions at once on a pool of two wait for cold starts: no error, no sandbox twice."""
    async with httpx.AsyncClient(base_url=server.url, timeout=55, trust_env=False) as client:

        async def one(number: int) -> tuple[str, str]:
            made = await client.post("/v1/sessions", json={"runtime": RUNTIME})
            assert made.status_code == 201, made.text
            headers = {"x-session-id": made.json()["id"]}
            await client.post("/api/execute", headers=headers, json={"command": ["sh", "-c", f"echo {number} > mine"]})
            said = await client.post("/api/execute", headers=headers, json={"command": ["cat", "mine"]})
            await client.delete(f"/v1/sessions/{made.json()['id']}")
            return made.json()["sandboxId"], said.json()["stdout"].strip()

        seen = await asyncio.gather(*(one(number) for number in range(12)))
    assert len({sandbox for sandbox, _ in seen}) == 12
    assert [said for _, said in seen] == [str(number) for number in range(12)]


def test_missing_files_store_and_python_are_all_named(tmp_path: Path) -> None:
    """Runtime files, store and Python: looked at together once the settings are well-formed; nothing is made."""
    (tmp_path / "bad.yaml").write_text("kind: CodeInterpreter")
    ended = run(
        tmp_path, "--port", "0", "--runtime", str(tmp_path / "bad.yaml"), "--store", "mysql://x",
        "--sandbox-python", str(tmp_path / "none"), "--state-dir", str(tmp_path / "state"),
    )  # fmt: skip
    assert ended.returncode == 2
    for part in ("bad.yaml: apiVersion", "bad.yaml: metadata.name", "--store mysql://x", "--sandbox-python"):
        assert part in ended.stderr
    assert all(line.startswith("wakegate: ") for line in ended.stderr.splitlines())
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--host", "a..b", "--insecure-no-auth"], "cannot listen on a..b"),
        (["--host", "192.0.2.1", "--insecure-no-auth"], "cannot listen on 192.0.2.1"),
        (["--store", "sqlite:////proc/nope/x.db"], "/proc/nope/x.db"),
        (["--state-dir", "/proc/nope"], "--state-dir /proc/nope: cannot be created"),
        (["--state-dir", "/dev/null"], "--state-dir /dev/null: cannot be created"),
    ],
    ids=["host-name", "host-address", "store-path", "state-dir", "state-file"],
)
def test_unusable_paths_are_reported_in_a_sentence(tmp_path: Path, flags: list[str], part: str) -> None:
    """Status 2, and what to change."""
    ended = run(tmp_path, "--port", "0", *flags)
    assert ended.returncode == 2, ended.stderr
    assert part in ended.stderr
    assert "Traceback" not in ended.stderr


def test_port_in_use_is_reported(tmp_path: Path) -> None:
    """With the address and the flag to choose another."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ended = run(tmp_path, "--port", port, "--state-dir", str(tmp_path / "state"))
    assert ended.returncode == 2
    expected = f"wakegate: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port\n"
    assert ended.stderr == expected


def test_state_folder_has_one_gateway(server: Server, tmp_path: Path) -> None:
    """A second one on it says so and ends; the first is not disturbed."""
    session = server.session()
    state = server.log.parent / "state"
    ended = run(tmp_path, "--port", "0", "--state-dir", str(state))
    assert ended.returncode == 2
    assert str(state) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert server.run(session, "echo still").json()["stdout"] == "still\n"


@pytest.mark.parametrize("free", [0, 4, 16], ids="{}-KiB-free".format)
def test_start_on_a_full_disk_ends_in_a_sentence(tmp_path: Path, free: int) -> None:
    """Wherever it runs out: in the signing keys, in the store."""
    fill = f"head -c {(300 - free) * 1024} /dev/zero >{tmp_path}/fill"
    said = start_on(tmp_path, "size=300k", fill)
    assert "disk is full" in said or "No space left on device; free space there" in said


def test_start_on_a_read_only_disk_ends_in_a_sentence(tmp_path: Path) -> None:
    """With the folder, and what to do."""
    assert "Read-only file system" in start_on(tmp_path, "ro", "true")


def start_on(folder: Path, mount: str, prepare: str) -> str:
    """What a start says whose state folder is on a file system mounted so. It fails, without a traceback."""
    serve = f"exec {sys.executable} -m gateway serve --port 0 --warm-pool 0 --state-dir {folder}/state"
    script = f"mount -t tmpfs -o mode=700,{mount} tmpfs {folder} && {{ {prepare}; {serve}; }}"
    ended = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False), ended.stderr
    return ended.stderr
