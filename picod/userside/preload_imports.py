"""The imports of the warm interpreter: what must hold for a script to find them as its own would be.

Run once by forkserver.py, before the first fork. Imports that a forked script could tell from its own are refused with
the reason, and every command then starts an ordinary python3. Refused are imports that fail, that print (each script
would have to print the same), and that write into the home folder (it is the session's, and no session exists yet).
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_TESTED = ((3, 11),)  # versions of CPython that tests/picod/commands/corpus compares; others are not preloaded
_NICE = 19  # of the thread that imports: a session's commands run beside it


class NotPossibleError(Exception):
    """Preloading is impossible here; the text says why, and is logged by picod."""


def import_all(modules: Sequence[str], *, away_from_home: bool) -> set[str]:
    """Import `modules`; returns the names of environment variables that they read. Raises NotPossibleError.

    With `away_from_home` HOME is a temporary folder meanwhile: what imports write must not be in a workspace that no
    session has yet. If they read HOME and wrote nothing, forkserver.py runs them again with the real one.
    """
    version = "{}.{}".format(*sys.version_info[:2])
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _TESTED:
        raise NotPossibleError(f"python3 is {sys.implementation.name} {version}; preloading knows CPython 3.11 only")
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux: of this thread
    try:
        noise = os.memfd_create("noise")
    except OSError:  # refused where memory that belongs to no process cannot be limited
        noise = os.open("/tmp", os.O_RDWR | os.O_TMPFILE, 0o600)  # noqa: S108 - a file without a name
    for number in (1, 2):
        os.dup2(noise, number)
    home = os.environ.get("HOME")
    place = f"/tmp/.home-{os.getpid()}" if away_from_home and home is not None else ""  # noqa: S108
    if place:
        os.mkdir(place, 0o700)
        os.environ["HOME"] = place
    looked_at: set[str] = set()
    streams = sys.stdout, sys.stderr
    stand_ins = sys.stdout, sys.stderr = _unbuffered(1), _unbuffered(2)
    try:
        with _Recorded(looked_at):
            for module in modules:
                _import(module)
    finally:
        if (sys.stdout, sys.stderr) == stand_ins:
            sys.stdout, sys.stderr = streams
        written = _remove_tree(place) if place else []
        if home is not None:
            os.environ["HOME"] = home
    if written:
        raise NotPossibleError(
            f"the imports write {', '.join(written)} into the home folder, which is the session's; "
            "if a variable moves that, name a folder below /tmp in the runtime's environment"
        )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Imports that will run again may print only the first time: matplotlib announces that it builds its font list,
    # which takes 5 s at low priority. So their output does not count yet.
    if os.fstat(noise).st_size and not (place and "HOME" in looked_at):
        text = os.pread(noise, 200, 0).decode("utf-8", "replace")
        raise NotPossibleError(f"the imports print, which each script would have to: {text.strip()}")
    # Pipes, as a command's streams are: forkserver.py may execute itself again, and then its streams must be of the
    # kind that a script gets. Their other end is closed.
    reader, writer = os.pipe()
    for number in (1, 2):
        os.dup2(writer, number)
    for number in (reader, writer, noise):
        os.close(number)
    return looked_at


def _unbuffered(number: int) -> io.TextIOWrapper:
    """A stream for the time of the imports.

    Modules keep sys.stdout as a default argument. Were it the script's own stream, that reference would keep it from
    being flushed at finalisation, and it would have tested already, on another file, whether it can seek.
    """
    raw = io.FileIO(number, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)


class _Recorded:
    """A context manager that adds to `names` each variable that is read through os.environ."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._plain = os.environ.encodekey

    def __enter__(self) -> None:
        os.environ.encodekey = self._noted

    def __exit__(self, *_: object) -> None:
        os.environ.encodekey = self._plain

    def _noted(self, name: str) -> str:
        self._names.add(name)
        return self._plain(name)


def _import(module: str) -> None:
    try:
        __import__(module)
    except BaseException as error:
        raise NotPossibleError(f"cannot import {module}: {type(error).__name__}: {error}") from None


def _other_programs(home: str) -> list[str]:
    """Paths below `home` written by programs that the imports started; no import needs them later."""
    cache = os.path.join(home, ".cache")  # matplotlib starts fc-list once, for its list of fonts
    return [cache] if os.path.isdir(cache) and os.listdir(cache) == ["fontconfig"] else []


def _remove_tree(path: str) -> list[str]:
    """Remove a folder. Returns the names directly in it, without those of `_other_programs`."""
    names = [name for name in os.listdir(path) if os.path.join(path, name) not in _other_programs(path)]
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            inner = os.path.join(folder, name)
            (os.unlink if os.path.islink(inner) else os.rmdir)(inner)
    os.rmdir(path)
    return names
