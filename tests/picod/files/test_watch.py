"""/api/fs/watch over a real picod: every change is reported, combined into few events."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picod.files.changes import CREATED, DELETED, MODIFIED, MOVED, Changes
from tests.support.picod import Executor
from tests.support.waiting import wait_until


@pytest.fixture
def folder(picod: Executor) -> Path:
    """A folder `w` of the workspace, empty."""
    path = picod.workspace / "w"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


class Follower:
    """Reads the events of one watch."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def next(self) -> tuple[str, dict[str, Any]]:
        """Read the next event. Raises EOFError at the end."""
        name = ""
        for line in self._lines:
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                return name, json.loads(value)
        raise EOFError

    def changes(self, last: str) -> list[tuple[str, str]]:
        """(type, path) up to and with that of the path `last`; a move's path is `from>to`."""
        seen = []
        while True:
            name, data = self.next()
            assert name == "change", data
            path = f"{data['from']}>{data['path']}" if "from" in data else data["path"]
            seen.append((data["type"], path))
            if data["path"] == last:
                return seen


@contextlib.contextmanager
def follow(picod: Executor, query: str = "?path=w") -> Iterator[Follower]:
    """Watch a directory; yields after the event `ready`."""
    with picod.client.stream("GET", f"/api/fs/watch{query}", timeout=30) as reply:
        assert reply.status_code == 200, reply.read()
        follower = Follower(reply.iter_lines())
        assert follower.next()[0] == "ready"
        yield follower


def test_each_change_is_reported_once(picod: Executor, folder: Path) -> None:
    """Made, written, deleted; a file written many times in a moment is one change."""
    (folder / "old").write_text("x")
    (folder / "gone").write_text("x")
    with follow(picod) as follower:
        script = "for i in $(seq 500); do echo $i >> new; done; echo y > old; rm gone; touch end"
        subprocess.run(["sh", "-c", script], cwd=folder, check=True)
        seen = follower.changes("end")
    told = {("created", "new"), ("modified", "old"), ("deleted", "gone"), ("created", "end")}
    assert told <= set(seen) <= told | {("modified", "new")}
    assert len(seen) < 60


def test_new_folders_are_watched_with_what_was_in_them_already(picod: Executor, folder: Path) -> None:
    """However deep and however quickly they were made."""
    with follow(picod) as follower:
        (folder / "a" / "b" / "c").mkdir(parents=True)
        (folder / "a" / "b" / "c" / "f").write_text("x")
        (folder / "end").write_text("")
        seen = {path: kind for kind, path in follower.changes("end")}
        assert dict.fromkeys(("a", "a/b", "a/b/c", "a/b/c/f"), "created").items() <= seen.items()
        (folder / "a" / "b" / "c" / "f").write_text("later")
        assert follower.changes("a/b/c/f") == [("modified", "a/b/c/f")]


def test_moves_are_reported_as_moves_and_followed(picod: Executor, folder: Path) -> None:
    """Within what is watched; out of it is a deletion, into it a creation."""
    (folder / "d" / "sub").mkdir(parents=True)
    (folder / "f").write_text("x")
    (picod.workspace / "outside").mkdir(exist_ok=True)
    with follow(picod) as follower:
        (folder / "d").rename(folder / "e")
        (folder / "f").rename(folder / "e" / "g")
        assert follower.changes("e/g") == [("moved", "d>e"), ("moved", "f>e/g")]
        (folder / "e" / "sub" / "x").write_text("x")
        assert follower.changes("e/sub/x") == [("created", "e/sub/x")]
        (folder / "e").rename(picod.workspace / "outside" / "e")
        assert follower.changes("e") == [("deleted", "e")]
        (picod.workspace / "outside" / "e" / "sub" / "x").write_text("unheard")
        (picod.workspace / "outside" / "e").rename(folder / "back")
        seen = follower.changes("back/sub/x")
        assert ("created", "back") in seen
        assert not [path for _, path in seen if path.startswith("e")]


def test_uploads_and_archives_show_their_result_only(picod: Executor, folder: Path) -> None:
    """The temporary files of uploads and archives are never reported."""
    with follow(picod) as follower:
        picod.client.put("/api/files/w/up", content=b"x" * 100_000)
        assert follower.changes("up") == [("created", "up")]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.add(__file__, "made/test.py")
        assert picod.client.put("/api/fs/archive?path=w", content=out.getvalue()).status_code == 200
        (folder / "end").write_text("")
        assert [path for _, path in follower.changes("end")] == ["made", "made/test.py", "end"]


def test_one_folder_alone_can_be_watched(picod: Executor, folder: Path) -> None:
    """`recursive=false` reports changes of the directory's own entries only."""
    (folder / "sub").mkdir()
    with follow(picod, "?path=w&recursive=false") as follower:
        (folder / "sub" / "x").write_text("x")
        (folder / "y").write_text("x")
        assert [path for _, path in follower.changes("y")] == ["y"]


def test_links_are_not_followed_out(picod: Executor, folder: Path, tmp_path: Path) -> None:
    """Neither one that is there nor a new one."""
    (folder / "old").symlink_to(tmp_path)
    with follow(picod) as follower:
        (folder / "new").symlink_to(tmp_path)
        (tmp_path / "secret").write_text("x")
        (folder / "end").write_text("")
        assert [path for _, path in follower.changes("end")] == ["new", "end"]
    (picod.workspace / "away").unlink(missing_ok=True)
    (picod.workspace / "away").symlink_to(tmp_path)
    assert picod.client.get("/api/fs/watch?path=away").status_code == 400


def test_stream_ends_when_its_folder_goes(picod: Executor, folder: Path) -> None:
    """When the watched folder is deleted, the stream ends with the event `gone`."""
    with follow(picod) as follower:
        folder.rmdir()
        assert follower.next()[0] == "gone"
        with pytest.raises(EOFError):
            follower.next()


def test_overflow_is_reported_and_watching_continues(picod: Executor, folder: Path) -> None:
    """More events than the kernel's queue holds while the client reads nothing."""
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with follow(picod) as follower:
        picod.process.send_signal(signal.SIGSTOP)
        try:
            for number in range(room // 2 + 10):
                path = folder / f"f{number % 7}"
                path.touch()
                path.unlink()
            (folder / "late").mkdir()
        finally:
            picod.process.send_signal(signal.SIGCONT)
        while (event := follower.next())[0] != "overflow":
            assert event[0] == "change"
        (folder / "late" / "x").write_text("x")
        seen = []
        while "late/x" not in seen:
            _, data = follower.next()
            seen.append(data.get("path"))


def test_number_of_watchers_is_bounded_and_given_back(picod: Executor, folder: Path) -> None:
    """The ninth is refused; those that left make room, and no descriptor stays."""
    assert picod.client.get("/health").status_code == 200  # its connection stays open, before and after
    before = picod.descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(follow(picod))
        assert picod.client.get("/api/fs/watch?path=w").status_code == 429
    wait_until(lambda: picod.descriptors() <= before, "queues are given back")
    with follow(picod):
        pass


@pytest.mark.parametrize(
    ("query", "status"), [("?path=none", 404), ("?path=../x", 400), ("?recursive=1", 400), ("?path=w/f", 400)]
)
def test_wrong_requests_are_refused(picod: Executor, folder: Path, query: str, status: int) -> None:
    """Each gets its status instead of a stream."""
    (folder / "f").write_text("")
    assert picod.client.get(f"/api/fs/watch{query}").status_code == status


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "delete", "move"]),
        st.sampled_from([b"a", b"b", b"c"]),
        st.sampled_from([b"a", b"b", b"c"]),
    ),
    max_size=12,
)


@given(before=st.sets(st.sampled_from([b"a", b"b", b"c"])), steps=STEPS)
def test_changes_lead_from_what_was_to_what_is(before: set[bytes], steps: list[tuple[str, bytes, bytes]]) -> None:
    """Whoever knew what was there and applies them knows what is there, for any steps in between."""
    there, changes = set(before), Changes()
    for step, path, other in steps:
        if step == "write":
            changes.note(MODIFIED if path in there else CREATED, path, is_dir=False)
            there.add(path)
        elif step == "delete" and path in there:
            changes.note(DELETED, path, is_dir=False)
            there.discard(path)
        elif step == "move" and path in there and path != other:
            changes.move(path, other, is_dir=False)
            there.discard(path)
            there.add(other)
    known = set(before)
    taken = changes.take()
    for change in taken:
        if change.kind == DELETED:
            known.discard(change.path)
        if change.kind == MOVED and change.source is not None:
            known.discard(change.source)
    for change in taken:
        if change.kind != DELETED:
            known.add(change.path)
    assert known == there
    assert len({change.path for change in taken}) == len(taken)
