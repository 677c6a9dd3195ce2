"""What surrounds a Python context's variables: working folder, environment, import path, recursion limit.

Runs inside the kernel, as user code, known there as the module `_wakegate_surroundings`. The kernel loads it before any
code has run, so that what it notes then is what a new kernel begins with: only the differences are saved, for an image
or a runtime that changed while the session was hibernated brings its own environment.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from picod.userside import pickles
else:
    import _wakegate_pickles as pickles

_FIRST_ENVIRONMENT = dict(os.environ)
_FIRST_PATH = list(sys.path)
_FIRST_FOLDER = os.getcwd()


def describe() -> dict[str, Any]:
    """The surroundings as `restore` takes them, fit for JSON."""
    return {
        "cwd": _cwd(),
        "environment": _environment_changes(),
        "import_path": _portable_path(),
        "first_path": len(_FIRST_PATH),
        "recursion_limit": sys.getrecursionlimit(),
    }


def restore(document: Mapping[str, Any], failed: dict[str, str]) -> None:
    """Restore everything that unpickling may read, in the order in which one depends on the other.

    What cannot be restored goes to `failed` with the reason; the variables are loaded all the same.
    """
    for name, value in document["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    time.tzset()  # the C library looks at TZ once
    try:
        os.chdir(os.path.join(_FIRST_FOLDER, document["cwd"]))
    except OSError as error:
        failed["(working directory)"] = pickles.reason_of(error)
    sys.path[:] = _from_portable(document["import_path"]) + _FIRST_PATH[document["first_path"] :]
    sys.setrecursionlimit(max(document["recursion_limit"], sys.getrecursionlimit()))
    packages = sys.modules.get("wakegate_workspace")
    if packages is not None:
        packages.read_path_files()
    # The import system has cached folders as absent or empty that the workspace has brought since.
    importlib.invalidate_caches()


def replaced_modules() -> list[str]:
    """Loaded modules (preloaded, or the kernel's own) that a new process would take from the session's packages."""
    workspace = sys.modules.get("wakegate_workspace")
    folder = workspace.packages_folder() if workspace is not None else ""
    try:
        names = {entry.partition(".")[0] for entry in os.listdir(folder)} if folder else set()
    except OSError:
        return []
    replaced = []
    for name in sorted(names & set(sys.modules)):
        origin = getattr(getattr(sys.modules[name], "__spec__", None), "origin", None)
        if isinstance(origin, str) and not origin.startswith(f"{folder}/"):
            replaced.append(name)
    return replaced


def _cwd() -> str:
    """The working folder; relative if it is in the workspace, whose path differs between engines."""
    try:
        folder = os.getcwd()
    except OSError:
        return "."  # it has been removed
    inside = os.path.commonpath((folder, _FIRST_FOLDER)) == _FIRST_FOLDER
    return os.path.relpath(folder, _FIRST_FOLDER) if inside else folder


def _environment_changes() -> dict[str, str | None]:
    changed: dict[str, str | None] = {
        name: value for name, value in os.environ.items() if _FIRST_ENVIRONMENT.get(name) != value
    }
    return changed | {name: None for name in _FIRST_ENVIRONMENT if name not in os.environ}


def _portable_path() -> list[Any]:
    """sys.path with its order: a number for an entry that the process began with, else the entry.

    One in the workspace, which has another name in another engine, is {"workspace": relative path}.
    """
    found: list[Any] = sys.path  # user code may have put anything there
    entries: list[Any] = []
    for entry in found:
        if not isinstance(entry, str):
            continue  # the import system ignores it as well
        if entry in _FIRST_PATH:
            entries.append(_FIRST_PATH.index(entry))
        elif os.path.isabs(entry) and os.path.commonpath((entry, _FIRST_FOLDER)) == _FIRST_FOLDER:
            entries.append({"workspace": os.path.relpath(entry, _FIRST_FOLDER)})
        else:
            entries.append(entry)
    return entries


def _from_portable(entries: Sequence[Any]) -> list[str]:
    """The inverse of `_portable_path`, in a process that may have begun with other entries."""
    path: list[str] = []
    for entry in entries:
        if isinstance(entry, int):
            path += _FIRST_PATH[entry : entry + 1]
        elif isinstance(entry, dict):
            path.append(os.path.join(_FIRST_FOLDER, entry["workspace"]))
        else:
            path.append(entry)
    return path
