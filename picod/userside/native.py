"""Functions of the C library and of the interpreter, called through ctypes' C part alone.

The module `ctypes` itself is not used: a script that imports it must find that it does so itself, and its import reads
variables and starts programs. `_ctypes` has all that is needed for functions whose arguments are numbers and bytes.
"""

from __future__ import annotations

import _ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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
