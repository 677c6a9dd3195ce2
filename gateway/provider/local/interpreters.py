"""The two Python interpreters of a sandbox: the gateway's own, which runs picod, and the environment of user code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import picod
from gateway.provider.local import bwrap

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter and the host folders that it needs, at the same paths inside and outside."""

    program: str
    folders: tuple[str, ...]
    packages: tuple[str, ...] = ()  # folders for PYTHONPATH


def gateway_python() -> Interpreter:
    """The interpreter under this process, with its third-party packages, without the checkout."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = os.path.join(sys.base_prefix, "bin", name)
    if not os.access(program, os.X_OK):
        program = os.path.realpath(sys.executable)
    packages = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    packages = [path for path in dict.fromkeys(packages) if os.path.isdir(path)]
    prefixes = (sys.base_prefix, os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix))
    return Interpreter(program, tuple(dict.fromkeys((*prefixes, *packages))), tuple(packages))


def user_python(environment: Path | None) -> Interpreter:
    """The environment in folder `environment`; None is the system's python3, or the gateway's bare interpreter.

    A virtual environment is followed to its base interpreter. Raises ValueError when it holds no python3.
    """
    if environment is None:
        if os.access("/usr/bin/python3", os.X_OK):
            return Interpreter("/usr/bin/python3", ())
        return Interpreter(
            os.path.join(sys.base_prefix, "bin", "python3"), (sys.base_prefix, os.path.realpath(sys.base_prefix))
        )
    environment = environment.absolute()
    program = environment / "bin" / "python3"
    if not os.access(program, os.X_OK):
        raise ValueError(f"{environment} is not a Python environment: it has no bin/python3")
    folders = [str(environment), os.path.realpath(environment)]
    try:
        lines = (environment / "pyvenv.cfg").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip() == "home" and value.strip().endswith("/bin"):
            folders += [os.path.dirname(value.strip()), os.path.dirname(os.path.realpath(value.strip()))]
    # Where the link really ends, e.g. .../versions/3.11.7/bin/python3.11: the folder above bin.
    folders.append(os.path.dirname(os.path.dirname(os.path.realpath(program))))
    return Interpreter(str(program), tuple(dict.fromkeys(folders)))


def picod_folder() -> Path:
    """The installed package `picod`."""
    return Path(picod.__file__).resolve().parent


def readonly_binds(*pythons: Interpreter) -> dict[str, str]:
    """Path inside -> host path for these interpreters and picod's code."""
    binds = {folder: folder for python in pythons for folder in python.folders}
    return {**binds, f"{bwrap.PICOD_ROOT}/picod": str(picod_folder())}


def picod_command(python: Interpreter, *, listener: int, lifeline: int) -> list[str]:
    """The argv that starts picod on inherited descriptors.

    -S: no .pth file of the environment runs (coverage hooks, editable finders: tens of milliseconds). -P: the
    workspace, which is the working directory, is not searched for modules: a file json.py there belongs to the user.
    -B: the folders are read-only, so no bytecode can be written.
    """
    flags = ["-S", "-s", "-P", "-B"]
    return [python.program, *flags, "-m", "picod", "--fd", str(listener), "--lifeline-fd", str(lifeline)]


def command_environment(python: Interpreter, home: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of user code: no variable of the gateway's is inherited."""
    # Last of all the programs of packages that the session installed (picod/userside/wakegate_workspace.py).
    path = f"{os.path.dirname(python.program)}:{SYSTEM_PATH}:{home}/.wakegate/python/bin"
    return {"PATH": path, "HOME": home, "LANG": "C.UTF-8", "TMPDIR": "/tmp", "USER": "sandbox", **extra}  # noqa: S108
