"""The two Python interpreters of a sandbox: the gateway's own, which runs picod, and the environment of user code."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import picod
from gateway.core.model import Runtime
from gateway.provider.local import bwrap
from gateway.runtimes.files import is_private

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_SYSTEM_BINS = frozenset(SYSTEM_PATH.split(":"))  # bwrap.py shows them to every sandbox
_MAX_CONFIG_BYTES = 64 << 10  # pyvenv.cfg has five short lines


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


def python_of(runtime: Runtime, own: Path | None) -> Interpreter:
    """The environment that the runtime's manifest names, else `own`, the operator's. Raises ValueError, OSError."""
    if runtime.python is None or (own is not None and os.path.realpath(runtime.python) == os.path.realpath(own)):
        return user_python(own)
    return user_python(Path(runtime.python), roots=runtime.python_roots)


def user_python(environment: Path | None, *, roots: Sequence[str] | None = None) -> Interpreter:
    """The environment in folder `environment`; None is the system's python3, or the gateway's bare interpreter.

    A virtual environment is followed to its base interpreter. It names that in files of its own, pyvenv.cfg and a
    symbolic link, and sandboxes see the folder: `home = /secrets/bin` would show them /secrets. With `roots` the
    environment is a manifest's, and its base must lie in it, in one of these folders, or where sandboxes see a Python
    anyway. No environment's base is a private folder (files.is_private).

    Raises:
        ValueError: it holds no python3, or its base may not be shown; OSError where it cannot be read.
    """
    if environment is None:
        if os.access("/usr/bin/python3", os.X_OK):
            return Interpreter("/usr/bin/python3", ())
        return Interpreter(
            os.path.join(sys.base_prefix, "bin", "python3"), (sys.base_prefix, os.path.realpath(sys.base_prefix))
        )
    environment = environment.absolute()
    if roots is None:
        return _operators_python(environment, _stamp(environment))
    return _check(environment, roots)


@functools.lru_cache(maxsize=16)
def _operators_python(environment: Path, stamp: object) -> Interpreter:
    # Remembered while its files stay the same: following its links and judging each folder takes 1.4 ms on the event
    # loop, once per start, and in a storm a start follows each wake. Not for a manifest's environment, which a stranger
    # may have written and whose links may lead elsewhere a moment later. Errors are not remembered.
    return _check(environment, None)


def _stamp(environment: Path) -> object:
    """What differs once an environment was made anew, or its interpreter replaced."""
    program = environment / "bin" / "python3"
    found: list[tuple[int, int, int] | None] = []
    for path, follow in ((environment, True), (program, False), (program, True), (environment / "pyvenv.cfg", True)):
        try:
            status = os.stat(path, follow_symlinks=follow)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_ctime_ns))
    return tuple(found)


def _check(environment: Path, roots: Sequence[str] | None) -> Interpreter:
    program = environment / "bin" / "python3"
    if not os.access(program, os.X_OK):
        raise ValueError(f"{environment} is not a Python environment: it has no bin/python3")
    if is_private(environment):
        raise ValueError(f"{environment} is, or contains, a private folder of this machine; sandboxes would see it")
    bases = _base_folders(environment, program)
    for base in bases:
        if is_private(Path(base)):
            raise ValueError(
                f"the base interpreter of {environment} is in {base}, a private folder of this machine; make the"
                " environment from another Python"
            )
        if roots is not None and not _is_within(base, (str(environment), *roots, *gateway_python().folders)):
            raise ValueError(
                f"the base interpreter of {environment} is in {base}, which sandboxes may not see; list it with"
                " --runtime-sources, or make the environment from /usr/bin/python3"
            )
    return Interpreter(str(program), tuple(dict.fromkeys((str(environment), os.path.realpath(environment), *bases))))


def _base_folders(environment: Path, program: Path) -> list[str]:
    """The folders above the `bin` that pyvenv.cfg names, and above the one where bin/python3 really ends, e.g.
    .../versions/3.11.7/bin/python3.11. Without those that every sandbox has, such as /usr."""
    homes = [os.path.dirname(os.path.realpath(program))]
    try:
        with open(environment / "pyvenv.cfg", "rb", opener=_open_file) as stream:
            lines = stream.read(_MAX_CONFIG_BYTES).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        key, _, value = line.partition("=")
        home = os.path.normpath(value.strip())
        if key.strip() == "home" and os.path.isabs(home) and os.path.basename(home) == "bin":
            homes.append(home)
            with contextlib.suppress(OSError):  # a link that may not be read: is_private judges the name
                homes.append(os.path.realpath(home))
    # `home = /bin` is common on merged-/usr systems: the folder above it would be the root.
    return [os.path.dirname(home) for home in homes if not _is_system_bin(home)]


def _is_system_bin(folder: str) -> bool:
    try:
        return os.path.realpath(folder) in _SYSTEM_BINS
    except OSError:
        return False


def _open_file(path: str, flags: int) -> int:
    """An opener that does not block: the folder may be a stranger's, with a named pipe where the file should be."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _is_within(folder: str, roots: Sequence[str]) -> bool:
    path = Path(os.path.realpath(folder))
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)


def picod_folder() -> Path:
    """The installed package `picod`."""
    return Path(picod.__file__).resolve().parent


def readonly_binds(*pythons: Interpreter) -> dict[str, str]:
    """Path inside -> host path for these interpreters and picod's code."""
    binds = {folder: folder for python in pythons for folder in python.folders}
    return {**binds, f"{bwrap.PICOD_ROOT}/picod": str(picod_folder())}


def picod_command(
    python: Interpreter,
    *,
    listener: int,
    lifeline: int,
    egress: int | None = None,
    oom: int | None = None,
    code_uid: int | None = None,
) -> list[str]:
    """The argv that starts picod on inherited descriptors.

    `egress`: where it hands out the egress proxy's socket; `oom`: where it gets its file of oom_priority.py.
    `code_uid`: the user, inside, as whom it starts and whom it leaves to user code; None: it shares it.

    -S: no .pth file of the environment runs (coverage hooks, editable finders: tens of milliseconds). -P: the
    workspace, which is the working directory, is not searched for modules: a file json.py there belongs to the user.
    -B: the folders are read-only, so no bytecode can be written.
    """
    flags = ["-S", "-s", "-P", "-B"]
    further = [] if egress is None else ["--egress-fd", str(egress)]
    further += [] if oom is None else ["--oom-fd", str(oom)]
    further += [] if code_uid is None else ["--code-uid", str(code_uid)]
    return [python.program, *flags, "-m", "picod", "--fd", str(listener), "--lifeline-fd", str(lifeline), *further]


def command_environment(python: Interpreter, home: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of user code: no variable of the gateway's is inherited."""
    # Last of all the programs of packages that the session installed (picod/userside/wakegate_workspace.py).
    path = f"{os.path.dirname(python.program)}:{SYSTEM_PATH}:{home}/.wakegate/python/bin"
    return {"PATH": path, "HOME": home, "LANG": "C.UTF-8", "TMPDIR": "/tmp", "USER": "sandbox", **extra}  # noqa: S108
