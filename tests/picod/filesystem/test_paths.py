"""No path, no symlink and no race leads out of the workspace."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picod.filesystem.paths import EscapeError, PathError, Workspace, clean
from tests.support.examples import examples

BOTH_WAYS = pytest.mark.parametrize("use_openat2", [True, False], ids=["openat2", "walk"])

NAMES = st.sampled_from(["a", "b", "c", "d"])
PARTS = st.sampled_from(["a", "b", "c", "d", ".", "..", "", "outside", "secret", "\u00e9", "x" * 300])
PATHS = st.one_of(st.lists(PARTS, max_size=7).map("/".join), st.text(max_size=12))
TARGETS = st.one_of(
    st.lists(st.sampled_from(["a", "b", "c", "..", ".."]), min_size=1, max_size=5).map("/".join),
    st.sampled_from(
        ["{ws}", "{ws}/a", "{ws}/../outside", "{out}", "{out}/secret", "/", "/proc/self/root", "/proc/self/cwd"]
    ),
)
ENTRIES = st.lists(
    st.tuples(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.one_of(st.none(), st.just(""), TARGETS)),
    max_size=8,
)


def plant(ws: Path, entries: list[tuple[str, str | None]], outside: Path) -> None:
    """Make directories (None), files (empty text) and symlinks (anything else), as far as they fit together."""
    for name, what in sorted(entries, key=lambda entry: bool(entry[1])):  # links last: nothing is made through them
        path = ws / name
        try:
            if what is None:
                path.mkdir(parents=True, exist_ok=True)
            elif what == "":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            elif os.path.realpath(path.parent) == str(path.parent):
                os.symlink(what.replace("{ws}", str(ws)).replace("{out}", str(outside)), path)
        except OSError:
            continue  # e.g. below a file


def outcome(workspace: Workspace, path: str, *, make_parents: bool = False) -> str:
    """Where a path leads as text, or the kind of refusal."""
    try:
        with workspace.resolve(path, make_parents=make_parents) as place:
            return os.path.join(os.readlink(f"/proc/self/fd/{place.dir_fd}"), place.name)
    except (PathError, OSError) as error:
        return type(error).__name__


@settings(max_examples=examples(300), deadline=None)
@given(entries=ENTRIES, paths=st.lists(PATHS, min_size=1, max_size=6))
def test_resolution_never_touches_anything_outside(entries: list[tuple[str, str | None]], paths: list[str]) -> None:
    """Any tree, any path: both ways agree, all they find is inside, and what is written lands inside."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(os.path.realpath(name))
        ws, outside = top / "ws", top / "outside"
        ws.mkdir()
        outside.mkdir()
        (outside / "secret").write_text("untouched")
        plant(ws, entries, outside)
        quick, careful = Workspace(str(ws)), Workspace(str(ws), use_openat2=False)
        try:
            for path in paths:
                seen = outcome(quick, path)
                assert seen == outcome(careful, path)
                assert not seen.startswith("/") or (seen + "/").startswith(f"{ws}/")
            for workspace in (quick, careful):
                for path in paths:
                    try:
                        with workspace.resolve(path, make_parents=True) as place:
                            os.close(place.open(os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600))
                    except (PathError, OSError):
                        continue
        finally:
            quick.close()
            careful.close()

        assert sorted(os.listdir(top)) == ["outside", "ws"]
        assert os.listdir(outside) == ["secret"]
        assert (outside / "secret").read_text() == "untouched"


SWAPPER = """
import os, sys
os.chdir(sys.argv[1])
print("ready", flush=True)
while True:
    os.rename("d", "real"); os.rename("link", "d")
    os.rename("d", "link"); os.rename("real", "d")
"""


@BOTH_WAYS
def test_swapping_a_directory_for_a_symlink_meanwhile_gains_nothing(tmp_path: Path, use_openat2: bool) -> None:
    """While another process swaps `d` with a symlink to the outside, writes to `d/x` never land there."""
    ws, outside = tmp_path / "ws", tmp_path / "outside"
    (ws / "d").mkdir(parents=True)
    outside.mkdir()
    (ws / "link").symlink_to(outside)
    workspace = Workspace(str(ws), use_openat2=use_openat2)
    landed = refused = 0
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, str(ws)], stdout=subprocess.PIPE)
    try:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == b"ready\n"
        for turn in range(20_000):
            try:
                with workspace.resolve("d/x") as place:
                    os.close(place.open(os.O_WRONLY | os.O_CREAT))
                landed += 1
            except (EscapeError, FileNotFoundError):
                refused += 1
            if turn >= 3_000 and landed and refused:
                break
    finally:
        swapper.kill()
        swapper.communicate()
        workspace.close()

    assert os.listdir(outside) == []
    assert landed > 0, "the race was never lost by the swapper"
    assert refused > 0, "the race was never won by the swapper"


@BOTH_WAYS
def test_symlinks_that_stay_inside_are_followed(tmp_path: Path, use_openat2: bool) -> None:
    """Relative, absolute and chained links, also as parents and also to what does not exist yet."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "rel").symlink_to("data/deep")
    (tmp_path / "abs").symlink_to(tmp_path / "data")
    (tmp_path / "chain").symlink_to("abs/../rel")
    (tmp_path / "new").symlink_to("data/not-yet")
    workspace = Workspace(str(tmp_path), use_openat2=use_openat2)
    try:
        assert str(tmp_path / "data/deep/f") == outcome(workspace, "rel/f")
        assert str(tmp_path / "data/f") == outcome(workspace, "/abs/f")
        assert str(tmp_path / "data/deep/f") == outcome(workspace, "chain/f")
        assert str(tmp_path / "data/not-yet") == outcome(workspace, "new")
    finally:
        workspace.close()


@BOTH_WAYS
def test_links_in_a_circle_end(tmp_path: Path, use_openat2: bool) -> None:
    """A loop is an error, also one that goes up and down again."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "up").symlink_to("../dir/up/x")
    workspace = Workspace(str(tmp_path), use_openat2=use_openat2)
    try:
        assert [outcome(workspace, path) for path in ("loop/x", "dir/up/x")] == ["OSError", "OSError"]
    finally:
        workspace.close()


def test_absolute_paths_are_taken_from_the_workspace() -> None:
    """A leading slash is the workspace; above it there is nothing."""
    assert ["etc", "passwd"] == clean("/etc/passwd") == clean("/../../etc/./passwd")
    assert [] == clean("/") == clean(".") == clean("a/..")


@pytest.mark.parametrize("path", ["..", "../..", "a/../../b"])
def test_relative_paths_above_the_workspace_are_refused_in_agentcube_words(path: str) -> None:
    """The text names the path, as their clients know it."""
    with pytest.raises(EscapeError) as caught:
        clean(path)

    assert f"access denied: path '{path}' escapes workspace jail (relative path traversal: {path})" == str(caught.value)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 256, "a/" * 2500])
def test_paths_that_no_file_can_have_are_refused(path: str) -> None:
    """NUL, half a surrogate pair, too long: a PathError with a sentence."""
    with pytest.raises(PathError):
        clean(path)


@BOTH_WAYS
def test_resolving_leaks_no_descriptor(tmp_path: Path, use_openat2: bool) -> None:
    """Success and every kind of failure give all descriptors back."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "loop").symlink_to("loop")
    workspace = Workspace(str(tmp_path), use_openat2=use_openat2)
    try:
        before = len(os.listdir("/proc/self/fd"))
        for path in ("dir/x", "file/x", "out/passwd", "loop/x", "none/x", ".", "..", "dir/../dir/y", "out"):
            outcome(workspace, path)
        assert before == len(os.listdir("/proc/self/fd"))
    finally:
        workspace.close()


@BOTH_WAYS
def test_place_never_follows_a_link_that_came_later(tmp_path: Path, use_openat2: bool) -> None:
    """Between resolving and opening, the last name becomes a symlink to the outside: refused, nothing is made."""
    (tmp_path / "ws").mkdir()
    workspace = Workspace(str(tmp_path / "ws"), use_openat2=use_openat2)
    try:
        with workspace.resolve("x") as place:
            (tmp_path / "ws" / "x").symlink_to(tmp_path / "made-outside")
            with pytest.raises(OSError, match="symbolic links"):
                place.open(os.O_WRONLY | os.O_CREAT)
    finally:
        workspace.close()

    assert os.listdir(tmp_path) == ["ws"]
