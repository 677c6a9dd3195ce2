"""POST /v1/run: a command or a program with its files, run in a sandbox that exists only for it."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_json, read_seconds
from gateway.api.oneshot.runs import OneShotRuns, Outcome, Program, command_program, read_timeout
from gateway.api.sessions import choose_runtime
from gateway.api.tools.arguments import ArgumentError, file_target
from gateway.core.errors import BadRequestError
from gateway.core.interfaces import RuntimeCatalog

MAX_BODY_BYTES = 32 << 20
_MAX_FILES = 64
_MAX_ARGUMENTS = 4096
_FIELDS = frozenset(("code", "command", "language", "files", "outputs", "timeout", "runtime", "results"))
# Below a folder that listings leave out, so that a program finds its own files alone.
_SCRIPTS = {
    "python": (".wakegate/run/main.py", "python3"),
    "bash": (".wakegate/run/main.sh", "bash"),
    "javascript": (".wakegate/run/main.js", "node"),
}
_LANGUAGES = {
    "python": "python", "python3": "python", "py": "python", "bash": "bash", "sh": "bash", "shell": "bash",
    "javascript": "javascript", "js": "javascript", "node": "javascript", "nodejs": "javascript",
}  # fmt: skip


class RunAPI:
    """The handler of POST /v1/run."""

    def __init__(self, runs: OneShotRuns, catalog: RuntimeCatalog) -> None:
        self._runs = runs
        self._catalog = catalog

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"run_once": self._run}

    async def _run(self, request: Request) -> Response:
        body = await read_json(request, MAX_BODY_BYTES)
        if not isinstance(body, dict):
            raise BadRequestError("the body must be a JSON object")
        program = await asyncio.to_thread(read_program, body)  # base64 of megabytes
        runtime = choose_runtime(self._catalog, request, body.get("runtime"))
        outcome = await self._runs.run(request, runtime.key, program)
        document = await asyncio.to_thread(_document, outcome)
        return JSON(document, headers={"x-wakegate-start": outcome.start.value})


def read_program(body: Mapping[str, Any]) -> Program:
    """What to run, from the fields of a request. Raises ParamError, BadRequestError. Pure."""
    if unknown := sorted(body.keys() - _FIELDS):
        raise ParamError(unknown[0][:64], f"unknown field; expected some of {', '.join(sorted(_FIELDS))}")
    code, command = body.get("code"), body.get("command")
    if (code is None) == (command is None):
        raise ParamError("code", "send either code or command")
    timeout = read_timeout(read_seconds(body, "timeout"))
    files = _read_files(body.get("files"))
    outputs = [(path, _target("outputs", path)) for path in _texts("outputs", body.get("outputs"), _MAX_FILES)]
    if command is not None:
        argv = ["bash", "-c", command] if isinstance(command, str) else _texts("command", command, _MAX_ARGUMENTS)
        if not command or not argv:
            raise ParamError("command", "expected a command line, or a list of arguments")
        return command_program(argv, timeout, files=files, outputs=outputs)
    if not isinstance(code, str) or not code:
        raise ParamError("code", "expected text")
    language = read_language(body.get("language", "python"))
    if body.get("results"):
        if language == "javascript":
            raise ParamError("results", "python and bash have them, javascript has not")
        run = {"code": code, "language": language, "timeout": f"{timeout:g}s"}
        return Program("/api/run_code", run, timeout, files, outputs)
    return script_program(language, code, timeout, files=files, outputs=outputs)


def script_program(language: str, code: str, timeout: float, *, files: Sequence[Any] = (), **more: Any) -> Program:
    """A program that runs code as a script in the workspace. Raises ParamError."""
    path, interpreter = _SCRIPTS[language]
    try:
        script = code.encode()
    except UnicodeEncodeError:
        raise ParamError("code", "contains an unpaired surrogate, which is not a character") from None
    return command_program([interpreter, path], timeout, files=[*files, (file_target(path), script)], **more)


def read_language(value: Any) -> str:
    """A language by one of its names. Raises ParamError."""
    found = _LANGUAGES.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise ParamError("language", f"there are {', '.join(_SCRIPTS)}; got {str(value)[:32]!r}")
    return found


def _read_files(value: Any) -> list[tuple[str, bytes]]:
    """`{path: text}` or `{path: {"base64": text}}`, as targets and bytes."""
    if value is None:
        return []
    if not isinstance(value, dict) or len(value) > _MAX_FILES:
        raise ParamError("files", f"expected an object of at most {_MAX_FILES} files by their path")
    files = []
    for path, content in value.items():
        target = _target("files", path)
        try:
            if isinstance(content, str):
                data = content.encode()
            elif isinstance(content, dict) and isinstance(content.get("base64"), str):
                data = base64.b64decode(content["base64"], validate=True)
            else:
                raise ValueError
        except (ValueError, binascii.Error):
            raise ParamError(f"files.{path[:64]}", 'expected text, or {"base64": text}') from None
        files.append((target, data))
    return files


def _target(field: str, path: str) -> str:
    try:
        return file_target(path)
    except ArgumentError as error:
        raise ParamError(field, f"{path[:64]!r}: {str(error).partition(': ')[2]}") from None


def _texts(field: str, value: Any, most: int) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > most or not all(isinstance(each, str) for each in value):
        raise ParamError(field, f"expected a list of at most {most} texts")
    return value


def _document(outcome: Outcome) -> dict[str, Any]:
    """The sandbox's answer without what names files of a sandbox that is gone, and the outputs."""
    document = {name: value for name, value in outcome.answer.items() if name not in _INTERNAL}
    if outcome.files:
        document["files"] = {
            path: None if data is None else {"base64": base64.b64encode(data).decode()}
            for path, data in outcome.files.items()
        }
    return document


_INTERNAL = frozenset(("stdout_file", "stderr_file", "context_id", "restored", "notice"))
