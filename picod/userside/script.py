"""A forked child becomes `python3 SCRIPT`, and ends as it would. Loaded by forkserver.py, in the python3 of user code.

**No frame below the script.** Tracebacks, sys._getframe and the recursion limit must not see these files. So all of a
child's life is `list(chain.from_iterable(steps))` as the first call of a thread: C code that calls one step after the
other. And the C code of `TextIOWrapper.close` serves as a try/except without a frame: it calls `flush` (the script),
keeps what that raises, calls `buffer.close` (which raises StopIteration: this step is over) and links the former to
the latter as its __context__.

**The end.** Py_FinalizeEx takes every preloaded module apart, which first copies all the pages that were shared: with
pandas 35 ms of work. When nothing is left that could notice (`_is_clean`), a child ends after threads, atexit and
flushes; else it is finalised in full.

What is no ordinary script (a folder, a zip, a syntax error) is left to a fresh python3, by exec in the same process.
"""

from __future__ import annotations

import _ctypes
import _signal  # type: ignore[import-not-found]  # the C part alone: `signal` would import enum
import atexit
import builtins
import gc
import io
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, NoReturn

    Variables = Sequence[tuple[bytes, bytes]]

DONE = object()
"""What a step returns when it is over."""

_PR_SET_MM, _PR_SET_MM_MAP, _NO_FD = 35, 14, 0xFFFFFFFF
_FUNCTION: Any = type(lambda: None)
_WEAK = sys.modules["_weakref"].ref
_WEAK_SETS = ("_weakrefset", "weakref")  # the callbacks of their references only forget
_WRITES_AT_ITS_END = ("_dbm", "_gdbm")  # standard extension modules


class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C's long; ctypes hands results of this very type on as int."""

    _type_ = "l"


class _Native(_ctypes.CFuncPtr):
    """A C function, called with the interpreter's lock held. An int among its arguments is a C int."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = Long


_library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]


def native(name: str) -> Any:
    """A function of the C library or of the interpreter."""
    return _Native(_ctypes.dlsym(_library, name))


class Steps(list["Iterator[object]"]):
    """Iterators that are run to their end, one after the other; each may append more."""

    def call(self, step: Callable[[], object]) -> None:
        """Append one that is done when it returns DONE."""
        self.append(iter(step, DONE))


class _Over(StopIteration):
    """A step is over; __context__ is what it raised."""


class _Buffer:
    """What a TextIOWrapper wraps here."""

    closed = False

    def __init__(self) -> None:
        self.over = _Over()

    def readable(self) -> bool:
        """Nothing is ever read or written."""
        return False

    writable = seekable = readable

    def close(self) -> NoReturn:
        """End the step."""
        raise self.over


class Caught:
    """A call without a frame below it. `step` runs it, `error` tells what it raised."""

    def __init__(self) -> None:
        self._buffer = _Buffer()
        self._wrapper = io.TextIOWrapper(self._buffer, encoding="utf-8")  # type: ignore[type-var]

    def step(self, function: Callable[[], object]) -> Iterator[object]:
        """The step that calls it."""
        self._wrapper.flush = function  # type: ignore[method-assign, assignment]
        return iter(self._wrapper.close, DONE)

    def error(self) -> BaseException | None:
        """What it raised, after the step. To be asked once."""
        over = self._buffer.over
        error, over.__context__, over.__traceback__ = over.__context__, None, None
        self._wrapper.flush = None  # type: ignore[method-assign, assignment]
        self._buffer.closed = True  # or the wrapper's finaliser would close, and so call, once more
        return error


class Fresh:
    """What a fresh interpreter of `executable` would be like; made by the server, used by each child."""

    def __init__(self, executable: str) -> None:
        self.executable = executable
        self.environment = dict(os.environb)
        self.streams: tuple[object, ...] = (sys.stdin, sys.stdout, sys.stderr)
        self._known: frozenset[str] = frozenset()  # modules that were there before the script
        self._last_known = ("", "")
        self._count_known = 0
        self._ahead: set[str] = set()  # modules that a file beside the script would come before
        self._folders: list[tuple[str, int | None]] = []
        self._process = _ProcessMap()
        self._own_module = sys.modules["__main__"]  # the child's replaces it in sys.modules
        self._run = Caught()
        self._ending = Ending(self, self._run)

    def remember(self, plain: set[str]) -> None:
        """The imports are done; `plain` are the modules that any fresh interpreter has from its start."""
        self._known = frozenset(sys.modules)
        latest = reversed(sys.modules)
        self._last_known, self._count_known = (next(latest), next(latest)), len(sys.modules)
        self._ahead = {name.partition(".")[0] for name in self._known} - plain
        self._folders = [(folder, _changed_at(folder)) for folder in _package_folders()]

    def new_modules(self) -> Iterable[str]:
        """Names of the modules that came with the script."""
        # They are the last. To walk through all of them would write to, and so copy, the pages of 800 names: 1.3 ms.
        names = []
        latest = reversed(sys.modules)
        for name in latest:
            if name == self._last_known[0]:
                break
            names.append(name)
        if next(latest, "") == self._last_known[1] and len(sys.modules) == self._count_known + len(names):
            return names
        return set(sys.modules) - self._known  # some were taken out, or put back

    def is_stale(self) -> bool:
        """A package came or went since the imports, or a .pth file."""
        return any(_changed_at(folder) != then for folder, then in self._folders)

    def rehearse(self) -> None:
        """Write to the pages that each script's start and end write to: they are copied while there is time."""
        try:
            path = os.path.realpath(__file__)
            _plain_source(path)
            del sys.path_importer_cache[path]
            _compiled("import sys\n", "<string>")
            self._ahead.isdisjoint(entry.partition(".")[0] for entry in os.listdir("/"))
            self.is_stale()
            _is_clean(self)
        except Exception:  # noqa: S110 - nothing was to come of it
            pass

    def take(self, argv: Sequence[bytes], environment: Variables, steps: Steps) -> bool:
        """Become what `argv` says and make the script the next step. False: only a real fresh one can do it."""
        self._set_environment(dict(environment))
        try:
            function = self._prepare([os.fsdecode(argument) for argument in argv])
        except Exception:
            return False
        if function is None:
            return False
        self._process.rename(argv, environment)
        steps.append(self._run.step(function))
        steps.call(lambda: self._ending.after_script(steps))
        native("Py_LeaveRecursiveCall")()  # TextIOWrapper.close counts as one level; the script's is to be the first
        return True

    def be_real(self, argv: Sequence[bytes], environment: Variables) -> NoReturn:
        """Let the real interpreter do it, in this process."""
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them, and exec would hand that on
            _signal.signal(number, _signal.SIG_DFL)
        try:
            os.execve(self.executable, list(argv), dict(environment))
        except OSError as error:
            os.write(2, f"{self.executable}: {error.strerror}\n".encode())
            os._exit(127)

    def _set_environment(self, new: Mapping[bytes, bytes]) -> None:
        if list(new.items()) == list(self.environment.items()):
            return
        os.environb.clear()
        os.environb.update(new)
        if new.get(b"TZ") != self.environment.get(b"TZ"):
            time.tzset()

    def _prepare(self, arguments: list[str]) -> Callable[[], object] | None:
        """Set sys and __main__ up as the interpreter's main does. Returns what runs the script."""
        cwd = os.getcwd()
        process = sys.modules.get("multiprocessing.process")
        if process is not None:
            process.ORIGINAL_DIR = cwd  # type: ignore[attr-defined]
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
            return None  # `import random` with a random.py beside the script must find that
        sys.modules["__main__"] = main
        sys.argv[:] = rest
        sys.orig_argv[:] = arguments
        sys.path.insert(0, folder)
        return function


def _plain_source(path: str) -> bytes | None:
    """The bytes of a script, or None when it is something else than a plain file of Python source. Raises OSError."""
    # Asked before it is opened: opening a pipe and leaving again would end its writer.
    if path.endswith((".pyc", ".pyo")) or os.stat(path).st_mode & 0o170000 != 0o100000:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        source = b"".join(iter(lambda: os.read(descriptor, 1 << 20), b""))
    finally:
        os.close(descriptor)
    for hook in sys.path_hooks:  # a zip can be run too
        try:
            hook(path)
        except ImportError:
            continue
        return None
    sys.path_importer_cache[path] = None
    return source


def _compiled(source: str | bytes, path: str) -> object:
    """Compile. Raises what compile does, and then has shown no warning: the fresh interpreter will show it."""
    out, shown = os.dup(2), os.memfd_create("warnings")
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
    """Where a fresh interpreter looks for .pth files: site-packages, and the user's own even if it is not there yet."""
    site = sys.modules.get("site")
    own = getattr(site, "USER_SITE", None) if getattr(site, "ENABLE_USER_SITE", None) else None
    found = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    return list(dict.fromkeys([*found, *([own] if own else ())]))


def _changed_at(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


class _ProcessMap:
    """/proc/PID/cmdline and environ, which `pkill -f`, ps and psutil read, can tell of the script.

    prctl(PR_SET_MM_MAP) needs no privilege as long as it leaves the executable alone. Where the kernel lacks it
    (CONFIG_CHECKPOINT_RESTORE), the server's own stay.
    """

    def __init__(self) -> None:
        self._leaked: list[bytes] = []
        self._sbrk, self._prctl = native("sbrk"), native("prctl")
        try:
            with io.FileIO("/proc/self/stat") as file:
                fields = file.read(4096).rpartition(b")")[2].split()
            # start_code, end_code, start_data, end_data, start_brk, start_stack in proc(5); fields[0] is its field 3.
            self._fields = [int(fields[number - 3]) for number in (26, 27, 45, 46, 47, 28)]
        except (OSError, ValueError, IndexError):
            self._fields = []

    def rename(self, argv: Sequence[bytes], environment: Variables) -> None:
        """Show these."""
        if not self._fields:
            return
        shown = (b"".join(word + b"\0" for word in argv), b"".join(k + b"=" + v + b"\0" for k, v in environment))
        self._leaked += shown  # the kernel reads them as long as the process lives
        head = bytes.__basicsize__ - 1  # of the object, before its bytes
        ends = [value for text in shown for value in (id(text) + head, id(text) + head + len(text))]
        for _ in range(3):  # the heap's end is part of the map: it must not have moved meanwhile
            end = self._sbrk(0)
            fields = [*self._fields[:5], end, self._fields[5], *ends, 0]
            packed = b"".join(field.to_bytes(8, sys.byteorder) for field in fields)
            packed += (0).to_bytes(4, sys.byteorder) + _NO_FD.to_bytes(4, sys.byteorder)
            self._prctl(_PR_SET_MM, Long(_PR_SET_MM_MAP), packed, Long(len(packed)), Long(0))
            if self._sbrk(0) == end:
                return


class Ending:
    """From the script's last line to the end of the process."""

    def __init__(self, fresh: Fresh, run: Caught) -> None:
        self.file_names: dict[str, Any] | None = None  # __main__'s, of a script that is a file
        self._fresh = fresh
        self._run = run
        self._join = Caught()
        self._code = 0
        self._interrupted = False

    def after_script(self, steps: Steps) -> object:
        """What PyErr_Print does with what was raised; threads, atexit and the end are the next steps."""
        error = self._run.error()
        if error is not None:
            self._code = self._print(error)
            self._interrupted = type(error) is KeyboardInterrupt
        if self.file_names is not None and not isinstance(error, SystemExit):
            for name in ("__file__", "__cached__"):
                self.file_names.pop(name, None)
        self.file_names = None  # or __main__ would outlive its module at the end
        del error
        threading = sys.modules.get("threading")
        if threading is not None:
            steps.append(self._join.step(threading._shutdown))
            steps.call(self._after_threads)
        steps.append(iter(atexit._run_exitfuncs, None))
        steps.call(lambda: self._end(steps))
        return DONE

    def _print(self, error: BaseException) -> int:
        """Print what a fresh interpreter prints of an exception that left the script; its exit code."""
        if isinstance(error, SystemExit):
            return _exit_code(error)
        if self.file_names is not None:
            for stream in (sys.stderr, sys.stdout):
                _flush_quietly(stream)
        kind, trace = type(error), error.__traceback__
        sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace
        hook = getattr(sys, "excepthook", None)
        sys.audit("sys.excepthook", hook, kind, error, trace)
        try:
            if hook is None:
                sys.stderr.write("sys.excepthook is missing\n")
                hook = sys.__excepthook__
            hook(kind, error, trace)
        except SystemExit as second:
            return _exit_code(second)
        except BaseException as second:
            second.__context__ = None
            sys.stderr.write("Error in sys.excepthook:\n")
            own = second.__traceback__  # begins with this frame
            second = second.with_traceback(own.tb_next if own else None)
            sys.__excepthook__(type(second), second, second.__traceback__)
            sys.stderr.write("\nOriginal exception was:\n")
            sys.__excepthook__(kind, error, trace)
        return 1

    def _after_threads(self) -> object:
        """Say what kept us from waiting for threads (an interrupt), as Py_FinalizeEx does."""
        error = self._join.error()
        if error is not None:
            sys.stderr.write(f"Exception ignored in: {sys.modules['threading']!r}\n")
            sys.__excepthook__(type(error), error, error.__traceback__)
        return DONE

    def _end(self, steps: Steps) -> object:
        """End the process; in full if anybody could tell the difference."""
        try:
            clean = _is_clean(self._fresh)
            if clean or self._interrupted:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None and not stream.closed:
                        stream.flush()
                native("fflush")(None)
        except BaseException:
            clean = False
        if self._interrupted:
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
            os.kill(os.getpid(), _signal.SIGINT)
        if clean:
            os._exit(self._code)
        self._fresh.streams = ()  # to be flushed by being taken apart, they must not be held
        steps.append(map(native("Py_Exit"), [self._code]))  # with no frame below what finalisers see
        return DONE


def _flush_quietly(stream: Any) -> None:
    try:
        stream.flush()
    except Exception:  # noqa: S110 - as C's flush_io
        pass


def _exit_code(error: SystemExit) -> int:
    """What `sys.exit(error.code)` means to the system; a text is printed."""
    code: object = getattr(error, "code", error)
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
    try:
        print(code, file=sys.stderr)  # noqa: T201 - the script's own stream
    except Exception:  # noqa: S110 - as C's _Py_HandleSystemExit
        pass
    return 1


def _is_clean(fresh: Fresh) -> bool:
    """Whether taking the interpreter apart would run nothing that anybody could notice.

    That is: no object of the script's has a finaliser (files, generators, sockets, __del__), no weak reference a
    callback in Python, no class a __del__ (an instance without fields is unknown to the collector), and no extension
    module came with the script that might write when its objects go.
    """
    if (sys.stdin, sys.stdout, sys.stderr) != fresh.streams or gc.callbacks or gc.get_debug():
        return False
    if any(_is_foreign_extension(sys.modules[name]) for name in fresh.new_modules()):
        return False
    objects = gc.get_objects()  # without what was frozen: all of it is the script's
    for kind in set(map(type, objects)):
        if hasattr(kind, "__del__"):
            return False
        if issubclass(kind, type) and any(hasattr(o, "__del__") for o in objects if isinstance(o, type)):
            return False
        if issubclass(kind, _WEAK) and any(_calls(o) for o in objects if isinstance(o, _WEAK)):
            return False
    return True


def _calls(reference: Any) -> bool:
    callback = reference.__callback__
    return isinstance(callback, _FUNCTION) and callback.__module__ not in _WEAK_SETS


def _is_foreign_extension(module: object) -> bool:
    """An extension module that is not of the standard library, or one of it that writes when its objects go."""
    spec: Any = getattr(module, "__spec__", None)
    if type(getattr(spec, "loader", None)).__name__ != "ExtensionFileLoader":
        return False
    return spec.name in _WRITES_AT_ITS_END or "lib-dynload" not in str(spec.origin)
