"""Compiles functions with numba where it is installed, and keeps the machine code for the next run."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba
except ImportError:
    AVAILABLE = False
else:
    AVAILABLE = True
_HERE = Path(__file__).resolve().parent


def _cache() -> Path | None:
    """A folder for the machine code of these very sources; None where nothing can be written beside them.

    numba's own caching looks at the file of a function alone. A constant or a function of another module that has
    changed would go unnoticed, so the folder is named by the digest of all of them.
    """
    sources = [*_HERE.glob("*.py"), *_HERE.parent.parent.glob("*.py")]
    digest = hashlib.blake2b(b"".join(path.read_bytes() for path in sorted(sources)), digest_size=8).hexdigest()
    caches = _HERE / "__pycache__"
    own = caches / f"numba-{digest}"
    try:
        own.mkdir(parents=True, exist_ok=True)
        if not os.access(own, os.W_OK):
            return None
        for other in caches.glob("numba-*"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return None
    return own


if AVAILABLE:
    _folder = _cache()
    if _folder is not None:
        config: Any = numba.config
        config.CACHE_DIR = str(_folder)


def compiled(function: F) -> F:
    """`function` as machine code; the function itself where numba is missing."""
    if not AVAILABLE:
        return function
    made: Any = numba.njit(cache=_folder is not None, error_model="numpy")(function)
    return cast("F", made)
