"""Paths of the whole sandbox (`?root=system`): /tmp and what is readable, but nothing of /proc and /sys."""

from __future__ import annotations

import uuid

from tests.support.picod import Executor


def test_files_outside_the_workspace_are_written_listed_moved_and_deleted(picod: Executor) -> None:
    """Every verb on files takes an absolute path of the sandbox."""
    folder = f"/tmp/{uuid.uuid4().hex}"
    client = picod.client
    try:
        assert client.put(f"/api/files{folder}/a/b.txt?root=system", content=b"hello").status_code == 200
        assert client.get(f"/api/files{folder}/a/b.txt?root=system").content == b"hello"
        stat = client.get("/api/fs/stat", params={"path": f"{folder}/a/b.txt", "root": "system"}).json()
        assert (stat["type"], stat["size"]) == ("file", 5)
        move = {"from": f"{folder}/a/b.txt", "to": f"{folder}/c.txt"}
        assert client.post("/api/fs/move?root=system", json=move).status_code == 200
        tree = client.get("/api/fs/tree", params={"path": folder, "root": "system"}).json()
        assert [entry["path"] for entry in tree["entries"]] == ["a", "c.txt"]
    finally:
        assert client.delete(f"/api/files{folder}?root=system&recursive=true").status_code == 204
    assert client.get(f"/api/files{folder}/c.txt?root=system").status_code == 404


def test_proc_and_sys_are_refused_by_any_name(picod: Executor) -> None:
    """`/proc/self` would be picod's own; a link to it is refused as well."""
    link = f"/tmp/{uuid.uuid4().hex}"
    picod.client.post("/api/execute", json={"command": ["ln", "-s", "/proc/self", link]})
    try:
        for path in ("/proc/self/environ", "/proc/1/status", "/proc", "/sys/kernel", f"{link}/environ"):
            reply = picod.client.get(f"/api/files{path}?root=system")
            assert reply.status_code in (400, 404), (path, reply.status_code)
            assert b"PICOD" not in reply.content
        assert picod.client.get(f"/api/files{link}/environ?root=system").status_code == 400
    finally:
        picod.client.post("/api/execute", json={"command": ["rm", link]})


def test_unknown_root_is_refused(picod: Executor) -> None:
    """400 that names the two."""
    reply = picod.client.get("/api/fs/stat?path=x&root=host")
    assert reply.status_code == 400
    assert "workspace or system" in reply.json()["error"]
