"""The warm interpreter: user code's own python3 runs this file, imports what is preloaded, and forks scripts.

    python3 forkserver.py CONTROL_FD EXECUTABLE ATTEMPT MODULE...

It talks to picod/commands/preload.py over sockets that picod created:

    control socket  here -> picod   one text: "ready" and the environment variables that the imports read, one per line;
                                    or the reason why preloading is impossible
                    picod -> here   one byte and a descriptor for each child wanted: the child's end of its own socket
    child's socket  child -> picod  one byte: it is ready for an order (the kernel adds its pid)
                    picod -> child  the order, marshalled: (argv, env), with cwd, stdout and stderr as descriptors
                    child -> picod  one byte: `r`, user code runs from now on; `s`, it runs in a fresh interpreter
                                    because packages have changed, and this server is out of date

A child is a child of picod (sibling.py, or forked twice, for picod is a subreaper): getppid, wait and exit status are
what they are for a command that picod spawned itself. It is forked before there is an order, writes once to the pages
that a script will write to, and waits; so an order costs neither a fork nor those copies. The fork happens in a thread
whose stack holds no Python frame (steps.py says why); the main thread only imports, at low priority.
"""

from __future__ import annotations

import sys

_plain_modules = set(sys.modules) - {"__future__"}

import _socket
import _thread
import gc
import itertools
import marshal
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picod.userside import native, pages, preload_imports, script, sibling, steps
else:
    import native
    import pages
    import preload_imports
    import script
    import sibling
    import steps

for _name in set(sys.modules) - _plain_modules - {"__main__"}:
    # A script with a `steps.py` or `pages.py` of its own must import that one, so these modules are known by reference
    # only.
    del sys.modules[_name]

_MAX_ORDER_BYTES = 1 << 18  # picod sends longer orders (argv and env) to an ordinary process instead


class Server:
    """The warm interpreter. `again`, when set, are the arguments with which this program is to be executed again.

    The main thread holds `gate` until the imports are done; the thread that forks waits for it.
    """

    def __init__(self, control: int, executable: str) -> None:
        self.control = _socket.socket(fileno=control)
        self.executable = executable
        self.again: list[str] = []
        self.gate = _thread.allocate_lock()
        self.gate.acquire()
        self.steps = steps.Steps()
        self.fresh = script.Fresh(executable)

    def serve(self) -> object:
        """Fork a child for each descriptor received. Returns in a child only, once its script is the next step."""
        self.gate.acquire()
        if self.again:  # here, as the new program inherits the priority of the thread that calls exec: 0, not 19
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
        """Fork a child whose parent is picod. False in the server; True in the child, once its script is ready."""
        pid = forks.fork()
        if pid is None:
            return self._fork_twice(descriptor)
        if pid:
            os.close(descriptor)
            return False
        return self._await_order(descriptor)

    def _fork_twice(self, descriptor: int) -> bool:
        """Fork through a process that ends at once, where sibling.py cannot. picod, a subreaper, inherits the child."""
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
        # A script that asks for its parent at once must find picod, so wait until the process between has ended.
        while os.getppid() == between:
            time.sleep(0.0002)
        return self._await_order(descriptor)

    def _await_order(self, descriptor: int) -> bool:
        """In the child: wait for the order and set up what it asks for. Returns True; exits when picod sends none."""
        try:
            self._receive_order(descriptor)
        except OSError:  # picod ended or closed the socket, and no user code has run
            os._exit(0)
        return True

    def _receive_order(self, descriptor: int) -> None:
        self.control.close()
        os.setsid()
        _reseed()
        self.fresh.rehearse()
        connection = _socket.socket(fileno=descriptor)
        connection.send(b"w")
        data, descriptors = _receive(connection, 3)
        if not data or len(descriptors) != 3:
            os._exit(0)  # picod closed the socket: this child is not needed
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
    """Import the modules named on the command line, then open the gate for the thread that forks."""
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
        looked_at = preload_imports.import_all(modules, away_from_home=attempt == "1")
    except preload_imports.NotPossibleError as error:
        server.control.send(str(error).encode("utf-8", "replace")[:4000])
        os._exit(0)
    if (
        attempt == "1" and "HOME" in looked_at
    ):  # the modules may hold the stand-in's path, so import again with the real one
        os.set_inheritable(server.control.fileno(), True)
        server.again = [sys.orig_argv[0], sys.argv[0], control, executable, "2", *modules]
        server.gate.release()
        forever.acquire()
    server.fresh.remember(_plain_modules)
    madvise = native.native("madvise")
    pages.join(lambda start, size, advice: madvise(native.Long(start), native.Long(size), advice))
    gc.collect()
    gc.freeze()  # a collection writes to the header of each object it visits, which would copy the shared pages
    server.control.send("\n".join(["ready", *sorted(looked_at)]).encode("utf-8", "surrogateescape"))
    server.gate.release()
    forever.acquire()


def _receive(connection: _socket.socket, most: int) -> tuple[bytes, list[int]]:
    """Receive one message and at most `most` descriptors that came with it. Raises OSError."""
    data, ancillary, _, _ = connection.recvmsg(_MAX_ORDER_BYTES, _socket.CMSG_SPACE(4 * most), _socket.MSG_CMSG_CLOEXEC)
    descriptors = []
    for level, kind, raw in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            descriptors += [int.from_bytes(raw[i : i + 4], sys.byteorder) for i in range(0, len(raw) - 3, 4)]
    return data, descriptors


def _reseed() -> None:
    """Replace values that libraries draw once per process and that two forks must not share.

    Seeds, authentication keys, start times. `random` does so by itself after a fork.
    """
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
