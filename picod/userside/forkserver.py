"""The warm interpreter: user code's own python3 runs this file, imports what is preloaded, and forks scripts.

    python3 forkserver.py CONTROL_FD EXECUTABLE ATTEMPT MODULE...

It speaks with picod/commands/preload.py over sockets that picod made:

    control socket  here -> picod   one text: "ready" and the environment variables that the imports looked at, a line
                                    each; or why there is no preloading
                    picod -> here   one byte and a descriptor for each child wanted: the child's end of its own socket
    child's socket  child -> picod  one byte: it waits (the kernel adds its pid)
                    picod -> child  the order, marshalled: (argv, env), with cwd, stdout and stderr as descriptors
                    child -> picod  one byte: user code runs from now on; another one if it does so in a fresh
                                    interpreter because packages have changed: this server is out of date

A child is a child of picod (sibling.py, or forked twice, for picod is a subreaper): getppid, wait and exit status are
what they are for a command that picod spawned itself. It is forked ahead, copies what it will write to, and waits: an
order costs no fork. The fork happens in a thread below which no Python code lies (script.py says why); the main thread
only imports, at low priority.
"""

from __future__ import annotations

import sys

_plain_modules = set(sys.modules) - {"__future__"}

import _socket
import _thread
import gc
import io
import itertools
import marshal
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from picod.userside import native, pages, script, sibling, steps
else:
    import native
    import pages
    import script
    import sibling
    import steps

for _name in set(sys.modules) - _plain_modules - {"__main__"}:
    del sys.modules[_name]  # ours stay ours: a script that imports them imports them itself

_TESTED = ((3, 11),)  # of CPython; others take the ordinary path
_MAX_ORDER_BYTES = 1 << 18  # bytes of an order; picod sends less
_NICE = 19  # of the thread that imports


class NotPossibleError(Exception):
    """Why there is no preloading."""


class Server:
    """The process. `again`: arguments to start this program anew with, when set."""

    def __init__(self, control: int, executable: str) -> None:
        self.control = _socket.socket(fileno=control)
        self.executable = executable
        self.again: list[str] = []
        self.gate = _thread.allocate_lock()
        self.gate.acquire()
        self.steps = steps.Steps()
        self.fresh = script.Fresh(executable)

    def serve(self) -> object:
        """Fork a child for each descriptor that comes. Returns in the child, when its script is to run."""
        self.gate.acquire()
        if self.again:  # not from the thread that imports, whose low priority the new program would have
            os.execv(self.executable, self.again)
        forks = sibling.Forks()
        while True:
            try:
                data, descriptors = _receive(self.control, 1)
            except OSError:
                os._exit(0)
            if not data:
                os._exit(0)  # picod is gone
            for descriptor in descriptors:
                if self._fork(descriptor, forks):
                    return steps.DONE

    def _fork(self, descriptor: int, forks: sibling.Forks) -> bool:
        """Fork a child of picod's. False in the server; True in the child, when its script is ready to run."""
        pid = forks.fork()
        if pid is None:
            return self._fork_twice(descriptor)
        if pid:
            os.close(descriptor)
            return False
        return self._obey(descriptor)

    def _fork_twice(self, descriptor: int) -> bool:
        """The same where sibling.py's way is not possible."""
        try:
            between = os.fork()
        except OSError:  # too many processes; picod sees the socket close
            os.close(descriptor)
            return False
        if between:
            os.close(descriptor)
            os.waitpid(between, 0)
            return False
        between = os.getpid()
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            os._exit(0)
        while os.getppid() == between:
            time.sleep(0.0002)
        return self._obey(descriptor)

    def _obey(self, descriptor: int) -> bool:
        """In the child: wait for the order, and get ready for it. Returns True."""
        try:
            self._wait_and_take(descriptor)
        except OSError:  # picod left, or hung up: nothing has begun
            os._exit(0)
        return True

    def _wait_and_take(self, descriptor: int) -> None:
        self.control.close()
        os.setsid()
        _renew()
        self.fresh.rehearse()
        connection = _socket.socket(fileno=descriptor)
        connection.send(b"w")
        data, descriptors = _receive(connection, 3)
        if not data or len(descriptors) != 3:
            os._exit(0)  # not needed
        argv, environment = marshal.loads(data)
        folder, out, err = descriptors
        os.fchdir(folder)
        os.dup2(out, 1)
        os.dup2(err, 2)
        for each in descriptors:
            os.close(each)
        stale = self.fresh.is_stale()
        ready = not stale and self.fresh.take(argv, environment, self.steps)
        connection.send(b"s" if stale else b"r")
        connection.close()
        if not ready:
            self.fresh.be_real(argv, environment)


def main() -> None:
    """Import what is asked for, then let the other thread serve."""
    control, executable, attempt, *modules = sys.argv[1:]
    server = Server(int(control), executable)
    del sys.path[0]  # the folder of this file
    sys.path_importer_cache.clear()
    # The thread keeps the priority that children must have; it starts before this one lowers its own.
    server.steps.append(iter(server.serve, steps.DONE))
    _thread.start_new_thread(list, (itertools.chain.from_iterable(server.steps),))
    forever = _thread.allocate_lock()
    forever.acquire()
    try:
        looked_at = import_all(modules, away_from_home=attempt == "1")
    except NotPossibleError as error:
        server.control.send(str(error).encode("utf-8", "replace")[:4000])
        os._exit(0)
    if attempt == "1" and "HOME" in looked_at:  # they took a wrong one for the home folder
        os.set_inheritable(server.control.fileno(), True)
        server.again = [sys.orig_argv[0], sys.argv[0], control, executable, "2", *modules]
        server.gate.release()
        forever.acquire()
    server.fresh.remember(_plain_modules)
    madvise = native.native("madvise")
    pages.join(lambda start, size, advice: madvise(native.Long(start), native.Long(size), advice))
    gc.collect()
    gc.freeze()  # a collection in a child must not write to, and so copy, what it shares
    server.control.send("\n".join(["ready", *sorted(looked_at)]).encode("utf-8", "surrogateescape"))
    server.gate.release()
    forever.acquire()


def import_all(modules: Sequence[str], *, away_from_home: bool) -> set[str]:
    """Import; returns the names of environment variables that were looked at. Raises NotPossibleError.

    With `away_from_home` the imports are told of another home folder: what they write must not be in a workspace that
    no session has yet. If they only looked, they are started again with the right one.
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
    # What is printed by imports that are to come again may have been for once: matplotlib says that it makes its list
    # of fonts, when that takes it five seconds at low priority.
    if os.fstat(noise).st_size and not (place and "HOME" in looked_at):
        text = os.pread(noise, 200, 0).decode("utf-8", "replace")
        raise NotPossibleError(f"the imports print, which each script would have to: {text.strip()}")
    # Pipes, as a command's streams are, for this program may start anew with them. They are not read.
    reader, writer = os.pipe()
    for number in (1, 2):
        os.dup2(writer, number)
    for number in (reader, writer, noise):
        os.close(number)
    return looked_at


def _unbuffered(number: int) -> io.TextIOWrapper:
    """A stream for the imports. Modules keep what they find as the defaults of functions: a script's own streams would
    be held by those, not be flushed when all is taken apart, and know already whether they can seek.
    """
    raw = io.FileIO(number, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)


class _Recorded:
    """A context in which the names are noted that os.environ is asked for."""

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
    """What programs that the imports start keep there for themselves: no import misses it later."""
    cache = os.path.join(home, ".cache")  # matplotlib starts fc-list once, for its list of fonts
    return [cache] if os.path.isdir(cache) and os.listdir(cache) == ["fontconfig"] else []


def _remove_tree(path: str) -> list[str]:
    """Remove a folder; returns the names that were directly in it."""
    names = [name for name in os.listdir(path) if os.path.join(path, name) not in _other_programs(path)]
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            inner = os.path.join(folder, name)
            (os.unlink if os.path.islink(inner) else os.rmdir)(inner)
    os.rmdir(path)
    return names


def _receive(connection: _socket.socket, most: int) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it. Raises OSError."""
    data, ancillary, _, _ = connection.recvmsg(_MAX_ORDER_BYTES, _socket.CMSG_SPACE(4 * most), _socket.MSG_CMSG_CLOEXEC)
    descriptors = []
    for level, kind, raw in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            descriptors += [int.from_bytes(raw[i : i + 4], sys.byteorder) for i in range(0, len(raw) - 3, 4)]
    return data, descriptors


def _renew() -> None:
    """Give what is drawn or noted once for each process its own value. (random does so itself at a fork.)"""
    loaded = sys.modules.get
    numpy_random, process, logging = loaded("numpy.random"), loaded("multiprocessing.process"), loaded("logging")
    if numpy_random is not None:
        numpy_random.seed()
    if process is not None:
        process.current_process()._config["authkey"] = process.AuthenticationString(os.urandom(32))
    if logging is not None:
        logging._startTime = time.time()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
