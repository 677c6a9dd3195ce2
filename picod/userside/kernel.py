"""The process of a Python context: IPython's kernel without what picod does not use, on the python3 of user code.

    python3 kernel.py CONNECTION_FILE FOLDER [NICE [MODULES]]

CONNECTION_FILE is Jupyter's (transport ipc), FOLDER takes IPython's own files. With NICE it loads at that priority, and
imports MODULES (a,b.c) afterwards, while it serves already. What code prints goes straight to the
inherited pipes: a full pipe then blocks the code that floods it, where ipykernel's own streams would queue the output
in memory and drop it. Results, errors and the end of each cell go through the kernel's channels.

A line that is READY on standard output says that all sockets listen.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

READY = b"\0wakegate: ready\n"
# Loaded by IPython for completion, debugging and its history, none of which a context offers. They are hidden while
# IPython loads and can be imported by the user's code afterwards.
_HIDDEN = ("debugpy", "jedi", "sqlite3")
_STACK_BYTES = 1 << 20
# Copies of the standard streams get numbers from here on: code that closes 0, 1, 2, ... in a row stops before them.
_LOWEST_SPARE_FD = 64


def main() -> None:
    """Load IPython, bind the sockets, print READY and serve until killed."""
    connection_file, folder, *rest = sys.argv[1:]
    sys.argv = [""]
    sys.path[0] = ""
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    if rest:
        _in_slow_thread(_load, int(rest[0])).join()
    else:
        _load()
    # ZeroMQ and ipykernel start five threads that mostly wait. RLIMIT_AS counts their stacks as used: 40 MB at the
    # default of 8 MB each, 5 MB at this size.
    threading.stack_size(_STACK_BYTES)
    app = _make(connection_file, folder)
    threading.stack_size(0)
    # surroundings.py notes what the environment is like before any code has run.
    _load_beside("pickles")
    _load_beside("surroundings")
    _load_beside("state")
    for name in hidden:
        sys.modules.pop(name, None)
    from tornado.ioloop import IOLoop

    # Written line by line, so that the order is right between prints and the output of child processes.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # ipykernel answers an interrupt of awaiting code with a callback that does not wake the loop. A loop that handles
    # any signal is woken by all; this one is ignored by default.
    IOLoop.current().asyncio_loop.add_signal_handler(signal.SIGWINCH, lambda: None)  # type: ignore[attr-defined]
    os.write(1, READY)
    if len(rest) > 1:
        _in_slow_thread(lambda: _import_all(rest[1].split(",")), int(rest[0]))
    serve = app.start
    while _exits(serve):
        serve = app.io_loop.start


def _exits(serve: Callable[[], None]) -> bool:
    """Serve. True when `sys.exit` in a task that a cell awaits has stopped the loop; the cell gets it as well."""
    try:
        serve()
    except SystemExit:
        return True
    return False


def _load() -> None:
    import ipykernel.kernelapp  # noqa: F401


class _NoThread:
    """Stands for ipykernel's shell channel thread; false where ipykernel asks whether there is one."""

    parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


def _publish_less(app: Any) -> None:
    """Publish neither `busy`, nor the run's own code, nor log lines: picod reads none of them.

    Each message wakes a thread here and the loop there, and these are two of the five messages of a run.
    """
    kernel = app.kernel
    publish_status = kernel._publish_status

    def publish(status: str, *arguments: Any, **options: Any) -> None:
        if status != "busy":
            publish_status(status, *arguments, **options)

    kernel._publish_status = publish
    kernel._publish_execute_input = lambda *_, **__: None
    kernel._execute_sleep = 0
    app.log.setLevel(logging.CRITICAL)


def _compile_once(shell: Any) -> Callable[[], None]:
    """Make IPython rewrite and compile each cell once. Returns a function to be called before each run.

    ipykernel has IPython rewrite a cell, and compile it, to find out whether it awaits something; then IPython does
    both again to run it: an eighth of the time of `1+1`, and with a long cell a compilation.
    """
    transform, is_async = shell.transform_cell, shell.should_run_async
    rewritten: dict[str, str] = {}  # the latest cell, if it was rewritten once
    awaits: dict[str, bool] = {}

    def transform_cell(raw: str) -> str:
        if raw not in rewritten:
            clear()
            rewritten[raw] = transform(raw)
            return rewritten[raw]
        return rewritten.pop(raw)

    def should_run_async(raw: str, *, transformed_cell: Any = None, preprocessing_exc_tuple: Any = None) -> bool:
        if preprocessing_exc_tuple is None and transformed_cell in awaits:
            return awaits.pop(transformed_cell)
        known = bool(is_async(raw, transformed_cell=transformed_cell, preprocessing_exc_tuple=preprocessing_exc_tuple))
        if preprocessing_exc_tuple is None:
            awaits.clear()
            awaits[transformed_cell] = known
        return known

    def clear() -> None:
        rewritten.clear()
        awaits.clear()

    shell.transform_cell, shell.should_run_async = transform_cell, should_run_async
    return clear


def _keep_streams() -> Callable[[], None]:
    """Returns a function, to be called after each run, that reopens standard streams which the code has closed.

    ipykernel flushes them before it replies: with one closed it would not, and the run would last until its timeout.
    """
    spares = {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_SPARE_FD) for fd in (0, 1, 2)}

    def reopen() -> None:
        for fd, spare in spares.items():
            try:
                os.fstat(fd)
            except OSError:
                try:
                    os.dup2(spare, fd)
                except OSError:
                    return  # the code has closed the copies as well
        for name, fd in (("stdout", 1), ("stderr", 2)):
            try:
                getattr(sys, name).flush()
            except Exception:  # sys.stdout may be any object that the code assigned
                new = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
                setattr(sys, name, new)

    return reopen


class _NewPackages:
    """Called before each cell: makes packages that were installed since the last one importable.

    The import system caches which folders of sys.path exist and what they hold; the first `pip install` of a session
    creates the folder of its packages.
    """

    def __init__(self) -> None:
        self._seen = self._changed_at()

    def __call__(self, *_: object) -> None:
        changed_at = self._changed_at()
        if changed_at == self._seen:
            return
        self._seen = changed_at
        importlib.invalidate_caches()
        workspace = sys.modules.get("wakegate_workspace")
        if workspace is not None:
            workspace.read_path_files()

    def _changed_at(self) -> list[int]:
        found = []
        for entry in sys.path:
            try:
                found.append(os.stat(entry).st_mtime_ns if entry.endswith("-packages") else 0)
            except OSError:
                found.append(0)
        return found


def _load_beside(name: str) -> Any:
    """Load a file beside this one as `_wakegate_NAME`: under its own name it might hide a module of the user's."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_wakegate_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _import_all(names: list[str]) -> None:
    for name in names:
        if name.partition(".")[0] == "matplotlib" and not os.path.isdir(os.environ.get("MPLCONFIGDIR", "")):
            continue  # it would write its font list into the workspace, before a session has claimed it
        try:
            importlib.import_module(name)
        except Exception:  # noqa: S112 - the run that imports it gets the error
            continue


def _in_slow_thread(work: Callable[[], None], nice: int) -> threading.Thread:
    """Run `work` in a thread at that niceness. On Linux it is per thread and, without privilege, can only be raised."""

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _make(connection_file: str, folder: str):  # type: ignore[no-untyped-def]
    import zmq
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.kernelapp import IPKernelApp
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.Completer.use_jedi = False
    before = os.environ.get("IPYTHONDIR")
    os.environ["IPYTHONDIR"] = folder  # IPython takes its first folder from here only, not from `config`

    class OneThread(IPythonKernel):  # type: ignore[misc]
        """Reads requests in the thread that runs them: one run at a time is all that a context has.

        By default another thread reads them and passes each request and each reply on. Each of these two switches waits
        for a thread to wake and for the interpreter's lock: a fifth of the time of `1+1`.
        """

        _supports_kernel_subshells = False

    class App(IPKernelApp):  # type: ignore[misc]
        kernel_class = OneThread

        def _bind_socket(self, s, port):  # type: ignore[no-untyped-def]
            # Code that shows more than picod can take has to wait: by default the 1,001st result on its way is dropped.
            if s.type in (zmq.PUB, zmq.XPUB):
                s.set(zmq.XPUB_NODROP, 1)
            return super()._bind_socket(s, port)

        def init_control(self, context):  # type: ignore[no-untyped-def]
            super().init_control(context)
            self.shell_channel_thread = _NoThread()

    app = App.instance(connection_file=connection_file, outstream_class=None, config=config, log_level=50)
    app.initialize([])
    del os.environ["IPYTHONDIR"]
    if before is not None:
        os.environ["IPYTHONDIR"] = before
    app.shell.events.register("pre_run_cell", _NewPackages())
    app.shell.events.register("post_execute", _keep_streams())
    _load_beside("cells").install(app, before_each=_compile_once(app.shell))
    _publish_less(app)
    _load_beside("interrupts").Interrupts().install(app.kernel)
    return app


if __name__ == "__main__":
    main()
