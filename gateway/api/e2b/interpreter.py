"""E2B's code interpreter: run code and follow it as lines of JSON, and contexts.

Source: github.com/e2b-dev/code-interpreter, template/server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from gateway.api.e2b.sandbox import SandboxClient, error_text, read_error
from gateway.api.event_answer import EventAnswer, Piece
from gateway.api.http import JSON, read_object
from gateway.api.sandbox_json import objects_of, text_of
from gateway.api.sandbox_paths import HOME
from gateway.api.tools.run_events import read_batches
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, WakegateError, public_message
from gateway.core.units import rfc3339

_KEEPALIVE = b'{"type":"keepalive"}\n'
_KEEPALIVE_S = 5.0  # of silence; proxies in between close connections on which nothing comes
_MAX_RUN_S = "24h"  # the SDKs' own timeout ends a run: they leave, which interrupts it
# The fields of a result in the SDKs; other types go into `extra` under their own names.
_FORMATS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
_LANGUAGES = {"": "", "python": "python", "python3": "python", "bash": "bash", "sh": "bash"}


async def execute(sandbox: SandboxClient, request: Request, clock: Clock) -> Response:
    """POST /execute. Raises BadRequestError."""
    body = await read_object(request)
    code, context = body.get("code"), body.get("context_id") or ""
    if not isinstance(code, str) or not isinstance(context, str):
        raise BadRequestError("code: expected text")
    language = _language(body)
    if language and context:
        return PlainTextResponse("Only one of context_id or language can be provided", 400)
    envs = body.get("env_vars") or {}
    if not isinstance(envs, dict) or not all(isinstance(each, str) for each in envs.values()):
        raise BadRequestError("env_vars: expected an object of texts")
    run = {
        "code": code,
        "stream": True,
        "timeout": _MAX_RUN_S,
        "context_id": context,
        "language": language,
        "env": {**sandbox.record.envs, **envs},
    }
    return _Run(sandbox, run, clock)


class _Run(Response):
    """Runs the code while it answers, and gives the sandbox's slot back however that ends.

    Rejected: opening the request to the sandbox before the answer is made. A client that leaves in between would never
    have the answer's body begun, nor ended, and keep its slot.
    """

    def __init__(self, sandbox: SandboxClient, run: Mapping[str, Any], clock: Clock) -> None:
        super().__init__()
        self._sandbox = sandbox
        self._run = run
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines, or the sandbox's error. Raises WakegateError as long as nothing was sent."""
        body = orjson.dumps(self._run)
        async with self._sandbox.stream("POST", "/api/run_code", body) as (reply, chunks):
            if reply.status == 404:
                answer: Response = PlainTextResponse(f"Context {self._run['context_id']} not found", 404)
            elif reply.status != 200:
                answer = PlainTextResponse(str(await read_error(reply, chunks)), reply.status)
            else:
                # It watches for the client's leaving as well, which then ends the request, and that interrupts the run.
                answer = EventAnswer(
                    self._pieces(chunks),
                    media_type="text/plain; charset=utf-8",
                    keepalive=_KEEPALIVE,
                    interval=_KEEPALIVE_S,
                )
            await answer(scope, receive, send)

    async def _pieces(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Piece, None]:
        last: bytes | None = None
        try:
            async for events in read_batches(chunks):
                if last is not None:
                    continue  # to the answer's end, which comes with the exit
                lines = [line for name, data, _ in events for line in _lines(name, data, self._clock)]
                data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
                if any(name == "exit" for name, _, _ in events):
                    last = data
                elif data:
                    yield data, True
        except WakegateError as error:
            failed = {"type": "error", "name": error.code, "value": public_message(error), "traceback": ""}
            last = (last or b"") + orjson.dumps(failed) + b"\n"
        yield last or b"", False


def _lines(name: str, data: Mapping[str, Any], clock: Clock) -> Iterator[Mapping[str, Any]]:
    """What an event of a run is in lines of E2B's."""
    if name in ("stdout", "stderr"):
        yield {"type": name, "text": text_of(data, "text", ""), "timestamp": rfc3339(clock.now())}
    # Updates of a display have no place in a list of lines: the SDKs would show each as a further result.
    elif name == "result" and isinstance(data.get("data"), dict) and not data.get("update"):
        yield render_result(data["data"], is_value=data.get("value") is True)
    elif name == "error":
        traceback = data.get("traceback")
        text = "\n".join(map(str, traceback)) if isinstance(traceback, list) else str(traceback or "")
        yield {
            "type": "error", "name": text_of(data, "name", ""), "value": text_of(data, "value", ""), "traceback": text
        }  # fmt: skip
    elif name == "exit":
        count = data.get("execution_count")
        if isinstance(count, int):  # bash has none
            yield {"type": "number_of_executions", "execution_count": count}
        yield {"type": "end_of_execution"}


def render_result(bundle: Mapping[str, Any], *, is_value: bool) -> dict[str, Any]:
    """A MIME bundle of Jupyter's as a line of E2B's. `is_value`: of the last expression."""
    line: dict[str, Any] = {"type": "result", "is_main_result": is_value, "extra": {}}
    for mime, value in bundle.items():
        name = _FORMATS.get(mime)
        if name is None:
            line["extra"][mime] = value
        elif (
            name == "text" and isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        ):
            line[name] = value[1:-1]  # as their server does: a text result is shown without its quotes
        else:
            line[name] = value
    return line


async def create_context(sandbox: SandboxClient, request: Request) -> Response:
    """POST /contexts. Raises BadRequestError."""
    body = await read_object(request)
    language = _language(body) or "python"
    cwd = body.get("cwd") or HOME
    if not isinstance(cwd, str) or not cwd.startswith("/") or len(cwd) > 4096:
        raise BadRequestError("cwd: expected an absolute path")
    status, document = await sandbox.call("POST", "/api/contexts", {"language": language})
    if status != 201:
        return PlainTextResponse(error_text(document, status), status)
    context_id = text_of(document, "id")
    # picod's contexts begin in the workspace. A process's folder is changed only from within, so by code that it runs.
    move = f"import os as _os; _os.chdir({cwd!r}); del _os" if language == "python" else f"cd -- '{_quoted(cwd)}'"
    moved = await sandbox.require("POST", "/api/run_code", {"code": move, "context_id": context_id})
    if moved.get("error"):  # a context elsewhere than asked would read and write the wrong files
        await sandbox.call("DELETE", f"/api/contexts/{context_id}")
        return PlainTextResponse(f"cwd: cannot enter {cwd}", 400)
    return JSON({"id": context_id, "language": language, "cwd": cwd})


async def list_contexts(sandbox: SandboxClient, _: Request) -> Response:
    """GET /contexts: all of the sandbox, with their language."""
    document = await sandbox.require("GET", "/api/contexts")
    return JSON(
        [
            {"id": text_of(each, "id"), "language": text_of(each, "language"), "cwd": HOME}
            for each in objects_of(document, "contexts")
        ]
    )


async def restart_context(sandbox: SandboxClient, context_id: str) -> Response:
    """POST /contexts/{id}/restart: drop its variables; 404 for an unknown one."""
    return await _on_context(sandbox, "POST", f"/api/contexts/{context_id}/restart", context_id)


async def delete_context(sandbox: SandboxClient, context_id: str) -> Response:
    """DELETE /contexts/{id}: end it with all that runs in it; 404 for an unknown one."""
    return await _on_context(sandbox, "DELETE", f"/api/contexts/{context_id}", context_id)


async def _on_context(sandbox: SandboxClient, method: str, target: str, context_id: str) -> Response:
    status, document = await sandbox.call(method, target)
    if status == 404:
        return PlainTextResponse(f"Context {context_id} not found", 404)
    if status >= 400:
        return PlainTextResponse(error_text(document, status), status)
    return Response(status_code=200)


def _language(body: Mapping[str, Any]) -> str:
    value = body.get("language") or ""
    if not isinstance(value, str) or value.lower() not in _LANGUAGES:
        raise BadRequestError(f"language {str(value)[:32]!r} is not supported: there are python and bash")
    return _LANGUAGES[value.lower()]


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''")
