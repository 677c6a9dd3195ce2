"""Commands of a chat: run, list, follow, type into, kill. Each runs on a pseudo-terminal, as with Open Terminal.

A command is a background process of picod's. Entries of its output are lines; an offset counts bytes of it, where Open
Terminal counts entries: clients send back the `next_offset` that they got.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import shlex
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_object
from gateway.api.open_terminal import query
from gateway.api.open_terminal.chats import Chat, Chats, is_awake, naming_session, record_of
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, BadAnswerError, count_of, objects_of, text_of
from gateway.api.sessions import while_connected
from gateway.api.tools.run_events import read_events
from gateway.api.workspace_files import WORKSPACE, checked
from gateway.core.errors import ConflictError, NotFoundError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId

TERMINAL_ENV = {"HOME": WORKSPACE, "TERM": "xterm-256color"}
_NAME = "open-terminal"  # of the processes that are commands
_SIZE = {"cols": 80, "rows": 24}
_WAIT_S = 5.0  # for a command's end, where the client does not say: most commands are over by then
_MAX_WAIT_S = 300.0
_GRACE_S = 30.0
_TERM_WAIT_S = 10.0  # for a command to heed SIGTERM
_MAX_OUTPUT_BYTES = 1 << 20  # as many as picod keeps
_MAX_ENTRIES = 5000
_MAX_COMMAND_CHARS = 128 << 10  # as many as the kernel takes in one argument
_MAX_INPUT_BYTES = 1 << 20
_MAX_ENV = 256


class ProcessesAPI:
    """/execute: commands that are started, followed, written to and ended."""

    def __init__(self, chats: Chats, caller: SandboxCaller) -> None:
        self._chats = chats
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return naming_session({
            "open_terminal_run_command": self._run,
            "open_terminal_list_processes": self._list,
            "open_terminal_get_process_status": self._status,
            "open_terminal_send_process_input": self._input,
            "open_terminal_kill_process": self._kill,
        })  # fmt: skip

    async def _run(self, request: Request) -> Response:
        body = await read_object(request)
        command, env = query.field(body, "command"), body.get("env") or {}
        if len(command) > _MAX_COMMAND_CHARS or "\0" in command:
            raise ParamError("command", f"expected at most {_MAX_COMMAND_CHARS} characters, without NUL")
        if not isinstance(env, dict) or len(env) > _MAX_ENV or not all(isinstance(each, str) for each in env.values()):
            raise ParamError("env", f"expected an object of at most {_MAX_ENV} texts")
        named = body.get("cwd") or ""
        if not isinstance(named, str):
            raise ParamError("cwd", "expected text")
        query.located("cwd", named or WORKSPACE, WORKSPACE)  # before a session is made for it
        wait, tail = query.seconds(request, "wait", _WAIT_S, _MAX_WAIT_S), query.count(request, "tail", 0)
        session = await self._chats.ensure(request)
        base = (record_of(session) or Chat("", "")).cwd
        cwd = query.located("cwd", named or base, base)
        asked = {
            "command": ["bash", "-c", command],
            # By the workspace's own name where it is there: not every image has /home/user.
            "working_dir": cwd.inner if cwd.root == "workspace" else cwd.absolute,
            "env": {**TERMINAL_ENV, **env},
            "stdin": True,
            "name": _NAME,
            "terminal": _SIZE,
        }
        process, output = await while_connected(request, self._start(session.id, asked, wait), "a command")
        return JSON(
            {"cwd": cwd.absolute, **_describe(process), **_rendered(output.text(), output.lost, tail, output.end)}
        )

    async def _start(
        self, session_id: SessionId, asked: Mapping[str, Any], wait: float
    ) -> tuple[dict[str, Any], _Output]:
        """Start a command and follow it to its end, or for `wait` seconds. Leaving it then does not end it."""
        output = _Output()
        headers = {"content-type": "application/json"}
        stream = self._caller.stream(
            session_id, "POST", "/api/processes/stream", headers=headers, body=orjson.dumps(asked)
        )
        async with stream as (reply, chunks):
            if reply.status != 200:
                await checked(replace(reply, body=await read_error(chunks)))
            events = read_events(chunks)
            # No tuple as the default: Python 3.11 then raises SystemError at the end.
            first = await anext(events, None)
            name, started, _ = first or ("", {}, 0)
            if name != "start":
                raise BadAnswerError("the sandbox's stream does not begin with the process")
            process = dict(started)
            try:
                async with asyncio.timeout(wait):
                    async for name, data, _ in events:
                        if name == "pty":
                            output.add(_decoded(text_of(data, "data")))
                        elif name == "exit":
                            return {**process, **data, "state": "exited"}, output
            except TimeoutError:
                return process, output
        raise BadAnswerError("the sandbox's stream ended before the command did")

    async def _list(self, request: Request) -> Response:
        session = await self._chats.find(request)
        if session is None or not is_awake(session):
            return JSON([])
        document = await checked(await self._call(session.id, "GET", "/api/processes"))
        found = [each for each in objects_of(document, "processes") if each.get("name") == _NAME]
        return JSON([_describe(each) for each in found])

    async def _status(self, request: Request) -> Response:
        wait, tail = query.seconds(request, "wait", _WAIT_S, _MAX_WAIT_S), query.count(request, "tail", 0)
        offset = query.count(request, "offset", 0, least=0)
        session_id, target = await self._named(request)
        if wait:
            waiting = self._call(session_id, "GET", f"{target}/wait?timeout={wait:g}s", timeout=wait + _GRACE_S)
            await _found(await while_connected(request, waiting, "a command"))
        logs = await _found(
            await self._call(session_id, "GET", f"{target}/logs?offset={offset}", limit=_LOG_ANSWER_BYTES)
        )
        text = "".join(text_of(logs, each, "") for each in ("pty", "stdout", "stderr"))
        return JSON({**_describe(logs), **_rendered(text, count_of(logs, "dropped") > 0, tail, count_of(logs, "next"))})

    async def _input(self, request: Request) -> Response:
        typed = query.field(await read_object(request), "input", empty=True)
        data = _unescaped(typed).encode("utf-8", "replace")
        if len(data) > _MAX_INPUT_BYTES:
            raise ParamError("input", f"expected at most {_MAX_INPUT_BYTES} bytes")
        session_id, target = await self._named(request)
        await _found(await self._call(session_id, "POST", f"{target}/stdin", data))
        return JSON({"status": "ok"})

    async def _kill(self, request: Request) -> Response:
        signal = "KILL" if query.flag(request, "force") else "TERM"
        session_id, target = await self._named(request)
        try:
            await _found(await self._call(session_id, "POST", f"{target}/signal", orjson.dumps({"signal": signal})))
        except ConflictError:
            return JSON({"status": "killed"})  # it has exited; so their server says of it too
        waited = await self._call(session_id, "GET", f"{target}/wait?timeout={_TERM_WAIT_S:g}s")
        exited = (await _found(waited)).get("state") != "running"
        return JSON({"status": "killed" if exited else "running"})

    async def _named(self, request: Request) -> tuple[SessionId, str]:
        """The session, and picod's target of the process that the path names. Raises NotFoundError."""
        session = await self._chats.find(request)
        if session is None or not is_awake(session):
            raise NotFoundError("Process not found")
        return session.id, f"/api/processes/{quote(request.path_params['process_id'][:64], safe='')}"

    async def _call(
        self, session_id: SessionId, method: str, target: str, body: bytes = b"", *, timeout: float = 60.0,
        limit: int = MAX_ANSWER_BYTES,
    ) -> SandboxReply:  # fmt: skip
        return await self._caller.call(session_id, method, target, body=body, timeout=timeout, limit=limit)


_LOG_ANSWER_BYTES = 8 << 20  # a MiB of control characters, each of which JSON writes in six


async def _found(reply: SandboxReply) -> Mapping[str, Any]:
    """picod's document. Raises its error, for a process that is not there in Open Terminal's words."""
    if reply.status == 404:
        raise NotFoundError("Process not found")
    return await checked(reply)


class _Output:
    """The latest output of a command. `end`: bytes in all; `lost`: whether the oldest are not kept."""

    def __init__(self) -> None:
        self.end = 0
        self.lost = False
        self._kept = bytearray()

    def add(self, data: bytes) -> None:
        """Append output; the oldest beyond _MAX_OUTPUT_BYTES is dropped."""
        self.end += len(data)
        self._kept += data
        if len(self._kept) > 2 * _MAX_OUTPUT_BYTES:  # now and then: each time would move a MiB for every line
            self._cut()

    def text(self) -> str:
        """The latest output, at most _MAX_OUTPUT_BYTES of it."""
        self._cut()
        return self._kept.decode("utf-8", "replace")

    def _cut(self) -> None:
        surplus = len(self._kept) - _MAX_OUTPUT_BYTES
        if surplus > 0:
            del self._kept[:surplus]
            self.lost = True


def _describe(process: Mapping[str, Any]) -> dict[str, Any]:
    """A process as Open Terminal shows it. Raises BadAnswerError."""
    argv = process.get("command")
    if not isinstance(argv, list) or not argv or not all(isinstance(each, str) for each in argv):
        raise BadAnswerError("the sandbox's answer: command is not a list of texts")
    running, signal = text_of(process, "state") == "running", text_of(process, "signal", "")
    code: int | None = None if running else count_of(process, "exit_code")
    if code is not None and signal:
        code = 128 - code  # picod: 128 + its number; Open Terminal, as Python has it: the number below zero
    return {
        "id": text_of(process, "id"),
        "command": argv[-1] if argv[:2] == ["bash", "-c"] else shlex.join(argv),
        "status": "running" if running else "killed" if signal else "done",
        "exit_code": code,
        "log_path": None,
    }


def _rendered(text: str, lost: bool, tail: int, end: int) -> dict[str, Any]:
    """Output as entries, one a line, the last `tail` of them; 0: all."""
    whole = text.endswith("\n")
    most = min(tail or _MAX_ENTRIES, _MAX_ENTRIES)
    # From the end, so that a MiB of line feeds does not become a million texts; the first may be many lines then.
    lines = (text[:-1] if whole else text).rsplit("\n", most) if text else []
    cut = len(lines) > most
    if cut and tail:
        del lines[0]
    entries = [{"type": "output", "data": f"{each}\n"} for each in lines]
    if entries and not whole:
        entries[-1]["data"] = lines[-1]
    return {"output": entries, "next_offset": end, "truncated": lost or (cut and tail > 0)}


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise BadAnswerError("the sandbox's answer: data is not base64") from None


def _unescaped(typed: str) -> str:
    r"""Escapes as characters: models write `\n` and `\x03` as two and four letters. What is no escape stays."""
    try:
        return typed.encode("raw_unicode_escape").decode("unicode_escape")
    except UnicodeDecodeError:
        return typed


async def read_error(chunks: AsyncIterator[bytes]) -> bytes:
    """The body of an error, bounded: its sender may be hostile."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            break
    return bytes(body[:MAX_ANSWER_BYTES])
