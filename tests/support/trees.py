"""Trees of files: what one is, to the bit, and arbitrary ones to try."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Node(NamedTuple):
    """One file as `picture` sees it. `twins`: all names of the same file."""

    kind: int
    mode: int
    mtime_ns: int
    content: bytes  # of a file; the text of a symlink
    xattrs: dict[str, bytes]
    twins: tuple[bytes, ...]


_Found = dict[bytes, tuple[os.stat_result, bytes, dict[str, bytes]]]


def picture(root: Path) -> dict[bytes, Node]:
    """Everything below a folder, by path, sockets left out; also what its owner may not read."""
    found: _Found = {}
    _look(os.fsencode(root), b"", found)
    names: dict[tuple[int, int], list[bytes]] = {}
    for path, (status, _, _) in found.items():
        if not stat.S_ISDIR(status.st_mode):
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {
        path: Node(
            stat.S_IFMT(status.st_mode),
            stat.S_IMODE(status.st_mode),
            status.st_mtime_ns,
            content,
            xattrs,
            tuple(sorted(names.get((status.st_dev, status.st_ino), ()))),
        )
        for path, (status, content, xattrs) in found.items()
    }


def _look(folder: bytes, prefix: bytes, found: _Found) -> None:
    for name in os.listdir(folder):
        path = folder + b"/" + name
        status = os.lstat(path)
        with accessible(path, status):
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            else:
                content = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
            has_xattrs = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
            xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path)} if has_xattrs else {}
            if not stat.S_ISSOCK(status.st_mode):
                found[prefix + name] = (status, content, xattrs)
            if stat.S_ISDIR(status.st_mode):
                _look(path, prefix + name + b"/", found)


@contextmanager
def accessible(path: bytes, status: os.stat_result) -> Iterator[None]:
    """Let its owner, who need not be root, read a file or use a folder; the mode is as before afterwards."""
    mode = stat.S_IMODE(status.st_mode)
    needed = 0o700 if stat.S_ISDIR(status.st_mode) else 0o400 if stat.S_ISREG(status.st_mode) else 0
    if os.geteuid() == 0 or mode & needed == needed:
        yield
        return
    os.chmod(path, mode | needed)
    try:
        yield
    finally:
        os.chmod(path, mode)


def empty_folder(folder: Path) -> None:
    """Remove all in a folder, also below folders that their owner may not enter."""
    for name in os.listdir(folder):
        remove_tree(folder / name)


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all in it, whatever its mode."""
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        empty_folder(path)
        path.rmdir()
    else:
        path.unlink()


_names = st.one_of(
    st.binary(min_size=1, max_size=12).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"0")),
    st.sampled_from([b"a", b"b", b"=%25", b"-rf", b"new\nline", b"\xff\xfe", "ü".encode(), b"x" * 101, b"y" * 255]),
).filter(lambda name: name not in (b".", b".."))
_times = st.one_of(
    st.integers(0, 4 * 10**18),
    st.sampled_from([0, 1, -1, -1_500_000_000, 999_999_999, 1_700_000_000_000_000_000, 8**11 * 10**9]),
)
_contents = st.one_of(
    st.binary(max_size=2000),
    st.sampled_from([b"", bytes(511), bytes(512), bytes(513)]),
)
_modes = st.one_of(st.integers(0, 0o7777), st.sampled_from([0, 0o644, 0o755, 0o4755, 0o2755, 0o1777]))
_file_modes = _modes.map(lambda mode: mode & 0o1777)  # set-ID bits of files do not survive, and are not to
_leaves = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("file"),
            "content": _contents,
            "times": st.sampled_from([1, 1, 1, 3000]),
            "mode": _file_modes,
            "mtime": _times,
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("sparse"),
            "holes": st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=5000)), max_size=3),
            "tail": st.integers(0, 1 << 22),
            "mode": _file_modes,
            "mtime": _times,
        }
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("symlink"),
            "to": st.binary(min_size=1, max_size=150).filter(lambda text: b"\0" not in text),
            "mtime": _times,
        }
    ),
    st.fixed_dictionaries({"kind": st.just("fifo"), "mode": _modes, "mtime": _times}),
    st.fixed_dictionaries({"kind": st.just("twin"), "of": st.integers(0, 20)}),
)
_trees: st.SearchStrategy[Any] = st.recursive(
    st.dictionaries(_names, _leaves, max_size=5),
    lambda inner: st.dictionaries(
        _names,
        st.one_of(
            _leaves,
            st.fixed_dictionaries({"kind": st.just("folder"), "inside": inner, "mode": _modes, "mtime": _times}),
        ),
        max_size=5,
    ),
    max_leaves=12,
)
trees = _trees
"""Descriptions for `grow`."""


def grow(root: Path, tree: dict[bytes, Any]) -> None:
    """Make a tree in an empty folder."""
    folders: list[tuple[bytes, dict[str, Any]]] = []
    _grow(os.fsencode(root), tree, [], folders)
    for path, leaf in reversed(folders):  # at last, from below: nothing can be made in a folder of mode 0
        _set_mode_and_time(path, leaf)


def _grow(
    folder: bytes, tree: dict[bytes, Any], made: list[bytes], folders: list[tuple[bytes, dict[str, Any]]]
) -> None:
    for name, leaf in tree.items():
        path = folder + b"/" + name
        match leaf["kind"]:
            case "folder":
                os.mkdir(path)
                folders.append((path, leaf))
                _grow(path, leaf["inside"], made, folders)
                continue
            case "file":
                with open(path, "wb") as file:
                    file.write(leaf["content"] * leaf.get("times", 1))
            case "sparse":
                with open(path, "wb") as file:
                    for skip, data in leaf["holes"]:
                        file.seek(skip << 12, os.SEEK_CUR)
                        file.write(data)
                    file.truncate(file.tell() + leaf["tail"])
            case "symlink":
                os.symlink(leaf["to"], path)
            case "fifo":
                os.mkfifo(path)
            case "twin":
                if made:
                    os.link(made[leaf["of"] % len(made)], path, follow_symlinks=False)
                continue
        made.append(path)
        _set_mode_and_time(path, leaf)


def _set_mode_and_time(path: bytes, leaf: dict[str, Any]) -> None:
    if leaf["kind"] != "symlink":
        os.chmod(path, leaf["mode"])
    os.utime(path, ns=(leaf["mtime"], leaf["mtime"]), follow_symlinks=False)
