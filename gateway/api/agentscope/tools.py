"""The tools of AgentScope's sandboxes: a Python that keeps its variables, a shell, and those of `filesystem`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.agentscope.filesystem import FILESYSTEM_TOOLS
from gateway.api.errors import ParamError
from gateway.api.sandbox_json import BadAnswerError, objects_of, parse_object, text_of
from gateway.api.tools.sandbox import ToolSandbox
from gateway.api.workspace_files import NoSpaceError, WorkspaceFiles
from gateway.core.errors import BadRequestError, WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId

_RUN_TIMEOUT_S = 600.0  # their server has no limit; what runs for longer than this has no reader any more
_MAX_ERROR_CHARS = 500


def _tool(name: str, arguments: Mapping[str, str], description: str) -> dict[str, Any]:
    """A tool as `list_tools` shows it. `arguments`: their JSON types; one with a ? may be left out."""
    properties = {each.rstrip("?"): {"type": kind} for each, kind in arguments.items()}
    required = [each for each in arguments if not each.endswith("?")]
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"name": name, "json_schema": {"type": "function", "function": function}}


_GENERIC = {
    "run_ipython_cell": _tool(
        "run_ipython_cell", {"code": "string"}, "Run Python code; variables stay for the next call."
    ),
    "run_shell_command": _tool("run_shell_command", {"command": "string"}, "Run a shell command."),
}
_FILESYSTEM = {
    name: _tool(name, arguments, (run.__doc__ or "").strip()) for name, (run, arguments) in FILESYSTEM_TOOLS.items()
}
# Of each type of sandbox: its tools by the server that has them, as their image configures it.
TOOLS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "base": {"generic": _GENERIC},
    "filesystem": {"generic": _GENERIC, "filesystem": _FILESYSTEM},
}


async def call_tool(
    caller: SandboxCaller, session_id: SessionId, kind: str, name: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Run a tool of a sandbox of that type. Returns MCP's CallToolResult, as their server dumps it.

    Raises ParamError, BadRequestError with picod's own message, BadAnswerError, and what SandboxCaller raises.
    """
    sandbox = ToolSandbox(caller, session_id)
    if name == "run_ipython_cell":
        code = _argument(arguments, "code")
        return _cell(await _run(sandbox, "/api/run_code", {"code": code, "language": "python"}))
    if name == "run_shell_command":
        command = ["sh", "-c", _argument(arguments, "command")]
        return _command(await _run(sandbox, "/api/execute", {"command": command}))
    if "filesystem" in TOOLS[kind] and name in FILESYSTEM_TOOLS:
        return await _filesystem(WorkspaceFiles(caller, session_id), name, arguments)
    known = ", ".join(each for tools in TOOLS[kind].values() for each in tools)
    raise ParamError("tool_name", f"there is no {name[:64]!r}; there are {known}")


async def _filesystem(files: WorkspaceFiles, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A tool of the filesystem's. What is wrong with a file is a result, from which a model goes on; so MCP has it."""
    try:
        text, failed = await FILESYSTEM_TOOLS[name][0](files, arguments), False
    except WakegateError as error:
        if error.status >= 500 and not isinstance(error, NoSpaceError):
            raise
        text, failed = f"Error: {error}", True
    item = {"type": "text", "text": text, "annotations": None, "meta": None}
    return {"meta": None, "content": [item], "structuredContent": None, "isError": failed}


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
