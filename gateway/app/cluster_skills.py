"""Skills in a cluster: folders of the gateways' machines, which sandboxes get as agents get their files."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.agents.bundles import MAX_UPLOAD_BYTES
from gateway.agents.environments import NOBODYS
from gateway.agents.stored_code import StoredCode
from gateway.core.errors import SettingsError
from gateway.core.model import Runtime


@dataclass(frozen=True, slots=True)
class PackedSkill:
    """A skill's runtime as a cluster serves it, and the archive of its folder."""

    runtime: Runtime
    archive: bytes

    @property
    def digest(self) -> str:
        """Of the archive."""
        return self.runtime.code[0][1]


def pack_skills(runtimes: Iterable[Runtime]) -> list[PackedSkill]:
    """Read the folders of all skills. Blocks. Raises SettingsError for one that cannot be read, or is too large."""
    found, problems = [], []
    for skill in (each for runtime in runtimes for each in runtime.skills):
        try:
            found.append(_packed(skill))
        except (OSError, ValueError) as error:
            problems.append(f"{skill.key}: {error}")
    if problems:
        raise SettingsError(problems)
    return found


async def keep_skills(code: StoredCode, skills: Iterable[PackedSkill]) -> None:
    """Have their archives where every gateway reads them. Raises WakegateError."""
    for each in skills:
        await code.add(io.BytesIO(each.archive), NOBODYS)


def _packed(skill: Runtime) -> PackedSkill:
    (mount,) = skill.mounts
    archive = _archive_of(Path(str(mount.source)))
    digest = "sha256:" + hashlib.sha256(archive).hexdigest()
    runtime = replace(skill, mounts=(), code=((mount.target, digest),), manifest=_manifest_of(skill))
    return PackedSkill(runtime, archive)


def _manifest_of(skill: Runtime) -> dict[str, Any]:
    """Pods and NetworkPolicies are made of manifests."""
    limits: dict[str, str] = {}
    if skill.limits.memory:
        limits["memory"] = str(skill.limits.memory)
    if skill.limits.cpus:
        limits["cpu"] = f"{round(skill.limits.cpus * 1000)}m"
    spec: dict[str, Any] = {"template": {"resources": {"limits": limits}} if limits else {}}
    return {"spec": {**spec, "wakegate": {"egress": list(skill.egress)}}}


def _archive_of(folder: Path) -> bytes:
    """The same bytes for the same files, at every gateway."""
    made = io.BytesIO()
    left = MAX_UPLOAD_BYTES
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in sorted(_files_below(folder)):
            data = path.read_bytes()
            left -= len(data)
            if left < 0:
                raise ValueError(f"its folder holds more than {MAX_UPLOAD_BYTES} bytes")
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if os.access(path, os.X_OK) else 0o644
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def _files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Plain files; a link is left out, since what it leads to is not in the sandbox."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path
