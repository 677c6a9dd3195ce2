"""Deleting, moving, making, looking at files and listing trees over a real picod; hostile paths, links and races."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picod.files.tree import walk
from tests.support.examples import examples
from tests.support.picod import Executor
from tests.support.trees import grow, remove_tree, trees

OUTSIDE = [("../x", 400), ("a/../../x", 400), ("out/x", 400), ("out/deep/x", 400), ("a\0b", 400), ("x" * 5000, 400)]


@pytest.fixture
def folder(picod: Executor, tmp_path: Path) -> Path:
    """The workspace, emptied, with a link `out` to a folder outside that holds a file `x`."""
    picod.execute("sh", "-c", "rm -rf ./* .[!.]*")
    (tmp_path / "x").write_text("precious")
    (picod.workspace / "out").symlink_to(tmp_path)
    return picod.workspace


def delete(picod: Executor, path: str, query: str = "") -> int:
    """Delete a path. Returns the status."""
    return picod.client.delete(f"/api/files/{path}{query}").status_code


def move(picod: Executor, old: str, new: str, **fields: Any) -> Any:
    """Move a path. Returns the answer."""
    return picod.client.post("/api/fs/move", json={"from": old, "to": new, **fields})


def tree(picod: Executor, **params: Any) -> list[str]:
    """All paths below a directory, read page by page."""
    paths: list[str] = []
    while True:
        reply = picod.client.get("/api/fs/tree", params=params)
        assert reply.status_code == 200, reply.text
        paths += [entry["path"] for entry in reply.json()["entries"]]
        if reply.json()["next"] is None:
            return paths
        params["after"] = reply.json()["next"]


def test_delete_removes_files_links_and_empty_folders(picod: Executor, folder: Path) -> None:
    """A link goes, what it leads to stays; a folder that holds something needs to be told so."""
    (folder / "a").write_text("x")
    (folder / "link").symlink_to("a")
    (folder / "empty").mkdir()
    (folder / "full" / "deep").mkdir(parents=True)
    assert delete(picod, "link") == 204
    assert (folder / "a").exists()
    assert [delete(picod, name) for name in ("a", "empty", "full", "none")] == [204, 204, 409, 404]
    assert delete(picod, "full", "?recursive=true") == 204
    assert delete(picod, "none", "?recursive=true") == 404
    assert delete(picod, "out", "?recursive=true") == 204
    assert os.listdir(folder) == []


def test_delete_of_a_tree_follows_no_link_out_of_it(picod: Executor, folder: Path, tmp_path: Path) -> None:
    """Links inside go as links; modes that forbid are no obstacle to their owner."""
    (folder / "t" / "locked").mkdir(parents=True)
    (folder / "t" / "locked" / "f").write_text("x")
    (folder / "t" / "away").symlink_to(tmp_path)
    (folder / "t" / "locked").chmod(0)
    assert delete(picod, "t", "?recursive=true") == 204
    assert (tmp_path / "x").read_text() == "precious"


@pytest.mark.parametrize("path", ["", ".", "a/..", "/"])
def test_workspace_itself_cannot_be_deleted_or_moved(picod: Executor, folder: Path, path: str) -> None:
    """Every path that means the workspace itself is refused with 400."""
    assert delete(picod, path.replace(".", "%2e"), "?recursive=true") == 400
    assert move(picod, path or ".", "b").status_code == 400
    assert move(picod, "out", path or ".").status_code == 400


@pytest.mark.parametrize(("path", "status"), OUTSIDE)
def test_paths_out_of_the_workspace_are_refused(
    picod: Executor, folder: Path, tmp_path: Path, path: str, status: int
) -> None:
    """By every verb, and nothing outside changes."""
    (folder / "a").mkdir()
    encoded = path.replace("..", "%2e%2e").replace("\0", "%00")
    assert delete(picod, encoded, "?recursive=true") == status
    assert move(picod, path, "stolen").status_code == status
    assert move(picod, "a", path).status_code == status
    assert picod.client.post("/api/fs/mkdir", json={"path": path + "y"}).status_code == status
    assert picod.client.get("/api/fs/stat", params={"path": path}).status_code == status
    assert picod.client.get("/api/fs/tree", params={"path": path}).status_code == status
    assert sorted(os.listdir(tmp_path)) == ["x"]
    assert sorted(os.listdir(folder)) == ["a", "out"]


def test_move_renames_and_replaces_only_with_overwrite(picod: Executor, folder: Path) -> None:
    """Parents of the new place are made; a link moves as a link."""
    (folder / "a").write_text("a")
    (folder / "b").write_text("b")
    (folder / "link").symlink_to("b")
    assert move(picod, "a", "b").status_code == 409
    assert (folder / "b").read_text() == "b"
    answer = move(picod, "a", "b", overwrite=True)
    assert (answer.status_code, answer.json()["path"], answer.json()["size"]) == (200, "b", 1)
    assert (folder / "b").read_text() == "a"
    assert move(picod, "link", "deep/er/link").json()["target"] == "b"
    assert move(picod, "none", "made/for/nothing").status_code == 404
    assert not (folder / "made").exists()
    assert move(picod, "deep", "deep/er/inside").status_code == 400
    assert sorted(os.listdir(folder)) == ["b", "deep", "out"]


def test_mkdir_makes_parents_and_is_content_with_what_is_there(picod: Executor, folder: Path) -> None:
    """Unless it was told not to."""

    def make(path: str, **fields: Any) -> int:
        return picod.client.post("/api/fs/mkdir", json={"path": path, **fields}).status_code

    assert [make("a/b/c"), make("a/b/c"), make("a/b/c", parents=False)] == [201, 200, 409]
    assert [make("x/y", parents=False), make("x", parents=False, mode="0700")] == [404, 201]
    assert stat.S_IMODE((folder / "x").stat().st_mode) == 0o700
    (folder / "file").write_text("x")
    assert [make("file"), make("file/x"), make(""), make("d", mode="0999"), make("d", parents=1)] == [
        409, 400, 400, 400, 400,
    ]  # fmt: skip


def test_stat_distinguishes_a_link_from_its_target(picod: Executor, folder: Path) -> None:
    """Itself unless `follow` is asked for; a link out of the workspace is not followed."""
    (folder / "file").write_text("four")
    (folder / "link").symlink_to("file")

    def look(path: str, **params: str) -> Any:
        return picod.client.get("/api/fs/stat", params={"path": path, **params})

    link, followed = look("link").json(), look("link", follow="true").json()
    assert (link["type"], link["target"], link["path"]) == ("symlink", "file", "link")
    assert (followed["type"], followed["target"], followed["size"]) == ("file", None, 4)
    assert look(".").json()["type"] == "directory"
    assert [look("none").status_code, look("").status_code, look("out", follow="true").status_code] == [404, 400, 400]
    assert look("file", follow="yes").status_code == 400


def test_tree_lists_everything_once_in_pages_of_any_size(picod: Executor, folder: Path) -> None:
    """Parents before what is in them, by the bytes of names; links are entries and not followed."""
    for path in ("b/x", "a/z", "a/b/c", "a-/y", "a.txt"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")
    (folder / "loop").symlink_to(".")
    expected = ["a", "a/b", "a/b/c", "a/z", "a-", "a-/y", "a.txt", "b", "b/x", "loop", "out"]
    for limit in (1, 2, 3, 100):
        assert tree(picod, limit=limit) == expected
    assert tree(picod, path="a") == ["b", "b/c", "z"]
    assert tree(picod, depth=1, limit=2) == ["a", "a-", "a.txt", "b", "loop", "out"]


@pytest.mark.parametrize(
    "params", [{"limit": "0"}, {"limit": "10001"}, {"depth": "x"}, {"after": "%%"}, {"after": "a"}]
)
def test_tree_refuses_parameters_that_make_no_sense(picod: Executor, folder: Path, params: dict[str, str]) -> None:
    """With 400, and 404 for a folder that is not there."""
    assert picod.client.get("/api/fs/tree", params=params).status_code == 400
    assert picod.client.get("/api/fs/tree", params={"path": "none"}).status_code == 404


@given(tree=trees, limit=st.integers(1, 5))
@settings(max_examples=examples(60), deadline=None)
def test_walk_continues_after_any_path(tmp_path_factory: pytest.TempPathFactory, tree: Any, limit: int) -> None:
    """Pages of any size join to the whole, for any tree and any names; also when the last entry is deleted."""
    root = tmp_path_factory.mktemp("walk")
    grow(root, tree)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        whole = [entry.path for entry in walk(fd, [], limit=1 << 20, depth=1 << 20)]
        paged: list[bytes] = []
        while page := walk(fd, paged[-1].split(b"/") if paged else [], limit=limit, depth=1 << 20):
            paged += [entry.path for entry in page]
        behind = [entry.path for entry in walk(fd, [b"a", b"\0", b"gone"], limit=1 << 20, depth=1 << 20)]
    finally:
        os.close(fd)
        remove_tree(root)
    assert paged == whole
    assert len(set(whole)) == len(whole)
    assert behind == [path for path in whole if path.split(b"/") > [b"a", b"\0", b"gone"]]


def test_swapping_a_folder_for_a_link_does_not_redirect_requests(picod: Executor, folder: Path, tmp_path: Path) -> None:
    """While code swaps it as fast as it can, nothing outside is deleted, moved, listed or made."""
    (folder / "real").mkdir()
    (folder / "real" / "x").write_text("inside")
    over = threading.Event()

    def swap() -> None:
        here = folder / "swap"
        while not over.is_set():
            with contextlib.suppress(OSError):
                here.symlink_to(tmp_path)
                here.unlink()
                here.mkdir()
                (here / "x").write_text("in")
                (here / "x").unlink()
                here.rmdir()
            with contextlib.suppress(OSError):
                (here / "x").unlink()
            with contextlib.suppress(OSError):
                (here / "new").unlink()
            with contextlib.suppress(OSError):
                here.rmdir()

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for number in range(60):
            assert delete(picod, "swap/x") in (204, 400, 404)
            assert delete(picod, "swap/x", "?recursive=true") in (204, 400, 404, 409)
            assert move(picod, "swap/x", f"got{number}").status_code in (200, 400, 404)
            assert move(picod, "real/x", "swap/new").status_code in (200, 400, 404, 409)
            (folder / "real" / "x").write_text("inside")
            reply = picod.client.get("/api/fs/tree", params={"path": "swap"})
            assert reply.status_code in (200, 400, 404, 409)
    finally:
        over.set()
        swapper.join()
    assert sorted(os.listdir(tmp_path)) == ["x"]
    assert (tmp_path / "x").read_text() == "precious"
    assert all(path.read_text() != "precious" for path in folder.glob("got*"))
