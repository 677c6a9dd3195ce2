"""Restricts the files and folders that a manifest may name to its own folder and those that the operator listed.

A manifest is often written by somebody else, and a gateway may run as root: `source: ../../../etc` would show
/etc/shadow to sandboxes. Symbolic links are followed before a path is checked.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Sandboxes never see these folders, nor a folder that contains one of them. Folders below them are allowed: a manifest
# in /etc/wakegate/runtimes may have its files beside it.
_PRIVATE = tuple(map(Path, ("/boot", "/etc", "/home", "/root", "/run", "/tmp", "/var")))  # noqa: S108 - named, not used
_KERNEL = tuple(map(Path, ("/dev", "/proc", "/sys")))  # nothing below these either
_HOMES = Path("/home")


def is_private(folder: Path, private: Iterable[Path] = ()) -> bool:
    """Whether sandboxes must not see `folder`: the root, a system folder, a home, or one around these; or in `private`.

    `folder` is checked as written, and with its symbolic links followed.
    """
    hidden = [*_KERNEL, *map(_real, private)]
    kept = [*_PRIVATE, *_KERNEL, Path(_home())]
    try:
        paths = {Path(os.path.normpath(folder)), _real(folder)}
    except OSError:  # a link that may not be read, such as another user's /proc/PID/root: it may lead anywhere
        return True
    # Both forms count. The written one alone would let a link lead to /root; the resolved one alone would show
    # /home where that is a link to /data/home.
    for path in paths:
        if path.parent in (path, _HOMES) or any(each.is_relative_to(path) for each in kept):
            return True
        if any(path.is_relative_to(each) for each in hidden):
            return True
    return False


def _real(path: Path) -> Path:
    """Make a path absolute and follow symbolic links; unlike Path.resolve, accepts a loop of links. Raises OSError."""
    return Path(os.path.realpath(path))


def _home() -> str:
    """The home of the gateway's user, not $HOME, which may be any folder. A container's user may have no entry."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir or "/"
    except KeyError:
        return "/"


@dataclass(frozen=True, slots=True)
class Files:
    """`folder` is the manifest's own, which relative paths start from; `allowed` are those that the operator listed.

    `environment` is the operator's own --sandbox-python, which manifests may name wherever it is. `private` are folders
    that no sandbox may see, e.g. the gateway's state with its signing keys.
    """

    folder: Path
    allowed: tuple[Path, ...] = ()
    environment: Path | None = None
    private: tuple[Path, ...] = ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders in which a manifest may name files, without symbolic links."""
        return tuple(_real(each) for each in (self.folder, *self.allowed))

    @property
    def private_folders(self) -> tuple[Path, ...]:
        """`private`, without symbolic links."""
        return tuple(map(_real, self.private))

    def resolve(self, name: str) -> Path:
        """The absolute path, without symbolic links. Raises ValueError where it is outside; OSError."""
        path = _real(self.folder / name)
        if not any(path.is_relative_to(root) for root in self.roots):
            raise ValueError(
                f"expected a path below the manifest's folder, or below one that --runtime-sources lists; {path} is not"
            )
        return path

    def resolve_folder(self, name: str) -> Path:
        """Like `resolve`, for a folder that sandboxes see. Raises ValueError also if it is private or no folder.

        Otherwise a manifest in a home folder with `source: .` would show that user's SSH keys.
        """
        path = self.resolve(name)
        if not path.is_dir():
            raise ValueError("expected a folder")
        if is_private(path, self.private):
            raise ValueError(f"expected a dedicated folder; {path} is private to this machine, or contains what is")
        return path

    def resolve_environment(self, name: str) -> Path:
        """The folder of a Python environment. Raises ValueError, OSError."""
        if self.environment is not None and _real(self.folder / name) == _real(self.environment):
            return _real(self.environment)
        path = self.resolve_folder(name)
        if not os.access(path / "bin" / "python3", os.X_OK):
            raise ValueError("expected the folder of a Python environment; it has no bin/python3")
        return path
