"""Makes a bundle of a folder: the same bytes for the same files, whenever and wherever it is made."""

from __future__ import annotations

import fnmatch
import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

# What makes a bundle large, or wrong on another machine, and .env, which has secrets: a bundle is kept by the gateway
# and unpacked in every sandbox. --secret lets the agent use one that is in neither.
SKIPPED = (
    ".git", ".hg", ".svn", "__pycache__", "*.pyc", ".venv", "venv", "node_modules", ".env", ".mypy_cache",
    ".pytest_cache", ".ruff_cache", ".DS_Store", "*.egg-info",
)  # fmt: skip
IGNORE_FILE = ".wakegateignore"
MAX_BYTES = 64 << 20
MAX_FILES = 20_000


class PackError(Exception):
    """The folder cannot be packed; the text says why."""


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by relative name. A link to a file in the folder counts as that file.

    Raises PackError for a link out of it, and for too much.
    """
    root = folder.resolve()
    patterns = [*SKIPPED, *ignored(folder)]
    found: dict[str, Path] = {}
    size = 0
    for path in _walk(folder, patterns):
        name = path.relative_to(folder).as_posix()
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise PackError(f"{name}: is a link that leads nowhere") from None
        # What is meant is the folder: a link to ~/.ssh in it, which a cloned repository may bring, is not to go along.
        if not real.is_relative_to(root):
            raise PackError(f"{name}: leads out of the folder, to {real}; copy it in, or list it in {IGNORE_FILE}")
        info = real.stat()
        if not stat.S_ISREG(info.st_mode):
            raise PackError(f"{name}: is no plain file; list it in {IGNORE_FILE}")
        found[name] = real
        size += info.st_size
        if size > MAX_BYTES or len(found) > MAX_FILES:
            raise PackError(
                f"the folder has more than {MAX_BYTES >> 20} MiB or {MAX_FILES} files; list what the agent does not"
                f" need in {IGNORE_FILE}"
            )
    return found


def bundle_of(files: Mapping[str, Path], added: Mapping[str, bytes]) -> bytes:
    """A gzip tar of the files, and of texts that are `added`."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted({*files, *added}):
            executable = name in files and bool(files[name].stat().st_mode & 0o100)
            content = added[name] if name in added else files[name].read_bytes()
            member = tarfile.TarInfo(name)
            # No time, no owner: the gateway knows a bundle by its digest, and a checkout or another user of the same
            # files must not be another bundle. Of the mode it is whether the owner may run it.
            member.size, member.mode = len(content), 0o755 if executable else 0o644
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), compresslevel=6, mtime=0)


def ignored(folder: Path) -> list[str]:
    """The patterns of the folder's own list of what stays out."""
    path = folder / IGNORE_FILE
    if not path.is_file():
        return []
    lines = (line.strip().rstrip("/") for line in path.read_text(errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _walk(folder: Path, patterns: list[str]) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        here = Path(where)
        # Taken out of the list that os.walk goes on with: node_modules is not even looked into.
        for name in list(folders):
            relative = (here / name).relative_to(folder).as_posix()
            if _matches(name, relative, patterns):
                folders.remove(name)
            elif (here / name).is_symlink():
                raise PackError(f"{relative}: is a link to a folder; copy it in, or list it in {IGNORE_FILE}")
        for name in names:
            if not _matches(name, (here / name).relative_to(folder).as_posix(), patterns):
                yield here / name


def _matches(name: str, relative: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, each) or fnmatch.fnmatchcase(relative, each) for each in patterns)
