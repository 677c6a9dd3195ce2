"""Dify's sandbox service: POST /v1/sandbox/run and the dependencies. Every run has a sandbox of its own.

Source: github.com/langgenius/dify-sandbox, internal/server and internal/types; Dify's client is
api/core/helper/code_executor/code_executor.py. It reads `code`, `message`, `data.stdout` and `data.error`.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_json
from gateway.api.oneshot.native import read_language, script_program
from gateway.api.oneshot.runs import OneShotRuns, read_timeout
from gateway.api.sandbox_json import text_of
from gateway.api.sessions import choose_runtime
from gateway.core.errors import BadRequestError
from gateway.core.interfaces import RuntimeCatalog

_MAX_BODY_BYTES = 4 << 20
_TIMEOUT_S = 30.0  # below the 60 s that Dify's client waits, with room for a cold start
# What user code finds in the shared environment (docs/interpreter.md); Dify shows the list, and installs nothing.
_PACKAGES = ("numpy", "pandas", "matplotlib", "scipy", "pillow", "openpyxl", "requests", "IPython")


class DifyAPI:
    """The handlers of Dify's sandbox service."""

    def __init__(self, runs: OneShotRuns, catalog: RuntimeCatalog) -> None:
        self._runs = runs
        self._catalog = catalog

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "dify_run": self._run,
            "dify_list_dependencies": self._dependencies,
            "dify_update_dependencies": self._update,
            "dify_refresh_dependencies": self._dependencies,
        }

    async def _run(self, request: Request) -> Response:
        body = await read_json(request, _MAX_BODY_BYTES)
        if not isinstance(body, dict):
            raise BadRequestError("the body must be a JSON object")
        code, preload = body.get("code"), body.get("preload") or ""
        if not isinstance(code, str) or not code or not isinstance(preload, str):
            raise ParamError("code", "expected text")
        program = script_program(
            read_language(body.get("language")), f"{preload}\n{code}" if preload else code, read_timeout(_TIMEOUT_S)
        )
        outcome = await self._runs.run(request, choose_runtime(self._catalog, request).key, program)
        answer = outcome.answer
        error = text_of(answer, "stderr", "")
        if answer.get("timed_out"):
            error += f"error: timeout after {_TIMEOUT_S:g} s\n"
        elif answer.get("exit_code") and not error:
            error = f"exit status {answer['exit_code']}\n"
        return _answer({"stdout": text_of(answer, "stdout", ""), "error": error})

    async def _update(self, request: Request) -> Response:
        """The same, for a language that there is."""
        body = await read_json(request, _MAX_BODY_BYTES)
        if not isinstance(body, dict):
            raise BadRequestError("the body must be a JSON object")
        read_language(body.get("language"))
        return await self._dependencies(request)

    async def _dependencies(self, request: Request) -> Response:
        """What there is. Nothing is installed: that is the environment's or the image's."""
        return _answer({"dependencies": [{"name": name, "version": ""} for name in _PACKAGES]})


def _answer(data: dict[str, Any]) -> Response:
    return JSON({"code": 0, "message": "success", "data": data})
