"""Reads `spec.wakegate.mounts`: data that every sandbox of a runtime sees, from places that the operator allows.

One manifest serves both engines: `source` is the folder on this machine, `claim` or `configMap` what a cluster mounts.
Of the machine only folders below the manifest's own or those of --runtime-sources can be named, and they are read-only:
a folder that several sandboxes could write would let one session put files, and symbolic links, before another.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.core.model import Mount
from gateway.runtimes.fields import Reader
from gateway.runtimes.files import Files

_PREFIX = "spec.wakegate.mounts"
# Where a mount would hide what sandboxes are made of, or lie in what hibernates.
_TAKEN = (
    "/app", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/opt/wakegate", "/proc",
    "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var", "/workspace",  # noqa: S108 - names, not used
)  # fmt: skip
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_MAX_TARGET_CHARS = 1024


def read_mounts(
    entries: Sequence[Mapping[str, Any]], files: Files | None, reader: Reader, *, in_cluster: bool
) -> tuple[Mount, ...]:
    """The mounts that this engine makes. What is wrong goes to `reader`, which then refuses the manifest."""
    mounts: list[Mount] = []
    for index, entry in enumerate(entries):
        place = f"{_PREFIX}[{index}]"
        target = _target(entry.get("target", ""), f"{place}.target", mounts, reader)
        mount = _in_cluster(entry, place, reader) if in_cluster else _here(entry, place, files, reader)
        if target is not None and mount is not None:
            mounts.append(Mount(target, *mount))
    return tuple(mounts)


def _target(text: str, place: str, mounts: Sequence[Mount], reader: Reader) -> str | None:
    path = posixpath.normpath(text)
    if (
        not text.startswith("/")
        or text.startswith("//")
        or path == "/"
        or "\0" in text
        or len(text) > _MAX_TARGET_CHARS
    ):
        reader.note(place, f"expected an absolute path such as /data, got {text[:64]!r}")
        return None
    for taken in _TAKEN:
        if _overlap(path, taken):
            reader.note(place, f"{path} is a part of every sandbox, or around one ({taken}); use a path such as /data")
            return None
    for other in mounts:
        if _overlap(path, other.target):
            reader.note(place, f"{path} and {other.target} are one in the other; mounts have to lie apart")
            return None
    return path


def _here(
    entry: Mapping[str, Any], place: str, files: Files | None, reader: Reader
) -> tuple[str, str, str, bool] | None:
    source = entry.get("source", "")
    if not source:
        reader.note(f"{place}.source", "missing; the local engine mounts folders of this machine")
        return None
    if entry.get("readOnly", True) is not True:
        reader.note(f"{place}.readOnly", "a folder of this machine is mounted read-only; leave it out, or say true")
        return None
    if files is None:
        reader.note(f"{place}.source", "a manifest that comes from no file can name no folder of this machine")
        return None
    try:
        return str(files.resolve_folder(source)), "", "", True
    except (ValueError, OSError) as error:
        reader.note(f"{place}.source", str(error))
        return None


def _in_cluster(entry: Mapping[str, Any], place: str, reader: Reader) -> tuple[str, str, str, bool] | None:
    claim, config_map = entry.get("claim", ""), entry.get("configMap", "")
    if bool(claim) == bool(config_map):
        reader.note(place, "expected one of claim and configMap; in a cluster no folder of a node is mounted")
        return None
    if not _OBJECT_NAME.fullmatch(claim or config_map):
        reader.note(place, f"{(claim or config_map)[:64]!r} is no name of an object")
        return None
    read_only = bool(entry.get("readOnly", True))
    if config_map and not read_only:
        reader.note(f"{place}.readOnly", "a ConfigMap is always read-only; leave it out, or say true")
        return None
    return "", claim, config_map, read_only


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")
