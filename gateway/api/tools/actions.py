"""The built-in tools: each turns a call's arguments into a request to picod, and picod's answer into a ToolResult."""

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
    """Run code in the session's Python context, which keeps its variables."""
    timeout = read_timeout(arguments)
    body = {"code": read_text(arguments, "code"), "language": "python", "timeout": f"{timeout:g}s"}
    # Streamed even if nobody watches: a whole answer has only the first 10 MB, and errors are at the end of the output.
    answer = await sandbox.start("/api/run_code", body, timeout, stream=True)
    return _refused(answer) if isinstance(answer, SandboxReply) else from_run_code(answer)


async def run_shell(sandbox: ToolSandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """Run a command line in a new shell."""
    return await execute(sandbox, ["bash", "-c", read_text(arguments, "command")], read_timeout(arguments))


async def execute(sandbox: ToolSandbox, command: list[str], timeout: float) -> ToolResult:
    """Run a command, for declared tools as well. The end of output that picod cut off is read from its file."""
    answer = await sandbox.start("/api/execute", {"command": command, "timeout": f"{timeout:g}s"}, timeout)
    if isinstance(answer, SandboxReply):
        return _refused(answer)
    tails = {}
    for stream in ("stdout", "stderr"):
        if answer.get(f"{stream}_truncated") and (path := text_of(answer, f"{stream}_file", "")):
            tails[stream] = await _tail_of(sandbox, path)
    return from_execute(answer, tails)


async def _tail_of(sandbox: ToolSandbox, path: str) -> str:
    """The last MAX_TEXT_CHARS bytes of a text file; empty if it cannot be read."""
    try:
        reply = await sandbox.get(file_target(path), {"range": f"bytes=-{MAX_TEXT_CHARS}"})
    except ArgumentError:  # the sandbox named a path outside of the workspace
        return ""
    # The range may begin inside a character: drop what is left of it, which decodes to U+FFFD.
    return reply.body[:MAX_TEXT_CHARS].decode("utf-8", "replace").lstrip("\ufffd") if reply.status == 206 else ""


async def read_file(sandbox: ToolSandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """Read a text file, or a part of it on character boundaries; an image file is returned as an image."""
    path = read_text(arguments, "path")
    offset, length = read_whole(arguments, "offset", 0, 0), read_whole(arguments, "length", MAX_READ_BYTES, 1)
    wants_all = arguments.get("offset") is None and arguments.get("length") is None
    most = MAX_IMAGE_BYTES if wants_all else min(length, MAX_READ_BYTES)
    # Also for a whole file: of one with 10 GB only the first bytes leave the sandbox.
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
    """Decode a page of a text file, with notes. Runs in a thread: the encoding may have to be guessed."""
    page = decode_page(data, offset, size)
    if page is None:
        return failure("binary_file", f"{kind or 'the file'}, {size} bytes, is not text; open it with run_python")
    notes = list(page.notes)
    if page.start > offset:
        notes.append(f"byte {offset} is inside a character; this begins at byte {page.start}")
    if page.end < size:
        notes.append(f"... bytes {page.start} to {page.end} of {size}; read on with offset {page.end} ...")
    text = page.text or ("" if notes else "(empty file)")
    return ToolResult("\n".join([text, *(f"[{note}]" for note in notes)]))


async def write_file(sandbox: ToolSandbox, arguments: Mapping[str, Any]) -> ToolResult:
    """Write a text file. picod replaces the old file only once the new one is complete."""
    path, content = read_text(arguments, "path"), read_text(arguments, "content", empty=True)
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError:
        raise ArgumentError("content: contains an unpaired surrogate, which is not a character") from None
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
    """Raise ArgumentError for an argument that the built-in tool does not have."""
    for name in arguments:
        if name not in _KNOWN[tool]:
            expected = ", ".join(sorted(_KNOWN[tool]))
            raise ArgumentError(f"{name[:64]}: unknown argument; {tool} takes {expected}")


def _refused(reply: SandboxReply, path: str = "") -> ToolResult:
    """Turn an error answer of picod into a failure whose text the model can act on."""
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
