"""How a context's variables are pickled and read back. Loaded by state.py, inside the kernel, as user code.

Known in the kernel as the module `_wakegate_pickles`: pickles name its functions, so they must keep their names.

Functions and classes that the code defined go by value, with cloudpickle where the environment has it. An object that
cannot be restored does not affect the others: a `Lost` takes its place, inside lists and other objects too.
"""

from __future__ import annotations

import marshal
import pickle
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

MAX_REASON_CHARS = 200

Make = Callable[[Any], pickle.Pickler]


def make_pickler(user_ns: dict[str, Any]) -> Make:
    """Returns a factory of picklers for a file. Functions whose globals are `user_ns` keep them as their globals."""
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
            # The plain pickler would write only the name, and loading would fail: no module defines it then.
            if getattr(obj, "__module__", "") == "__main__" and isinstance(obj, type):
                raise pickle.PicklingError("classes need cloudpickle in this Python environment")
            if isinstance(obj, types.FunctionType) and obj.__globals__ is user_ns:
                raise pickle.PicklingError("functions need cloudpickle in this Python environment")
            return NotImplemented

    return Pickler(file, protocol=5)


def _reduce_function(function: types.FunctionType) -> tuple[Any, ...]:
    """Pickle a function in two steps, first empty, then its contents: a recursive function refers to itself."""
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
    """Create a function with its code and empty closure cells. Called by the unpickler."""
    closure = tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(marshal.loads(code), _user_ns(), closure=closure or None)  # noqa: S302 - our own


def fill_function(function: types.FunctionType, state: Mapping[str, Any]) -> None:
    """Set the defaults, attributes and closure of a function that `make_function` created. Called by the unpickler."""
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
    """Stands for an object that could not be restored. `what` names its class, `reason` says why."""

    what = ""
    reason = ""

    def __new__(cls, *_: Any, **__: Any) -> Lost:
        """Accept the arguments of any class."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Accept the arguments of any class."""

    def __setstate__(self, state: Any) -> None:
        """Drop the contents, which only the missing class could interpret."""

    def _ignore(self, *_: Any) -> None:
        """Drop what the pickle adds to a list or a dictionary of the missing class."""

    append = extend = __setitem__ = _ignore

    def __call__(self, *_: Any, **__: Any) -> Lost:
        """Stand for what a missing function would have made, too."""
        return type(self)()


def read(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a pickle of variables. Returns (name -> value, lost class -> reason).

    Raises what pickle does where the file is not a pickle. The C unpickler gives up at the first object that fails to
    come back, and with it all variables would be lost; so then all is read once more by the slower Python one, in
    which each such object becomes a `Lost`.
    """
    lost: dict[str, str] = {}
    for unpickler in (_Unpickler, _LenientUnpickler):
        lost.clear()
        try:
            with open(path, "rb") as file:
                values = unpickler(file, lost).load()
            break
        except BaseException:
            if unpickler is _LenientUnpickler:
                raise
    if not isinstance(values, dict):
        raise pickle.UnpicklingError("it does not hold variables")
    return values, lost


def reason_of(error: BaseException) -> str:
    """The text of an exception, at most MAX_REASON_CHARS; its class name when the text is empty."""
    text = str(error) or type(error).__name__
    return text if len(text) <= MAX_REASON_CHARS else text[: MAX_REASON_CHARS - 3] + "..."


def _lost_class(what: str, error: BaseException, lost: dict[str, str]) -> type[Lost]:
    reason = reason_of(error)
    lost[what] = reason
    return type(what.rpartition(".")[2], (Lost,), {"what": what, "reason": reason})


class _Unpickler(pickle.Unpickler):  # the user's own pickle, in the user's own process
    """The C one, except that a class or function that is not found becomes a `Lost`."""

    def __init__(self, file: Any, lost: dict[str, str]) -> None:
        super().__init__(file)
        self._lost = lost

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except BaseException as error:  # a module may fail in any way while it is imported
            return _lost_class(f"{module}.{name}", error, self._lost)


class _LenientUnpickler(pickle._Unpickler):
    """The Python one, in which an object whose class fails to make or fill it becomes a `Lost`."""

    stack: list[Any]
    memo: dict[int, Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, lost: dict[str, str]) -> None:
        super().__init__(file)
        self._lost = lost

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except BaseException as error:
            return _lost_class(f"{module}.{name}", error, self._lost)

    def attempt(self, load: Callable[[Any], None], takes: int) -> None:
        """Run one instruction that replaces the topmost `takes` values of the stack by an object."""
        stack = self.stack
        base = len(stack) - takes
        maker = stack[base]
        try:
            load(self)
        except BaseException as error:
            made = maker if isinstance(maker, (type, types.FunctionType)) else type(maker)
            kind = _lost_class(f"{made.__module__}.{made.__qualname__}", error, self._lost)
            del stack[base:]
            stack.append(kind())
            # The object was created and could not be filled: later references to it must be to the `Lost` as well.
            for number, value in self.memo.items():
                if value is maker and takes == _OF_BUILD and load is _LOAD_BUILD:
                    self.memo[number] = stack[-1]


_OF_BUILD = 2
_LOAD_BUILD = _LenientUnpickler.dispatch[pickle.BUILD[0]]


def _guard(code: bytes, takes: int) -> None:
    load = _LenientUnpickler.dispatch[code[0]]
    _LenientUnpickler.dispatch[code[0]] = lambda unpickler: unpickler.attempt(load, takes)


for _code, _takes in ((pickle.REDUCE, 2), (pickle.NEWOBJ, 2), (pickle.NEWOBJ_EX, 3), (pickle.BUILD, _OF_BUILD)):
    _guard(_code, _takes)


def _user_ns() -> dict[str, Any]:
    """The variables of the context, in the kernel that unpickles now."""
    from IPython.core.getipython import get_ipython

    names: dict[str, Any] = get_ipython().user_ns
    return names
