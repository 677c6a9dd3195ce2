"""Save a Python context into two files and load it: variables (pickles.py), then what surrounds them (surroundings.py).

Runs inside the kernel, as user code, asked by picod (picod/interpreter/suspend.py): a pickle is a program, so picod
itself never opens one. Known in the kernel as the module `_wakegate_state`.

Variables that do not pickle are left out and reported with the reason, also those that leave by SystemExit, as modules
meant as programs do, or that never come to an end. Before the others are loaded, everything that
their pickle may need is restored: environment, working folder, import path, .pth files of packages that the session
installed, and import caches. The caches are stale because the kernel of a warm sandbox starts before it has the
session's files.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import linecache
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picod.userside import pickles, surroundings
else:
    import _wakegate_pickles as pickles
    import _wakegate_surroundings as surroundings

_HISTORY = re.compile(r"_+|_i+|_i?\d+|_exit_code|_dh|_ih|_oh|In|Out|__\w+__")
_MAX_SOURCES_CHARS = 4 << 20  # characters of source text kept for tracebacks and inspect
_replaced: list[dict[str, str | None]] = []  # what runs with variables of their own have replaced


class LimitError(Exception):
    """Saving exceeded the size or the time that a context may use."""


class _Bounded(io.RawIOBase):
    """A file that takes `most` bytes until `deadline` (monotonic seconds) and passes them to `write_to`, if any."""

    def __init__(self, most: int, deadline: float, write_to: Any = None) -> None:
        self.size = 0
        self._most = most
        self._deadline = deadline
        self._write_to = write_to

    def write(self, data: Any) -> int:
        """Count and write `data`. Raises LimitError beyond the size or the deadline."""
        size = memoryview(data).nbytes
        self.size += size
        if self.size > self._most:
            raise LimitError(f"larger than the {self._most >> 20} MiB that a context may keep")
        if time.monotonic() > self._deadline:
            raise LimitError("saving it took too long")
        if self._write_to is not None:
            self._write_to.write(data)
        return size


@contextlib.contextmanager
def _until(deadline: float) -> Iterator[None]:
    """Interrupt what runs in the block at that monotonic second, by a LimitError: also a sleep, or a lock it waits for.

    Not what computes in C without looking at signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's, in which cells run
        return

    def interrupt(*_: object) -> None:
        raise LimitError("saving it took too long")

    before = signal.signal(signal.SIGALRM, interrupt)
    rest, interval = signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)
        if rest:  # the code's own alarm
            signal.setitimer(signal.ITIMER_REAL, rest, interval)


def save(base: str, report_to: str, max_bytes: int, seconds: float) -> None:
    """Write BASE.pickle and BASE.json, each atomically, and the report to the file `report_to`.

    The report is {"saved": n, "unsaved": [{"name", "reason"}]}.
    """
    started = time.monotonic()
    shell = _shell()
    modules, values = _candidates(shell)
    make = pickles.make_pickler(shell.user_ns)
    unsaved: dict[str, str] = {}
    chosen = values
    temporary = f"{base}.pickle.new"
    try:
        _dump(make, chosen, temporary, max_bytes, started + seconds / 2)
    except BaseException:
        # One by one, to find those that do not pickle. Each dump repeats shared objects, so this is slower; it may last
        # until three quarters of the time are over, and the last quarter is for the dump of those that do.
        chosen = _picklable(make, values, max_bytes, started + seconds * 0.75, unsaved)
        try:
            _dump(make, chosen, temporary, max_bytes, started + seconds)
        except BaseException as error:  # each one pickles by itself, all together do not fit
            unsaved |= dict.fromkeys(chosen, pickles.reason_of(error))
            chosen = {}
            _dump(make, chosen, temporary, max_bytes, started + 2 * seconds)
    document = {
        "python": list(sys.version_info[:2]),
        "modules": modules,
        "names": sorted(chosen),
        "unsaved": [{"name": name, "reason": reason} for name, reason in unsaved.items()],
        **surroundings.describe(),
        "execution_count": shell.execution_count,
        "sources": _sources(chosen),
    }
    with open(f"{base}.json.new", "w") as file:
        json.dump(document, file)
    # The .json last: a wake looks for it first, so it must never name a pickle that is not there.
    os.replace(temporary, f"{base}.pickle")
    os.replace(f"{base}.json.new", f"{base}.json")
    _report(report_to, {"saved": len(chosen) + len(modules), "unsaved": document["unsaved"]})


def push_environment(values: dict[str, str]) -> None:
    """Set variables of the environment for one run; `pop_environment` restores what they replaced."""
    _replaced.append({name: os.environ.get(name) for name in values})
    os.environ.update(values)


def pop_environment() -> None:
    """Restore the variables that the last `push_environment` replaced."""
    for name, value in (_replaced.pop() if _replaced else {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def load(base: str, report_to: str, *, is_fresh: bool = False) -> None:
    """Load what `save` wrote. The report is {"restored": n, "unsaved": [...]}; the latter includes what failed to load.

    The report is {"stale": [module, ...]}, and nothing is changed, when this process has loaded modules of which the
    session installed another version: then only a new process (`is_fresh`) can load the state.
    """
    stale = [] if is_fresh else surroundings.replaced_modules()
    if stale:
        _report(report_to, {"restored": 0, "stale": stale})
        return
    shell = _shell()
    with open(f"{base}.json") as file:
        document = json.load(file)
    failed: dict[str, str] = {entry["name"]: entry["reason"] for entry in document["unsaved"]}
    # A module that was imported from the folder in which the kernel began is not in the one that the code went to.
    first_folder = os.getcwd()
    surroundings.restore(document, failed)
    sys.path.append(first_folder)
    try:
        _load_variables(shell, base, document, failed, report_to)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(first_folder)


def _load_variables(shell: Any, base: str, document: Mapping[str, Any], failed: dict[str, str], report_to: str) -> None:
    for name, text in document["sources"].items():
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    restored = 0
    for name, module in document["modules"].items():
        try:
            shell.user_ns[name] = importlib.import_module(module)
            restored += 1
        except BaseException as error:
            failed[name] = pickles.reason_of(error)
    values, inside = _read_values(base, document, failed)
    for name, value in values.items():
        if isinstance(value, pickles.Lost):
            failed[name] = value.reason
            inside.pop(value.what, None)
        else:
            shell.user_ns[name] = value
            restored += 1
    failed |= {f"(objects of {what})": reason for what, reason in inside.items()}
    shell.execution_count = document["execution_count"]
    unsaved = [{"name": name, "reason": reason} for name, reason in failed.items()]
    _report(report_to, {"restored": restored, "unsaved": unsaved})


def _read_values(
    base: str, document: Mapping[str, Any], failed: dict[str, str]
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Returns (name -> value, lost class -> reason). When the pickle is unreadable, all names are added to `failed`."""
    if document["python"] != list(sys.version_info[:2]):
        failed |= dict.fromkeys(document["names"], "it was saved by another version of Python")
        return {}, {}
    try:
        return pickles.read(f"{base}.pickle")
    except BaseException as error:
        failed |= dict.fromkeys(document["names"], pickles.reason_of(error))
        return {}, {}


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()


def _candidates(shell: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Variable -> module name, and variable -> value: what the code defined, without IPython's own."""
    modules, values = {}, {}
    for name, value in list(shell.user_ns.items()):
        if _HISTORY.fullmatch(name) or (name in shell.user_ns_hidden and shell.user_ns_hidden[name] is value):
            continue
        if isinstance(value, types.ModuleType) and sys.modules.get(value.__name__) is value:
            modules[name] = value.__name__
        else:
            values[name] = value
    return modules, values


def _dump(make: pickles.Make, values: Mapping[str, Any], path: str, most: int, deadline: float) -> None:
    with open(path, "wb") as file, _until(deadline):
        make(_Bounded(most, deadline, file)).dump(dict(values))


def _picklable(
    make: pickles.Make, values: Mapping[str, Any], most: int, deadline: float, unsaved: dict[str, str]
) -> dict[str, Any]:
    """The variables that pickle, smallest first up to `most` bytes; the others go to `unsaved` with the reason."""
    sizes: dict[str, int] = {}
    for name, value in values.items():
        counter = _Bounded(most, deadline)
        now = time.monotonic()
        try:
            with _until(now + (deadline - now) / 3):  # one that hangs leaves time for the others
                make(counter).dump(value)
            sizes[name] = counter.size
        except BaseException as error:
            unsaved[name] = pickles.reason_of(error)
    left, kept = most, {}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        left -= sizes[name] + 2 * len(name)
        if left < 0:
            unsaved[name] = f"with it the context is larger than the {most >> 20} MiB that it may keep"
        else:
            kept[name] = values[name]
    return {name: value for name, value in values.items() if name in kept}


def _sources(values: Mapping[str, Any]) -> dict[str, str]:
    """The cells in which saved functions and classes were defined, for tracebacks and inspect.getsource."""
    names = set()
    for value in values.values():
        inner = vars(value).values() if isinstance(value, type) else (value,)
        names |= {each.__code__.co_filename for each in inner if isinstance(each, types.FunctionType)}
    kept, left = {}, _MAX_SOURCES_CHARS
    for name in names:
        entry = linecache.cache.get(name)
        text = "".join(entry[2]) if entry and len(entry) == 4 and entry[1] is None else ""
        left -= len(text)
        if text and left > 0:
            kept[name] = text
    return kept


def _report(path: str, report: Mapping[str, Any]) -> None:
    with open(f"{path}.new", "w") as file:
        json.dump(report, file)
    os.replace(f"{path}.new", path)
