"""Processes, files, archives and what changes, in real sandboxes through a real gateway: as a client meets them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serve import RUNTIME, Server, serve
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("api") / "state", "--warm-pool", "1") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """A client whose requests go to one session."""
    with httpx.Client(base_url=server.url, headers={"x-session-id": server.session()}, timeout=30.0) as client:
        yield client


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """(event, data) as they come."""
    name = ""
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


def test_background_process_is_followed_through_the_gateway(client: httpx.Client) -> None:
    """Its output comes as it is printed, and its exit ends the stream."""
    body = {"command": ["sh", "-c", "echo one; read x; echo got $x; exit 4"], "stdin": True}
    process = client.post("/api/processes", json=body).json()["id"]
    with client.stream("GET", f"/api/processes/{process}/logs?follow=true") as reply:
        seen = events(reply.iter_lines())
        assert next(seen) == ("stdout", {"text": "one\n"})
        assert client.get("/api/activity").json()["busy"] is True
        client.post(f"/api/processes/{process}/stdin", content=b"it\n")
        assert list(seen) == [("stdout", {"text": "got it\n"}), ("exit", {"exit_code": 4, "signal": None})]
    assert client.get("/api/activity").json()["busy"] is False


def test_follower_that_leaves_gives_its_slot_back(client: httpx.Client) -> None:
    """The process goes on; a hundred followers one after the other are no more than one."""
    process = client.post("/api/processes", json={"command": ["sleep", "300"]}).json()["id"]
    for _ in range(100):
        with client.stream("GET", f"/api/processes/{process}/logs?follow=true") as reply:
            assert reply.status_code == 200
    assert client.get(f"/api/processes/{process}").json()["state"] == "running"
    client.delete(f"/api/processes/{process}")


def test_files_are_unpacked_watched_and_packed_in_a_sandbox(client: httpx.Client) -> None:
    """As its unprivileged user: read-only folders of an archive are unpacked too, and changes are reported."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        folder = tarfile.TarInfo("locked")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o555
        archive.addfile(folder)
        file = tarfile.TarInfo("locked/f")
        file.size, file.mode = 5, 0o444
        archive.addfile(file, io.BytesIO(b"hello"))
    client.post("/api/fs/mkdir", json={"path": "w"})
    with client.stream("GET", "/api/fs/watch?path=w") as reply:
        seen = events(reply.iter_lines())
        assert next(seen)[0] == "ready"
        assert client.put("/api/fs/archive?path=w", content=out.getvalue()).json()["files"] == 2
        paths = [next(seen)[1]["path"], next(seen)[1]["path"]]
        assert paths == ["locked", "locked/f"]
    assert client.get("/api/files/w/locked/f").text == "hello"
    entries = client.get("/api/fs/tree?path=w").json()["entries"]
    assert [(entry["path"], entry["mode"]) for entry in entries] == [
        ("locked", "dr-xr-xr-x"), ("locked/f", "-r--r--r--"),
    ]  # fmt: skip
    packed = client.get("/api/fs/archive?path=w&format=tar.gz").content
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        assert archive.getnames() == ["locked", "locked/f"]
    assert client.post("/api/fs/move", json={"from": "w", "to": "v"}).status_code == 200
    assert client.delete("/api/files/v?recursive=true").status_code == 204
    assert client.get("/api/fs/stat?path=v").status_code == 404


def test_folder_that_its_owner_cannot_read_is_listed_with_the_reason(client: httpx.Client) -> None:
    """The rest of the tree is listed as ever, and the folder can still be deleted."""
    client.post("/api/execute", json={"command": ["sh", "-c", "mkdir -p t/no/x t/yes; chmod 0 t/no; touch t/yes/f"]})
    entries = client.get("/api/fs/tree?path=t").json()["entries"]
    assert [(entry["path"], entry.get("error")) for entry in entries] == [
        ("no", "permission denied"), ("yes", None), ("yes/f", None),
    ]  # fmt: skip
    assert client.delete("/api/files/t?recursive=true").status_code == 204


def test_session_at_work_stays_awake_until_the_work_is_done(tmp_path: Path) -> None:
    """Idle for longer than its timeout, with a process in the background; when that ends, it is hibernated."""
    with serve(tmp_path / "state", "--sweep-interval", "0.1s") as server:
        session = server.client.post("/v1/sessions", json={"runtime": RUNTIME, "idleTimeout": "1s"}).json()["id"]
        command = ["sh", "-c", "i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i > count; sleep 0.1; done"]
        headers = {"x-session-id": session}
        reply = server.client.post("/api/processes", json={"command": command}, headers=headers)
        assert reply.status_code == 201
        since = server.state(session)["lastActiveAt"]
        wait_until(lambda: server.state(session)["lastActiveAt"] > since, "the sweep found it at work")
        assert server.state(session)["state"] == "active"
        server.client.put("/api/files/stop", content=b"", headers=headers)
        wait_until(lambda: server.state(session)["state"] == "hibernated", "it sleeps when the work is done")


def test_processes_end_when_their_session_hibernates(server: Server) -> None:
    """A session that was put to sleep wakes without them; its files are there."""
    session = server.session()
    headers = {"x-session-id": session}
    body = {"command": ["sh", "-c", "echo started > mark; sleep 300"]}
    assert server.client.post("/api/processes", json=body, headers=headers).status_code == 201
    wait_until(lambda: server.client.get("/api/files/mark", headers=headers).status_code == 200, "it has begun")
    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    assert server.client.get("/api/processes", headers=headers).json() == {"processes": []}
    assert server.client.get("/api/files/mark", headers=headers).text == "started\n"


def _noise(size: int) -> Iterator[bytes]:
    chunk = bytes(range(256)) * 4096
    for _ in range(size >> 20):
        yield chunk


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gigabyte_goes_up_and_down_with_flat_memory(server: Server, client: httpx.Client) -> None:
    """Raw, through the gateway: written whole, read by range and whole; neither side holds it."""
    import psutil

    gateway = psutil.Process(server.process.pid)
    before = gateway.memory_info().rss
    assert client.put("/api/files/big", content=_noise(1 << 30), timeout=600).json()["size"] == 1 << 30
    part = client.get("/api/files/big", headers={"range": "bytes=536870912-536871167"})
    assert (part.status_code, part.content) == (206, bytes(range(256)))
    size, most = 0, 0
    with client.stream("GET", "/api/files/big", timeout=600) as reply:
        for chunk in reply.iter_raw():
            size += len(chunk)
            most = max(most, gateway.memory_info().rss)
    assert size == 1 << 30
    assert most - before < 64 << 20
    assert client.delete("/api/files/big").status_code == 204
