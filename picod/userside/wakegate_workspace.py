"""Packages that a session installs: into its workspace, and seen by every python3 of the sandbox.

Lies in the site-packages of the interpreter environment beside a .pth file that imports it (scripts/install puts both
there), so it runs as each python3 starts. The environment is shared by all sandboxes and read-only. On top of it goes
a small environment in the workspace, made when pip is first run, whose packages come before the shared ones: so `pip
install` finds what is there already, may replace it by another version, and a session's packages sleep and wake with
its files. PIP_TARGET and --user do not do: the one installs every dependency anew, the other is off in an environment.
"""

import os
import sys

_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_OVERLAY = ".wakegate/python"  # below HOME


def begin() -> None:
    """Put the session's packages before the shared ones; run pip in the session's environment."""
    home = os.environ.get("HOME")
    if not home or not os.path.isabs(home):
        return
    overlay = os.path.join(home, _OVERLAY)
    if _runs_pip(getattr(sys, "orig_argv", [])):
        _go(overlay)
    packages = os.path.join(overlay, "lib", _VERSION, "site-packages")
    if packages not in sys.path:
        shared = os.path.dirname(os.path.abspath(__file__))
        sys.path.insert(sys.path.index(shared) if shared in sys.path else len(sys.path), packages)


def _runs_pip(argv: list[str]) -> bool:
    """`python3 -m pip ...`, or the script `pip`."""
    for index, argument in enumerate(argv[1:], 1):
        if argument == "-m":
            return argv[index + 1 : index + 2] == ["pip"]
        if not argument.startswith("-"):
            name = os.path.basename(argument)
            return name in ("pip", "pip3") or name == f"pip{_VERSION.removeprefix('python')}"
    return False


def _go(overlay: str) -> None:
    """Become the python3 of the session's environment. Returns only when that cannot be made."""
    program = os.path.join(overlay, "bin", "python3")
    try:
        _make(overlay, program)
        # Neither belongs into the workspace, nor does pip look for its own updates in every session.
        environment = {
            "PIP_CACHE_DIR": os.path.join(os.environ.get("TMPDIR", "/tmp"), ".cache", "pip"),  # noqa: S108
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **os.environ,
        }
        os.execve(program, [program, *sys.orig_argv[1:]], environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"packages cannot go into the workspace: {overlay}: {error.strerror}\n")


def _make(overlay: str, program: str) -> None:
    """An environment as venv(1) makes them, that also sees the packages of the shared one. Raises OSError."""
    shared = os.path.dirname(os.path.abspath(__file__))
    packages = os.path.join(overlay, "lib", _VERSION, "site-packages")
    base = getattr(sys, "_base_executable", sys.executable)
    config = f"home = {os.path.dirname(base)}\ninclude-system-site-packages = false\n"
    os.makedirs(packages, exist_ok=True)
    os.makedirs(os.path.dirname(program), exist_ok=True)
    for path, text in (
        (os.path.join(packages, "shared.pth"), f"{shared}\n"),
        (os.path.join(overlay, "pyvenv.cfg"), f"{config}version = {sys.version.split()[0]}\n"),
    ):
        with open(f"{path}.{os.getpid()}", "w") as file:
            file.write(text)
        os.replace(f"{path}.{os.getpid()}", path)
    if not os.path.lexists(program) or os.readlink(program) != base:  # another sandbox may have its python elsewhere
        temporary = f"{program}.{os.getpid()}"
        os.symlink(base, temporary)
        os.replace(temporary, program)


begin()
