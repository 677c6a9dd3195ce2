"""The tools of AgentScope's filesystem sandbox, over the workspace.

They are those of MCP's reference server for file systems, whose words models know, so its texts are kept. Source:
github.com/modelcontextprotocol/servers, src/filesystem, as version 1.1.6 of AgentScope Runtime runs it in its image.
"""

from __future__ import annotations

import asyncio
import fnmatch
import posixpath
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson

from gateway.api.errors import ParamError
from gateway.api.workspace_files import WORKSPACE, Entry, WorkspaceFiles, absolute_path, inner_path
from gateway.core.errors import BadRequestError, ConflictError, WakegateError

Arguments = Mapping[str, Any]

MAX_READ_BYTES = 4 << 20  # of one file, and of all files of one call together
_MAX_PATHS = 64  # of one call
_MAX_EDITS = 64
_MAX_PATTERNS = 16
_MAX_PATTERN_CHARS = 256
_MAX_STARS = 16  # each may make a match as much longer as the path is long
_MAX_TREE = 5000  # entries of a tree, which is one text for a model
_MAX_DEPTH = 64
_SEPARATOR = "\n---\n"


async def read_file(files: WorkspaceFiles, arguments: Arguments) -> str:
    """The content of a text file, as AgentScope's tool of that name answers it."""
    return await _read(files, _path(arguments))


async def _read(files: WorkspaceFiles, path: str, most: int = MAX_READ_BYTES) -> str:
    # A byte that is no UTF-8 is shown as U+FFFD, as Node does where the reference server reads.
    return (await files.read(path, most)).decode("utf-8", "replace")


async def read_multiple_files(files: WorkspaceFiles, arguments: Arguments) -> str:
    """Several files' contents; one that cannot be read says so in its place."""
    shown, left = [], MAX_READ_BYTES
    for name in _texts(arguments, "paths", _MAX_PATHS):
        try:
            text = await _read(files, inner_path(name), left)
            left -= len(text)
            shown.append(f"{name}:\n{text}\n")
        except WakegateError as error:
            shown.append(f"{name}: Error - {error}")
    return _SEPARATOR.join(shown)


async def write_file(files: WorkspaceFiles, arguments: Arguments) -> str:
    """Create or replace a file; answers the sentence that AgentScope's own server does."""
    await files.write(_path(arguments), _text(arguments, "content", empty=True).encode())
    return f"Successfully wrote to {_text(arguments, 'path')}"


async def edit_file(files: WorkspaceFiles, arguments: Arguments) -> str:
    """Replace texts, each of which must be there; the answer shows the changes. `dryRun` changes nothing."""
    path, edits = _path(arguments), arguments.get("edits")
    if not isinstance(edits, list) or not 0 < len(edits) <= _MAX_EDITS:
        raise ParamError("arguments.edits", f"expected a list of 1 to {_MAX_EDITS} edits")
    data = await files.read(path, MAX_READ_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BadRequestError(f"{absolute_path(path)} is not UTF-8; an edit would damage it") from None
    # On a thread: 64 edits of 4 MiB are 256 MiB to search, a quarter of a second.
    text, changes = await asyncio.to_thread(_edited, text, edits)
    if arguments.get("dryRun") is not True:
        await files.write(path, text.encode())
    return f"```diff\n--- {path}\n+++ {path}\n{changes}```\n\n"


def _edited(text: str, edits: Sequence[Any]) -> tuple[str, str]:
    """The text after all edits, and what they change. Raises ParamError, BadRequestError."""
    changes = []
    for number, edit in enumerate(edits):
        if not isinstance(edit, dict):
            raise ParamError(f"arguments.edits[{number}]", "expected an object with oldText and newText")
        old, new = _text(edit, "oldText"), _text(edit, "newText", empty=True)
        begin = text.find(old)
        if begin < 0:
            raise BadRequestError(f"Could not find exact match for edit:\n{old[:500]}")
        changes.append(_hunk(text.count("\n", 0, begin) + 1, old, new))
        text = text[:begin] + new + text[begin + len(old) :]
        if len(text) > MAX_READ_BYTES:  # edits of a megabyte each would add up
            raise BadRequestError(f"the file would be larger than {MAX_READ_BYTES} bytes")
    return text, "".join(changes)


def _hunk(line: int, old: str, new: str) -> str:
    """One change as a diff shows it.

    Made of the edit itself. Rejected: comparing both files with difflib, whose time grows with the square of lines that
    repeat.
    """
    before, after = old.splitlines(), new.splitlines()
    body = [f"-{each}\n" for each in before] + [f"+{each}\n" for each in after]
    return f"@@ -{line},{len(before)} +{line},{len(after)} @@\n{''.join(body)}"


async def create_directory(files: WorkspaceFiles, arguments: Arguments) -> str:
    """Make a folder with its parents; one that is there is left as it is."""
    await files.make_directory(_path(arguments))
    return f"Successfully created directory {_text(arguments, 'path')}"


async def list_directory(files: WorkspaceFiles, arguments: Arguments) -> str:
    """A folder's entries, one a line."""
    found = await files.list(_path(arguments))
    return "\n".join(f"[{'DIR' if each.is_dir else 'FILE'}] {each.name}" for each in found)


async def directory_tree(files: WorkspaceFiles, arguments: Arguments) -> str:
    """All that is below a folder, as nested JSON."""
    root = _path(arguments)
    found = await files.list(root, depth=_MAX_DEPTH, most=_MAX_TREE)
    return (await asyncio.to_thread(orjson.dumps, _tree(found, root), option=orjson.OPT_INDENT_2)).decode()


def _tree(entries: Sequence[Entry], root: str) -> list[dict[str, Any]]:
    """Entries, parents first, as nodes with their children. A parent that is missing makes the root its parent."""
    top: list[dict[str, Any]] = []
    children: dict[str, list[dict[str, Any]]] = {root: top}
    for each in entries:
        node: dict[str, Any] = {"name": each.name, "type": "directory" if each.is_dir else "file"}
        if each.is_dir:
            node["children"] = children[each.path] = []
        children.get(posixpath.dirname(each.path), top).append(node)
    return top


async def move_file(files: WorkspaceFiles, arguments: Arguments) -> str:
    """Rename; what is there is never replaced."""
    source, target = _text(arguments, "source"), _text(arguments, "destination")
    try:
        await files.move(inner_path(source), inner_path(target))
    except ConflictError:
        raise ConflictError(f"{target[:200]} is there already; move or delete it first") from None
    return f"Successfully moved {source} to {target}"


async def search_files(files: WorkspaceFiles, arguments: Arguments) -> str:
    """Paths below a folder whose name contains a text, or matches its wildcards; letters' case is ignored."""
    root, pattern = _path(arguments), _text(arguments, "pattern")
    excluded = _texts(arguments, "excludePatterns", _MAX_PATTERNS) if arguments.get("excludePatterns") else []
    for each in (pattern, *excluded):
        if len(each) > _MAX_PATTERN_CHARS:
            raise ParamError("arguments.pattern", f"expected at most {_MAX_PATTERN_CHARS} characters")
    if sum(each.count("*") for each in (pattern, *excluded)) > _MAX_STARS:
        raise ParamError("arguments.pattern", f"expected at most {_MAX_STARS} stars in all patterns together")
    found = await files.list(root, depth=_MAX_DEPTH)
    paths = await asyncio.to_thread(_matching, found, root, pattern, excluded)
    return "\n".join(paths) or "No matches found"


def _matching(entries: Sequence[Entry], root: str, pattern: str, excluded: Sequence[str]) -> list[str]:
    wanted, unwanted = _matcher(pattern), [_matcher(each) for each in excluded]
    found = []
    for each in entries:
        relative = each.path[len(root) + 1 :] if root else each.path
        parts = relative.split("/")
        if any(test(part) for test in unwanted for part in (*parts, relative)):
            continue
        if wanted(each.name) or wanted(relative):
            found.append(absolute_path(each.path))
    return found


def _matcher(pattern: str) -> Callable[[str], bool]:
    """By the letters alone, without a wildcard: so the reference server has it."""
    plain = pattern.casefold()
    if not any(each in plain for each in "*?["):
        return lambda name: plain in name.casefold()
    wildcards = plain.replace("**/", "*")
    return lambda name: fnmatch.fnmatchcase(name.casefold(), wildcards)


async def get_file_info(files: WorkspaceFiles, arguments: Arguments) -> str:
    """What is known of a file, one field a line."""
    entry = await files.stat(_path(arguments))
    fields = {
        "size": entry.size,
        "modified": entry.modified,
        "isDirectory": str(entry.is_dir).lower(),
        "isFile": str(entry.type == "file").lower(),
        "permissions": entry.mode,
    }
    return "\n".join(f"{name}: {value}" for name, value in fields.items())


async def list_allowed_directories(files: WorkspaceFiles, arguments: Arguments) -> str:
    """The workspace: paths elsewhere are refused."""
    del files, arguments
    return f"Allowed directories:\n{WORKSPACE}"


FilesystemTool = Callable[[WorkspaceFiles, Arguments], Awaitable[str]]
_PATH = {"path": "string"}
# Each tool, and the JSON types of its arguments; those with a ? may be left out.
FILESYSTEM_TOOLS: Mapping[str, tuple[FilesystemTool, Mapping[str, str]]] = {
    "read_file": (read_file, _PATH),
    "read_multiple_files": (read_multiple_files, {"paths": "array"}),
    "write_file": (write_file, {"path": "string", "content": "string"}),
    "edit_file": (edit_file, {"path": "string", "edits": "array", "dryRun?": "boolean"}),
    "create_directory": (create_directory, _PATH),
    "list_directory": (list_directory, _PATH),
    "directory_tree": (directory_tree, _PATH),
    "move_file": (move_file, {"source": "string", "destination": "string"}),
    "search_files": (search_files, {"path": "string", "pattern": "string", "excludePatterns?": "array"}),
    "get_file_info": (get_file_info, _PATH),
    "list_allowed_directories": (list_allowed_directories, {}),
}


def _path(arguments: Arguments) -> str:
    return inner_path(_text(arguments, "path"))


def _text(arguments: Arguments, name: str, *, empty: bool = False) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise ParamError(f"arguments.{name}", "expected text")
    return value


def _texts(arguments: Arguments, name: str, most: int) -> list[str]:
    value = arguments.get(name)
    if not isinstance(value, list) or len(value) > most or not all(isinstance(each, str) for each in value):
        raise ParamError(f"arguments.{name}", f"expected a list of at most {most} texts")
    return value
