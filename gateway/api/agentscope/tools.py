"""The tools of AgentScope's base sandbox: a Python that keeps its variables, and a shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.errors import ParamError
from gateway.api.sandbox_json import BadAnswerError, objects_of, parse_object, text_of
from gateway.api.tools.sandbox import ToolSandbox
from gateway.core.errors import BadRequestError
from gateway.core.model import SandboxReply

_RUN_TIMEOUT_S = 600.0  # their server has no limit; what runs for longer than this has no reader any more
_MAX_ERROR_CHARS = 500


def _tool(name: str, argument: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "json_schema": {
            "type": "function",
            "function": {
                "name": name,
                "description": description,
                "parameters": {
                    "type": "object",
                    "properties": {argument: {"type": "string", "description": f"The {argument} to run."}},
                    "required": [argument],
                },
            },
        },
    }


TOOLS: Mapping[str, Mapping[str, Any]] = {
    "generic": {
        "run_ipython_cell": _tool("run_ipython_cell", "code", "Run Python code; variables stay for the next call."),
        "run_shell_command": _tool("run_shell_command", "command", "Run a shell command."),
    }
}


async def call_tool(sandbox: ToolSandbox, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run a tool. Returns MCP's CallToolResult, as their server dumps it.

    Raises ParamError, BadRequestError with picod's own message, BadAnswerError, and what SandboxCaller raises.
    """
    if name == "run_ipython_cell":
        code = _argument(arguments, "code")
        return _cell(await _run(sandbox, "/api/run_code", {"code": code, "language": "python"}))
    if name == "run_shell_command":
        command = ["sh", "-c", _argument(arguments, "command")]
        return _command(await _run(sandbox, "/api/execute", {"command": command}))
    raise ParamError("tool_name", f"there is no {name[:64]!r}; there are {', '.join(TOOLS['generic'])}")


def _argument(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise ParamError(f"arguments.{name}", "expected text")
    return value


async def _run(sandbox: ToolSandbox, target: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    answer = await sandbox.start(target, {**body, "timeout": f"{_RUN_TIMEOUT_S:g}s"}, _RUN_TIMEOUT_S)
    if not isinstance(answer, SandboxReply):
        return answer
    text = text_of(await parse_object(answer.body), "error", "")[:_MAX_ERROR_CHARS]
    if answer.status < 500:
        raise BadRequestError(text or f"the sandbox answered {answer.status}")
    raise BadAnswerError(text or f"the sandbox answered {answer.status}")


def _cell(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's outcome: as IPython's shell, which prints the last value and tracebacks among the rest."""
    printed = text_of(answer, "stdout", "")
    for result in objects_of(answer, "results"):
        if isinstance(shown := result.get("text/plain"), str):
            printed += f"{shown}\n"
    error = answer.get("error")
    if isinstance(error, dict):
        lines = error.get("traceback")
        trace = "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines or "")
        printed += (trace or f"{error.get('name')}: {error.get('value')}") + "\n"
    return _result([("stdout", printed)], text_of(answer, "stderr", ""))


def _command(answer: Mapping[str, Any]) -> dict[str, Any]:
    found = _result([("stdout", text_of(answer, "stdout", ""))], text_of(answer, "stderr", ""))
    found["content"].append(_item("returncode", str(answer.get("exit_code"))))
    return found


def _result(items: list[tuple[str, str]], stderr: str) -> dict[str, Any]:
    """An error is what wrote to stderr, whatever it returned: so their server has it."""
    content = [_item(name, text) for name, text in [*items, *([("stderr", stderr)] if stderr else [])]]
    return {"meta": None, "content": content, "structuredContent": None, "isError": bool(stderr)}


def _item(name: str, text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "annotations": None, "meta": None, "description": name}
