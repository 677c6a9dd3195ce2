"""Functions of the C library and of the interpreter, called through `_ctypes`, the C part of ctypes.

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
    """A C long. As it derives from ctypes' simple type directly, a result of this type arrives as an int."""

    _type_ = "l"


class _Native(_ctypes.CFuncPtr):
    """A C function, called with the interpreter's lock held. An int among its arguments is a C int."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = Long


_library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]


def native(name: str) -> Any:
    """Look a C function up by name in the process. Raises OSError when there is none."""
    return _Native(_ctypes.dlsym(_library, name))
