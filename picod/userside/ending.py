"""The end of a script: what CPython's own main does after the last line, without taking the interpreter apart.

Py_FinalizeEx clears every module, the preloaded ones too, which first copies all the pages that were shared with the
server: with pandas 35 ms, where the script itself takes 5. When finalisation would have no visible effect (`is_clean`)
a child waits for threads, calls atexit's functions, flushes and exits; otherwise it is finalised in full. Rejected: a
list of harmless modules, as it would have to be right for users' modules that are not known here.

The order is that of Py_RunMain and Py_FinalizeEx in CPython 3.11 (Modules/main.c, Python/pylifecycle.c,
Python/pythonrun.c), which the corpus of tests compares with.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part alone: `signal` would import enum
import atexit
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from picod.userside.baseline import Baseline
    from picod.userside.native import native
    from picod.userside.steps import DONE, Caught, Steps
else:
    from native import native
    from steps import DONE, Caught

_FUNCTION: Any = type(lambda: None)
_WEAK = sys.modules["_weakref"].ref
_WEAK_SETS = ("_weakrefset", "weakref")  # their callbacks only remove an entry: no visible effect
_WRITES_AT_ITS_END = ("_dbm", "_gdbm")  # standard extension modules whose objects write files when they are freed


class Ending:
    """What the thread does after the script's last line: each part is a step (steps.py), and may append the next."""

    def __init__(self, baseline: Baseline, run: Caught) -> None:
        self.file_names: dict[str, Any] | None = None  # __main__'s, of a script that is a file
        self._baseline = baseline
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
        self.file_names = None  # this reference would keep __main__'s variables alive beyond the module
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
        """Print what ended the wait for threads early (an interrupt), as Py_FinalizeEx does."""
        error = self._join.error()
        if error is not None:
            sys.stderr.write(f"Exception ignored in: {sys.modules['threading']!r}\n")
            sys.__excepthook__(type(error), error, error.__traceback__)
        return DONE

    def _end(self, steps: Steps) -> object:
        """End the process: at once if that has the same visible effect as finalising it, else through Py_Exit."""
        try:
            clean = is_clean(self._baseline)
            if clean or self._interrupted:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None and not stream.closed:
                        stream.flush()
                native("fflush")(None)
        except BaseException:
            clean = False
        if self._interrupted:
            # As python3 does: a parent shell sees that SIGINT ended the script, and ends its own loop.
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
            os.kill(os.getpid(), _signal.SIGINT)
        if clean:
            os._exit(self._code)
        self._baseline.streams = ()  # finalisation flushes a stream when its last reference goes
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


def is_clean(baseline: Baseline) -> bool:
    """Whether finalising the interpreter would have no effect that the script or its caller can see.

    That is: no object of the script's has a finaliser (files, generators, sockets, __del__), no weak reference a
    callback in Python, no class a __del__ (an instance without fields is unknown to the collector), and no extension
    module came with the script that might write when its objects go.
    """
    if (sys.stdin, sys.stdout, sys.stderr) != baseline.streams or gc.callbacks or gc.get_debug():
        return False
    if any(_is_foreign_extension(sys.modules[name]) for name in baseline.new_modules()):
        return False
    objects = gc.get_objects()  # leaves out frozen objects (forkserver.py), so all of these are the script's
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
