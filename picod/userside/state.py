"""What a context knows, written into two files and read back: variables, folder, environment, import path.

Runs inside the kernel, as user code, asked by picod (picod/interpreter/suspend.py): a pickle is a program, so picod
itself never opens one. Known in the kernel as the module `_wakegate_state`, because functions in a pickle are made anew
by it.

Variables that do not pickle are left out and named with the reason. Functions and classes that the code defined go by
value, with cloudpickle where the environment has it; without it they are among those left out.
"""

from __future__ import annotations

import importlib
import io
import json
import linecache
import marshal
import os
import pickle
import re
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

_FIRST_ENVIRONMENT = dict(os.environ)
_FIRST_PATH = list(sys.path)
_FIRST_FOLDER = os.getcwd()
_HISTORY = re.compile(r"_+|_i+|_i?\d+|_exit_code|_dh|_ih|_oh|In|Out|__\w+__")
_MAX_REASON = 200
_MAX_SOURCES = 4 << 20  # characters of source text kept for tracebacks and inspect


class LimitError(Exception):
    """Too large, or too slow."""


class _Bounded(io.RawIOBase):
    """Takes so many bytes until the deadline, and hands them on to `write_to` unless that is None."""

    def __init__(self, most: int, deadline: float, write_to: Any = None) -> None:
        self.size = 0
        self._most = most
        self._deadline = deadline
        self._write_to = write_to

    def write(self, data: Any) -> int:
        """Raises LimitError."""
        size = memoryview(data).nbytes
        self.size += size
        if self.size > self._most:
            raise LimitError(f"larger than the {self._most >> 20} MiB that a context may keep")
        if time.monotonic() > self._deadline:
            raise LimitError("there was no time left to save it")
        if self._write_to is not None:
            self._write_to.write(data)
        return size


def save(base: str, report_to: str, max_bytes: int, seconds: float) -> None:
    """Write BASE.pickle and BASE.json, each at once or not at all, and the report.

    The report is {"saved": n, "unsaved": [{"name", "reason"}]}.
    """
    started = time.monotonic()
    shell = _shell()
    modules, values = _candidates(shell)
    make = _pickler(shell.user_ns)
    unsaved: dict[str, str] = {}
    chosen = values
    temporary = f"{base}.pickle.new"
    try:
        _dump(make, chosen, temporary, max_bytes, started + seconds / 2)
    except Exception:
        chosen = _picklable(make, values, max_bytes, started + seconds * 0.75, unsaved)
        try:
            _dump(make, chosen, temporary, max_bytes, started + seconds)
        except Exception as error:  # each for itself went, all together do not
            unsaved |= dict.fromkeys(chosen, _reason(error))
            chosen = {}
            _dump(make, chosen, temporary, max_bytes, started + 2 * seconds)
    document = {
        "python": list(sys.version_info[:2]),
        "modules": modules,
        "names": sorted(chosen),
        "unsaved": [{"name": name, "reason": reason} for name, reason in unsaved.items()],
        "cwd": _cwd(),
        "environment": _environment_changes(),
        "path": [entry for entry in sys.path if entry not in _FIRST_PATH],
        "execution_count": shell.execution_count,
        "sources": _sources(chosen),
    }
    with open(f"{base}.json.new", "w") as file:
        json.dump(document, file)
    os.replace(temporary, f"{base}.pickle")
    os.replace(f"{base}.json.new", f"{base}.json")
    _report(report_to, {"saved": len(chosen) + len(modules), "unsaved": document["unsaved"]})


def load(base: str, report_to: str) -> None:
    """Take up what `save` wrote. The report is {"restored": n, "unsaved": [...]}; the latter also names what failed."""
    shell = _shell()
    with open(f"{base}.json") as file:
        document = json.load(file)
    failed: dict[str, str] = {entry["name"]: entry["reason"] for entry in document["unsaved"]}
    _restore_surroundings(document, failed)
    restored = 0
    for name, module in document["modules"].items():
        try:
            shell.user_ns[name] = importlib.import_module(module)
            restored += 1
        except Exception as error:
            failed[name] = _reason(error)
    values: Mapping[str, Any] = {}
    if document["python"] != list(sys.version_info[:2]):
        failed |= dict.fromkeys(document["names"], "it was saved by another version of Python")
    else:
        try:
            with open(f"{base}.pickle", "rb") as pickled:
                values = _Unpickler(pickled).load()
        except Exception as error:
            failed |= dict.fromkeys(document["names"], _reason(error))
    for name, value in values.items():
        if isinstance(value, Lost):
            failed[name] = value.reason
        else:
            shell.user_ns[name] = value
            restored += 1
    shell.execution_count = document["execution_count"]
    unsaved = [{"name": name, "reason": reason} for name, reason in failed.items()]
    _report(report_to, {"restored": restored, "unsaved": unsaved})


def _restore_surroundings(document: Mapping[str, Any], failed: dict[str, str]) -> None:
    for name, value in document["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.path += [entry for entry in document["path"] if entry not in sys.path]
    try:
        os.chdir(os.path.join(_FIRST_FOLDER, document["cwd"]))
    except OSError as error:
        failed["(working directory)"] = _reason(error)
    for name, text in document["sources"].items():
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)


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


Make = Callable[[Any], pickle.Pickler]


def _pickler(user_ns: dict[str, Any]) -> Make:
    try:
        import cloudpickle
    except ImportError:
        return lambda file: _plain_pickler(file, user_ns)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            # cloudpickle would give functions globals of their own; these must see the variables as they change.
            if isinstance(obj, types.FunctionType) and obj.__globals__ is user_ns:
                return _reduce_function(obj)
            return super().reducer_override(obj)

    return lambda file: Pickler(file, protocol=5)


def _plain_pickler(file: Any, user_ns: dict[str, Any]) -> pickle.Pickler:
    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            # By name it would pickle, and not load.
            if getattr(obj, "__module__", "") == "__main__" and isinstance(obj, type):
                raise pickle.PicklingError("classes need cloudpickle in this Python environment")
            if isinstance(obj, types.FunctionType) and obj.__globals__ is user_ns:
                raise pickle.PicklingError("functions need cloudpickle in this Python environment")
            return NotImplemented

    return Pickler(file, protocol=5)


def _reduce_function(function: types.FunctionType) -> tuple[Any, ...]:
    """An empty function first, what it holds afterwards: it may hold itself."""
    cells = function.__closure__ or ()
    state = {
        "closure": [_contents(cell) for cell in cells],
        "attributes": {
            "__defaults__": function.__defaults__,
            "__kwdefaults__": function.__kwdefaults__,
            "__annotations__": function.__annotations__,
            "__dict__": function.__dict__,
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__name__": function.__name__,
            "__qualname__": function.__qualname__,
        },
    }
    return make_function, (marshal.dumps(function.__code__), len(cells)), state, None, None, fill_function


def make_function(code: bytes, cells: int) -> types.FunctionType:
    """A function of the context, still empty."""
    closure = tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(marshal.loads(code), _shell().user_ns, closure=closure or None)  # noqa: S302 - our own


def fill_function(function: types.FunctionType, state: Mapping[str, Any]) -> None:
    """Its defaults, attributes and closure."""
    for cell, content in zip(function.__closure__ or (), state["closure"], strict=True):
        if content:
            cell.cell_contents = content[0]
    for name, value in state["attributes"].items():
        setattr(function, name, value)


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


class Lost:
    """Stands for an object whose class cannot be found any more."""

    reason = "its class cannot be found any more"

    def __new__(cls, *_: Any, **__: Any) -> Lost:
        """Whatever it was made of."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Whatever it was made of."""

    def __setstate__(self, state: Any) -> None:
        """Its contents are gone with its class."""

    def _take(self, *_: Any) -> None:
        """What a list or a dictionary of it would hold."""

    append = extend = __setitem__ = _take

    def __call__(self, *_: Any, **__: Any) -> Lost:
        """As a function that made objects it made such."""
        return type(self)()


class _Unpickler(pickle.Unpickler):  # the user's own pickle, in the user's own process
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            return type(name.rpartition(".")[2], (Lost,), {"reason": _reason(error)})


def _dump(make: Make, values: Mapping[str, Any], path: str, most: int, deadline: float) -> None:
    with open(path, "wb") as file:
        make(_Bounded(most, deadline, file)).dump(dict(values))


def _picklable(
    make: Make, values: Mapping[str, Any], most: int, deadline: float, unsaved: dict[str, str]
) -> dict[str, Any]:
    """Those that pickle, the smallest first as long as there is room; the others go to `unsaved` with the reason."""
    sizes: dict[str, int] = {}
    for name, value in values.items():
        counter = _Bounded(most, deadline)
        try:
            make(counter).dump(value)
            sizes[name] = counter.size
        except Exception as error:
            unsaved[name] = _reason(error)
    room, kept = most, {}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        room -= sizes[name] + 2 * len(name)
        if room < 0:
            unsaved[name] = f"with it the context is larger than the {most >> 20} MiB that it may keep"
        else:
            kept[name] = values[name]
    return {name: value for name, value in values.items() if name in kept}


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."


def _cwd() -> str:
    """Relative where it lies in the workspace, which has another name in another engine."""
    try:
        folder = os.getcwd()
    except OSError:
        return "."  # it was removed under us
    inside = os.path.commonpath((folder, _FIRST_FOLDER)) == _FIRST_FOLDER
    return os.path.relpath(folder, _FIRST_FOLDER) if inside else folder


def _environment_changes() -> dict[str, str | None]:
    changed: dict[str, str | None] = {
        name: value for name, value in os.environ.items() if _FIRST_ENVIRONMENT.get(name) != value
    }
    return changed | {name: None for name in _FIRST_ENVIRONMENT if name not in os.environ}


def _sources(values: Mapping[str, Any]) -> dict[str, str]:
    """The cells in which saved functions and classes were defined, for tracebacks and inspect.getsource."""
    names = set()
    for value in values.values():
        inner = vars(value).values() if isinstance(value, type) else (value,)
        names |= {each.__code__.co_filename for each in inner if isinstance(each, types.FunctionType)}
    kept, room = {}, _MAX_SOURCES
    for name in names:
        entry = linecache.cache.get(name)
        text = "".join(entry[2]) if entry and len(entry) == 4 and entry[1] is None else ""
        room -= len(text)
        if text and room > 0:
            kept[name] = text
    return kept


def _report(path: str, report: Mapping[str, Any]) -> None:
    with open(f"{path}.new", "w") as file:
        json.dump(report, file)
    os.replace(f"{path}.new", path)
