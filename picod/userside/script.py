"""Turns a forked child into `python3 SCRIPT`, as CPython's own main would. Loaded by forkserver.py, as user code.

    forkserver.py  `Fresh.remember`  in the server, when its imports are done
                   `Fresh.rehearse`  in the child, while it waits
                   `Fresh.take`      in the child, when its order came: sets up sys and __main__, and appends the script
                                     to the steps (steps.py) that the thread runs next
    ending.py      is the step after it

Anything but an ordinary script (a folder, a zip, a syntax error, a file beside the script that hides a preloaded
module) is left to a fresh python3, by exec in the same process. So is every case that is uncertain: a fresh start costs
its time once, a difference from it costs its user a day of debugging.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part alone: `signal` would import enum
import builtins
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from picod.userside.baseline import Baseline
    from picod.userside.ending import Ending, is_clean
    from picod.userside.native import native
    from picod.userside.process_map import ProcessMap
    from picod.userside.steps import Caught, Steps

    Variables = Sequence[tuple[bytes, bytes]]
else:
    from baseline import Baseline
    from ending import Ending, is_clean
    from native import native
    from process_map import ProcessMap
    from steps import Caught

_FUNCTION: Any = type(lambda: None)  # types.FunctionType, without importing types


class Fresh:
    """Gives a child the state that a fresh interpreter of `executable` has. Made by the server, used by each child."""

    def __init__(self, executable: str) -> None:
        self.executable = executable
        self.environment = dict(os.environb)
        self.baseline = Baseline()
        self._ahead: set[str] = (
            set()
        )  # preloaded modules; a file of that name beside the script comes first in sys.path
        self._folders: list[tuple[str, int | None]] = []
        self._process = ProcessMap()
        self._own_module = sys.modules["__main__"]  # the child's replaces it in sys.modules
        self._run = Caught()
        self._ending = Ending(self.baseline, self._run)

    def remember(self, plain: set[str]) -> None:
        """Record what the imports loaded. `plain` are the modules that every fresh interpreter has at its start."""
        self.baseline.remember()
        self._ahead = {name.partition(".")[0] for name in self.baseline.modules} - plain
        self._folders = [(folder, _changed_at(folder)) for folder in _package_folders()]

    def is_stale(self) -> bool:
        """Whether a package or a .pth file was added or removed since the imports (mtime of the package folders)."""
        return any(_changed_at(folder) != then for folder, then in self._folders)

    def rehearse(self) -> None:
        """Do what each script's start and end do: the pages that this writes to are copied before the order comes."""
        try:
            path = os.path.realpath(__file__)
            _plain_source(path)
            del sys.path_importer_cache[path]
            _compiled("import sys\n", "<string>")
            self._ahead.isdisjoint(entry.partition(".")[0] for entry in os.listdir("/"))
            self.is_stale()
            is_clean(self.baseline)
        except Exception:  # noqa: S110 - only the side effect on memory is wanted
            pass

    def take(self, argv: Sequence[bytes], environment: Variables, steps: Steps) -> bool:
        """Set this process up for `argv` and make the script the next step. False: only a fresh one can run it."""
        self._set_environment(dict(environment))
        try:
            function = self._prepare([os.fsdecode(argument) for argument in argv])
        except Exception:
            return False
        if function is None:
            return False
        # No exec after this point: __main__ and sys are the script's now.
        self._process.rename(argv, environment)
        steps.append(self._run.step(function))
        steps.call(lambda: self._ending.after_script(steps))
        # TextIOWrapper.close, which calls the script (steps.py), counts as one level of recursion, so a script would
        # have one level less than in a fresh interpreter. This takes that level away again.
        native("Py_LeaveRecursiveCall")()
        return True

    def be_real(self, argv: Sequence[bytes], environment: Variables) -> NoReturn:
        """Replace this process by a fresh interpreter that runs `argv`; exits with 127 when that is impossible."""
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them, and exec keeps ignored signals ignored
            _signal.signal(number, _signal.SIG_DFL)
        try:
            os.execve(self.executable, list(argv), dict(environment))
        except OSError as error:
            os.write(2, f"{self.executable}: {error.strerror}\n".encode())
            os._exit(127)

    def _set_environment(self, new: Mapping[bytes, bytes]) -> None:
        # Compared as lists, because the order counts: a script that prints its environment shows it.
        if list(new.items()) == list(self.environment.items()):
            return
        os.environb.clear()
        os.environb.update(new)
        if new.get(b"TZ") != self.environment.get(b"TZ"):
            time.tzset()

    def _prepare(self, arguments: list[str]) -> Callable[[], object] | None:
        """Set sys and __main__ up as the interpreter's main does. Returns what runs the script."""
        cwd = os.getcwd()
        # multiprocessing keeps the folder in which it was imported, here the server's; its children would start there.
        process = sys.modules.get("multiprocessing.process")
        if process is not None:
            process.ORIGINAL_DIR = cwd  # type: ignore[attr-defined]
        # The names that pymain_run_python (Modules/main.c) gives __main__.
        main = type(sys)("__main__")
        names = main.__dict__
        names["__annotations__"] = {}
        names["__builtins__"] = builtins
        names["__loader__"] = sys.modules["_frozen_importlib"].BuiltinImporter
        function: Callable[[], object]
        if arguments[1] == "-c":
            code = _compiled(arguments[2] + "\n", "<string>")
            folder, rest, function = "", ["-c", *arguments[3:]], _FUNCTION(code, names)
        elif arguments[1] == "-m":
            # CPython runs `-m` through this function as well, so a traceback shows the same two frames of runpy.
            runpy, functools = __import__("runpy"), __import__("functools")
            folder, rest = cwd, ["-m", *arguments[3:]]
            function = functools.partial(runpy._run_module_as_main, arguments[2])
        else:
            path = os.path.join(cwd, arguments[1])
            source = _plain_source(path)
            if source is None:
                return None
            names["__file__"], names["__cached__"] = path, None
            names["__loader__"] = sys.modules["_frozen_importlib_external"].SourceFileLoader("__main__", path)
            folder, rest = os.path.dirname(os.path.realpath(path)), arguments[1:]
            function = _FUNCTION(_compiled(source, path), names)
            self._ending.file_names = names
        if not self._ahead.isdisjoint(entry.partition(".")[0] for entry in os.listdir(folder or ".")):
            return None  # with a random.py beside the script, `import random` must find that one, not the preloaded
        sys.modules["__main__"] = main
        # In place: preloaded modules may have done `from sys import argv`.
        sys.argv[:] = rest
        sys.orig_argv[:] = arguments
        sys.path.insert(0, folder)
        return function


def _plain_source(path: str) -> bytes | None:
    """The source of a script, or None when it is not a plain file of Python source. Raises OSError."""
    # Checked before it is opened: opening and closing a FIFO would give its writer SIGPIPE.
    if path.endswith((".pyc", ".pyo")) or os.stat(path).st_mode & 0o170000 != 0o100000:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        source = b"".join(iter(lambda: os.read(descriptor, 1 << 20), b""))
    finally:
        os.close(descriptor)
    for hook in sys.path_hooks:  # python3 can run a zip or a folder as well: then a hook accepts the path
        try:
            hook(path)
        except ImportError:
            continue
        return None
    sys.path_importer_cache[path] = None
    return source


def _compiled(source: str | bytes, path: str) -> object:
    """Compile a script. When compile raises, warnings are dropped: the fresh interpreter that runs then prints them."""
    try:
        shown = os.memfd_create("warnings")
    except OSError:  # refused where memory that belongs to no process cannot be limited
        shown = os.open("/tmp", os.O_RDWR | os.O_TMPFILE, 0o600)  # noqa: S108 - a file without a name
    out = os.dup(2)
    os.dup2(shown, 2)
    try:
        code = compile(source, path, "exec", dont_inherit=True)
        sys.stderr.flush()
    finally:
        os.dup2(out, 2)
        size = os.fstat(shown).st_size
        text = os.pread(shown, size, 0)
        os.close(shown)
        os.close(out)
    if text:
        os.write(2, text)
    return code


def _package_folders() -> list[str]:
    """Folders in which an interpreter looks for .pth files: site-packages, and the user's, which may not exist yet."""
    site = sys.modules.get("site")
    own = getattr(site, "USER_SITE", None) if getattr(site, "ENABLE_USER_SITE", None) else None
    found = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    return list(dict.fromkeys([*found, *([own] if own else ())]))


def _changed_at(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None
