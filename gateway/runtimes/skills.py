"""Reads `spec.wakegate.skills`: folders with a SKILL.md and scripts, each of which is a tool in a sandbox of its own.

skills:
  - source: skills/invoices            # below the manifest's folder, or one that --runtime-sources lists
    kept: true                         # one sandbox for all calls of a session; else one for each call
    limits: {memory: 512Mi, cpu: "1", processes: 64}
    egress: [api.example.com]          # of its own; without it nothing
    timeout: 2m

SKILL.md begins with front matter that has `name` and `description`; what follows is for the model to read. The files in
`scripts/` are what it may run. Source: the Agent Skills specification, https://agentskills.io/specification.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from gateway.core.model import DeclaredTool, HibernationMode, Limits, Mount, PoolSpec, Runtime, RuntimeKey, Skill
from gateway.runtimes.documents import load_documents
from gateway.runtimes.fields import Reader
from gateway.runtimes.files import Files
from gateway.runtimes.sections import read_egress
from gateway.runtimes.tools import BUILT_IN_NAMES, read_timeout

FILE, SCRIPTS, INSIDE = "SKILL.md", "scripts", "/skill"
_MAX_FILE_BYTES = 64 << 10  # of SKILL.md: more than a model should read of one skill
_MAX_FRONT_BYTES = 8 << 10
_MAX_ENTRIES, _MAX_DEPTH, _MAX_SCRIPTS = 2000, 8, 64
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_SCRIPT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_DESCRIPTION_CHARS = 1024
_NO_FOLDER = "only a manifest in a file of the gateway's (--runtime) can name a folder, and no custom resource or agent"


@dataclass(frozen=True, slots=True)
class _Folder:
    """What a skill's folder has."""

    name: str
    description: str
    instructions: str
    scripts: tuple[str, ...]


def read_skills(runtime: Runtime, entries: Sequence[Mapping[str, Any]], files: Files | None, reader: Reader) -> Runtime:
    """The runtime with its skills' tools, and the runtimes that those run on. Problems go to `reader`."""
    tools, skills = {tool.name: tool for tool in runtime.tools}, []
    for index, entry in enumerate(entries):
        place = f"spec.wakegate.skills[{index}]"
        source = entry.get("source", "")
        if files is None:
            reader.note(f"{place}.source", _NO_FOLDER)
            continue
        try:
            path = files.resolve_folder(source)
            folder = read_folder(path)
        except (OSError, ValueError) as error:
            reader.problem(f"{place}.source", getattr(error, "strerror", None) or str(error), source)
            continue
        name = f"skill_{folder.name}"
        if name in tools or name in BUILT_IN_NAMES:
            reader.problem(f"{place}.source", "expected a skill whose name no other tool has", folder.name)
            continue
        made = _runtime_of(runtime, entry, folder, path, reader, place)
        skills.append(made)
        tools[name] = _tool_of(name, entry, folder, made.key, reader, place)
    return replace(runtime, tools=tuple(tools.values()), skills=tuple(skills))


def read_folder(path: Path) -> _Folder:
    """The skill in a folder. Raises ValueError with what is wrong with it; OSError."""
    _check_size(path)
    file = path / FILE
    if file.is_symlink() or not file.is_file():
        raise ValueError(f"expected a folder with a file {FILE}")
    with file.open("rb") as stream:
        data = stream.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError(f"{FILE}: expected at most {_MAX_FILE_BYTES} bytes")
    try:
        front, instructions = _divided(data.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError:
        raise ValueError(f"{FILE}: expected text in UTF-8") from None
    name, description = front.get("name"), front.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{FILE}: name: expected up to 64 of a-z, 0-9 and hyphens, got {str(name)[:64]!r}")
    if not isinstance(description, str) or not 0 < len(description.strip()) <= _MAX_DESCRIPTION_CHARS:
        raise ValueError(f"{FILE}: description: expected text of at most {_MAX_DESCRIPTION_CHARS} characters")
    return _Folder(name, description.strip(), instructions.strip(), _scripts(path / SCRIPTS))


def _divided(text: str) -> tuple[Mapping[str, Any], str]:
    """The front matter, and the text behind it."""
    head, closed, rest = text.removeprefix("---\n").partition("\n---")
    if not text.startswith("---\n") or not closed or len(head) > _MAX_FRONT_BYTES:
        raise ValueError(f"{FILE}: expected front matter between lines of ---, of at most {_MAX_FRONT_BYTES} bytes")
    try:
        front = next(iter(load_documents(head.encode())), None)
    except (yaml.YAMLError, ValueError, RecursionError):
        front = None
    if not isinstance(front, Mapping):
        raise ValueError(f"{FILE}: expected front matter in YAML with name and description")
    return front, rest.partition("\n")[2]


def _scripts(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir() or folder.is_symlink():
        return ()
    # A link is left out: it may lead out of the folder, and what it leads to is not in the sandbox.
    names = sorted(each.name for each in os.scandir(folder) if each.is_file(follow_symlinks=False))
    if len(names) > _MAX_SCRIPTS:
        raise ValueError(f"{SCRIPTS}: expected at most {_MAX_SCRIPTS} files")
    for name in names:
        if not _SCRIPT.fullmatch(name):
            raise ValueError(f"{SCRIPTS}: expected names of letters, digits, '.', '_' and '-', got {name[:64]!r}")
    return tuple(names)


def _check_size(path: Path, depth: int = 1, seen: int = 0) -> int:
    """Count the entries of a folder. Raises ValueError for more, or deeper, than a skill has."""
    with os.scandir(path) as entries:
        for entry in entries:
            seen += 1
            if seen > _MAX_ENTRIES or depth > _MAX_DEPTH:
                raise ValueError(f"expected at most {_MAX_ENTRIES} files, {_MAX_DEPTH} folders deep")
            if entry.is_dir(follow_symlinks=False):
                seen = _check_size(Path(entry.path), depth + 1, seen)
    return seen


def _runtime_of(
    runtime: Runtime, entry: Mapping[str, Any], folder: _Folder, path: Path, reader: Reader, place: str
) -> Runtime:
    """What its sandboxes are made from: limits and egress of its own, and nothing of the runtime's data."""
    return Runtime(
        key=RuntimeKey(runtime.key.namespace, f"{runtime.key.name}.skill.{folder.name}", runtime.key.kind),
        limits=_limits(runtime.limits, entry.get("limits", {}), reader, f"{place}.limits."),
        session_timeout=runtime.session_timeout,
        max_session_duration=runtime.max_session_duration,
        pool=PoolSpec(),
        hibernation=HibernationMode.WORKSPACE if entry.get("kept", False) else HibernationMode.OFF,
        python=runtime.python,
        python_roots=runtime.python_roots,
        mounts=(Mount(INSIDE, str(path)),),
        egress=read_egress(entry.get("egress", ()), reader, f"{place}.egress"),
        code_context="off",
        tenant=runtime.tenant,
        skill_of=runtime.key,
    )


def _limits(usual: Limits, given: Mapping[str, Any], reader: Reader, prefix: str) -> Limits:
    memory, cpus = reader.quantity(given, "memory", prefix), reader.quantity(given, "cpu", prefix)
    return replace(
        usual,
        memory=usual.memory if memory is None else int(memory),
        cpus=cpus or usual.cpus,
        processes=int(given.get("processes", usual.processes)),
    )


def _tool_of(
    name: str, entry: Mapping[str, Any], folder: _Folder, key: RuntimeKey, reader: Reader, place: str
) -> DeclaredTool:
    hint = "Without `script` it answers its instructions." if folder.scripts else "It answers instructions to follow."
    properties: dict[str, Any] = {}
    if folder.scripts:
        properties = {
            "script": {"type": "string", "enum": list(folder.scripts), "description": "Which of its scripts to run."},
            "args": {"type": "array", "items": {"type": "string"}, "maxItems": 64, "description": "Its arguments."},
            "input": {"type": "string", "description": "Text that it finds in /workspace/input."},
        }
    return DeclaredTool(
        name=name,
        description=f"{folder.description} {hint}",
        parameters={"type": "object", "properties": properties, "additionalProperties": False},
        ordered=bool(entry.get("kept", False)),
        timeout=read_timeout(entry.get("timeout"), f"{place}.timeout", reader.problem),
        skill=Skill(key, folder.instructions, bool(entry.get("kept", False))),
    )
