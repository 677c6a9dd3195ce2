"""The built-in tools: one call of a model becomes a request to picod, and picod's answer a ToolResult."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from gateway.api.sandbox_json import BadAnswerError, count_of, objects_of, parse_object, parse_object_now, text_of
from gateway.api.tools.arguments import ArgumentError, file_target, in_workspace, read_text, read_timeout, read_whole
from gateway.api.tools.catalogue import BUILT_IN
from gateway.api.tools.results import (
    IMAGE_TYPES,
    MAX_TEXT_CHARS,
    Image,
    ToolResult,
    failure,
    from_execute,
    from_run_code,
)
from gateway.api.tools.sandbox import MAX_REFUSAL_BYTES, ToolSandbox
from gateway.api.tools.text_files import decode_page
from gateway.core.model import SandboxReply

MAX_READ_BYTES = 256 << 10  # of a text file; more does not fit into a model's answer
MAX_IMAGE_BYTES = 16 << 20  # of an image file
MAX_LISTED = 1000  # entries of a folder

Action = Callable[["ToolSandbox", Mapping[str, Any]], Awaitable[ToolResult]]


async def run_python(sandbox: ToolSandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """Code in the session's own context."""
    timeout = read_timeout(arguments)
    body = {"code": read_text(arguments, "code"), "language": "python", "timeout": f"{timeout:g}s"}
    # As a stream: picod's whole answer keeps the first 10 MB only, and the end of long output is what matters.
    answer = await sandbox.start("/api/run_code", body, timeout, stream=True)
    return _refused(answer) if isinstance(answer, SandboxReply) else from_run_code(answer)


async def run_shell(sandbox: ToolSandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """A command line in a shell of its own."""
    return await execute(sandbox, ["bash", "-c", read_text(arguments, "command")], read_timeout(arguments))


async def execute(sandbox: ToolSandbox, command: list[str], timeout: float) -> ToolResult:
    """A command by its argv, as declared tools run it too. What picod cut off is completed by the end of its file."""
    answer = await sandbox.start("/api/execute", {"command": command, "timeout": f"{timeout:g}s"}, timeout)
    if isinstance(answer, SandboxReply):
        return _refused(answer)
    tails = {}
    for stream in ("stdout", "stderr"):
        if answer.get(f"{stream}_truncated") and (path := text_of(answer, f"{stream}_file", "")):
            tails[stream] = await _tail_of(sandbox, path)
    return from_execute(answer, tails)


async def _tail_of(sandbox: ToolSandbox, path: str) -> str:
    """The end of a text file, at most what one answer shows; empty where it cannot be read."""
    try:
        reply = await sandbox.get(file_target(path), {"range": f"bytes=-{MAX_TEXT_CHARS}"})
    except ArgumentError:  # the sandbox names what is no file of the workspace
        return ""
    # The first bytes may be the rest of a character that was cut in two.
    return reply.body[:MAX_TEXT_CHARS].decode("utf-8", "replace").lstrip("\ufffd") if reply.status == 206 else ""


async def read_file(sandbox: ToolSandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """A file, or a part of it that begins and ends with whole characters; a picture as a picture."""
    path = read_text(arguments, "path")
    offset, length = read_whole(arguments, "offset", 0, 0), read_whole(arguments, "length", MAX_READ_BYTES, 1)
    wants_all = arguments.get("offset") is None and arguments.get("length") is None
    most = MAX_IMAGE_BYTES if wants_all else min(length, MAX_READ_BYTES)
    asked = {"range": f"bytes={offset}-{offset + most - 1}"}
    reply = await sandbox.get(file_target(path), asked, MAX_IMAGE_BYTES + 1)
    if reply.status == 416:
        total = reply.headers.get("content-range", "").rpartition("/")[2]
        return ToolResult("(empty file)") if total == "0" else failure("end_of_file", f"the file has {total} bytes")
    if reply.status not in (200, 206):
        return _refused(reply, path)
    kind = reply.headers.get("content-type", "").partition(";")[0]
    size = int(reply.headers.get("content-range", "").rpartition("/")[2] or len(reply.body))
    if kind in IMAGE_TYPES and wants_all and size == len(reply.body):
        data = await asyncio.to_thread(base64.b64encode, reply.body)
        return ToolResult("", (Image(kind, data.decode(), in_workspace(path)),))
    return await asyncio.to_thread(_as_text, reply.body[: min(most, MAX_READ_BYTES)], offset, size, kind)


def _as_text(data: bytes, offset: int, size: int, kind: str) -> ToolResult:
    """A page of a text file, with what there is to say of it. The encoding may have to be guessed, so in a thread."""
    page = decode_page(data, offset, size)
    if page is None:
        return failure("binary_file", f"{kind or 'the file'}, {size} bytes, is not text; open it with run_python")
    notes = list(page.notes)
    if page.start > offset:
        notes.append(f"byte {offset} is within a character; this begins at byte {page.start}")
    if page.end < size:
        notes.append(f"... bytes {page.start} to {page.end} of {size}; read on with offset {page.end} ...")
    text = page.text or ("" if notes else "(empty file)")
    return ToolResult("\n".join([text, *(f"[{note}]" for note in notes)]))


async def write_file(sandbox: ToolSandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """A text file, whole or not at all."""
    path, content = read_text(arguments, "path"), read_text(arguments, "content", empty=True)
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError:
        raise ArgumentError("content: holds half of a surrogate pair, which is no character") from None
    reply = await sandbox.put(file_target(path), data)
    if reply.status not in (200, 201):
        return _refused(reply, path)
    return ToolResult(f"wrote {len(data)} bytes to {in_workspace(path)}")


async def list_files(sandbox: ToolSandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """A folder's entries, one a line."""
    path = read_text(arguments, "path") if arguments.get("path") not in (None, "") else "."
    reply = await sandbox.get(f"/api/files?path={quote(in_workspace(path) or '.', safe='')}")
    if reply.status != 200:
        return _refused(reply, path)
    entries = objects_of(await parse_object(reply.body), "files")
    lines = [
        f"{text_of(each, 'name')}/"
        if each.get("is_dir")
        else f"{text_of(each, 'name')}  {count_of(each, 'size')} bytes"
        for each in entries
    ]
    shown = [line for line in lines if not line.startswith(".wakegate")][:MAX_LISTED]
    if len(lines) > MAX_LISTED:
        shown.append(f"[... {len(lines) - MAX_LISTED} more ...]")
    return ToolResult("\n".join(shown) or "(empty folder)")


ACTIONS: Mapping[str, Action] = {
    "run_python": run_python,
    "run_shell": run_shell,
    "read_file": read_file,
    "write_file": write_file,
    "list_files": list_files,
}
_KNOWN = {tool.name: frozenset(tool.parameters["properties"]) for tool in BUILT_IN}


def check_names(tool: str, arguments: Mapping[str, Any]) -> None:
    """Raises ArgumentError for an argument that the built-in tool does not have."""
    for name in arguments:
        if name not in _KNOWN[tool]:
            expected = ", ".join(sorted(_KNOWN[tool]))
            raise ArgumentError(f"{name[:64]}: unknown argument; {tool} takes {expected}")


def _refused(reply: SandboxReply, path: str = "") -> ToolResult:
    """A refusal of picod's as a failure that tells the model what was wrong."""
    try:
        document = parse_object_now(reply.body[:MAX_REFUSAL_BYTES])
        message = text_of(document, "error", "")
    except BadAnswerError:
        document, message = {}, ""
    if document.get("code") == "INTERRUPTED":
        return failure("sandbox_lost", "the call began before and was cut off; it may or may not have run")
    if document.get("code") == "ANSWER_NOT_KEPT":
        return failure("too_large", f"the call was run before; {message}")
    kind = {400: "bad_request", 404: "not_found", 413: "too_large", 507: "disk_full"}.get(reply.status, "failed")
    message = message or f"the sandbox answered with status {reply.status}"
    return failure(kind, f"{path}: {message}" if path else message)
