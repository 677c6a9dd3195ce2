"""Installs a session's packages into its workspace and makes every python3 of the sandbox see them.

Lies in the site-packages of the interpreter environment beside a .pth file that imports it (scripts/install puts both
there), so it runs as each python3 starts. The environment is shared by all sandboxes and read-only. On top of it goes
a small environment in the workspace, made when pip is first run, whose packages come before the shared ones: so `pip
install` finds what is there already, may replace it by another version, and a session's packages hibernate and wake
with its files. Rejected: PIP_TARGET, which installs every dependency again, and --user, which pip refuses in a virtual
environment. So --user is dropped from the arguments: the installation needs no root anyway.

pip retries an index that it cannot reach for 15 seconds and more. In a sandbox without a network it gets
`--no-index` in its environment, and fails at once with a text that says what can be installed. Where it is plain that
it will, as a name is asked for that is not there, it is not even started: its import alone takes a second and more on
a busy core.
"""

import os
import sys

_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_OVERLAY = ".wakegate/python"  # below HOME
_PROXIES = ("PIP_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")
_USES_AN_INDEX = ("install", "download", "wheel", "index", "search")
_OFFLINE = (
    "pip: this sandbox has no network. What can be installed: wheels and source archives that lie in the workspace\n"
    "(upload one, then `pip install ./NAME.whl`, or `pip install --find-links FOLDER NAME`).\n"
    "`pip list` shows the packages that are there already.\n"
)
# What may stand beside names without changing what can be found. With any other option pip decides.
_FLAGS = frozenset((
    "-U", "--upgrade", "-q", "-qq", "-v", "--quiet", "--verbose", "--user", "--no-cache-dir", "--pre", "--no-deps",
    "--no-input", "--break-system-packages", "--disable-pip-version-check", "--no-warn-script-location",
    "--prefer-binary", "--no-build-isolation", "--dry-run",
))  # fmt: skip
_WITH_A_VALUE = ("-i", "--index-url", "--extra-index-url", "--trusted-host", "--timeout", "--retries", "--proxy")
_ARCHIVES = (".whl", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz")
_INSTALLED = (".dist-info", ".egg-info", ".egg-link")
_NAME = r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[^]]*\])?\s*([=<>!~].*)?"
_path_files_read: set[str] = set()


def begin() -> None:
    """Put the session's packages before the shared ones; if this is pip, run it in the session's environment."""
    home = os.environ.get("HOME")
    if not home or not os.path.isabs(home):
        return
    if _pip_arguments(getattr(sys, "orig_argv", [])) is not None:
        _run_pip(os.path.join(home, _OVERLAY))
    packages = packages_folder()
    if packages not in sys.path:
        shared = os.path.dirname(os.path.abspath(__file__))
        sys.path.insert(sys.path.index(shared) if shared in sys.path else len(sys.path), packages)
    read_path_files()


def packages_folder() -> str:
    """The site-packages folder of the session's environment, which need not exist."""
    return os.path.join(os.environ.get("HOME", ""), _OVERLAY, "lib", _VERSION, "site-packages")


def read_path_files() -> None:
    """Process the .pth files of the session's packages (editable installs have one), each once per process."""
    packages = packages_folder()
    try:
        names = [name for name in os.listdir(packages) if name.endswith(".pth") and name not in _path_files_read]
    except OSError:
        return
    if not names:
        return
    import site

    for name in sorted(names):
        _path_files_read.add(name)
        site.addpackage(packages, name, None)


def _pip_arguments(argv: list[str]) -> list[str] | None:
    """The arguments of `python3 -m pip ...`, or of the script `pip`; None when it is neither."""
    for index, argument in enumerate(argv[1:], 1):
        if argument == "-m":
            return argv[index + 2 :] if argv[index + 1 : index + 2] == ["pip"] else None
        if not argument.startswith("-"):
            name = os.path.basename(argument)
            is_pip = name in ("pip", "pip3") or name == f"pip{_VERSION.removeprefix('python')}"
            return argv[index + 1 :] if is_pip else None
    return None


def _run_pip(overlay: str) -> None:
    """Execute pip again with the python3 of the session's environment. Returns only when that cannot be created."""
    program = os.path.join(overlay, "bin", "python3")
    # pip's cache does not belong in the workspace, and its check for updates would cost each session a request.
    environment = {
        "PIP_CACHE_DIR": os.path.join(os.environ.get("TMPDIR", "/tmp"), ".cache", "pip"),  # noqa: S108
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **os.environ,
    }
    environment.pop("PIP_USER", None)
    arguments = _pip_arguments(sys.orig_argv) or []
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command in _USES_AN_INDEX and "--no-index" not in arguments and not _has_network():
        environment.update(
            {"PIP_NO_INDEX": "1", "PIP_RETRIES": "0"}
        )  # PIP_RETRIES is for URLs given as requirements (git+https), which --no-index does not stop
        sys.stderr.write(_OFFLINE)
        missing = _missing(command, arguments)
        if missing:
            sys.stderr.write(f"ERROR: No matching distribution found for {missing}\n")
        sys.stderr.flush()
        if missing:
            os._exit(1)  # SystemExit would be reported as a failed import of `site`, which imports this
    argv = [argument for argument in sys.orig_argv[1:] if argument != "--user"]
    try:
        _make(overlay, program)
        os.execve(program, [program, *argv], environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"packages cannot go into the workspace: {overlay}: {error.strerror}\n")


def _missing(command: str, arguments: list[str]) -> str:
    """The first name asked for of which no version is there, so that pip without an index must fail; "" if unsure."""
    import re

    if _names_folders():
        return ""
    at = arguments.index(command) + (2 if command == "index" else 1)  # `pip index versions NAME`
    missing, rest = "", iter(arguments[at:])
    for argument in arguments[: arguments.index(command)]:
        if argument not in _FLAGS:
            return ""
    for argument in rest:
        if argument in _WITH_A_VALUE:
            next(rest, None)
            continue
        if argument in _FLAGS or (argument.startswith("--") and argument.partition("=")[0] in _WITH_A_VALUE):
            continue
        found = re.fullmatch(_NAME, argument)
        if not found or argument.endswith(_ARCHIVES):
            return ""  # a path, a URL, an option: pip decides
        # The other commands need an index for what is installed, too.
        if not missing and not (command == "install" and _is_there(found[1])):
            missing = argument
    return missing


def _names_folders() -> bool:
    """Whether settings of pip's name places with packages. Its other settings add none."""
    if any(os.environ.get(name) for name in ("PIP_FIND_LINKS", "PIP_REQUIREMENT", "PIP_EDITABLE", "PIP_CONFIG_FILE")):
        return True
    home = os.environ.get("HOME", "")
    for path in ("/etc/pip.conf", f"{home}/.config/pip/pip.conf", f"{home}/.pip/pip.conf", f"{sys.prefix}/pip.conf"):
        try:
            with open(path, errors="replace") as file:
                if "find" in file.read(1 << 16):  # find-links, in whichever spelling
                    return True
        except OSError:
            continue
    return False


def _is_there(name: str) -> bool:
    """Whether some version of a distribution is installed, in the shared environment or the session's."""
    import re

    wanted = re.sub(r"[-_.]+", "-", name).lower()
    for folder in (os.path.dirname(os.path.abspath(__file__)), packages_folder()):
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        # `there_is-1.0.dist-info`: the name has no hyphen of its own there.
        names = (entry.rsplit(".", 1)[0].split("-")[0] for entry in entries if entry.endswith(_INSTALLED))
        if any(re.sub(r"[-_.]+", "-", each).lower() == wanted for each in names):
            return True
    return False


def _has_network() -> bool:
    """Whether anything outside this sandbox may be reachable: a proxy is set, or a route leaves the loopback device.

    Reads the kernel's tables instead of connecting, which would wait for its timeout where packets are dropped.
    """
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    try:
        with open("/proc/net/route", encoding="ascii") as file:
            if len(file.readlines()) > 1:  # the first line is a heading
                return True
        with open("/proc/net/ipv6_route", encoding="ascii") as file:
            return any(line.split()[-1] != "lo" for line in file)
    except OSError:
        return True  # unknown: pip finds out by itself


def _make(overlay: str, program: str) -> None:
    """Create a virtual environment, as `python3 -m venv` does, that also sees the shared packages. Raises OSError."""
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
