"""The tools of a runtime, and their descriptions in the form of each model API. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.core.model import DeclaredTool, Runtime

MAX_TIMEOUT_S = 600
DEFAULT_TIMEOUT_S = 60


class ToolFormat(StrEnum):
    """The model API in whose form tools are listed."""

    CHAT = "chat"  # OpenAI chat.completions
    RESPONSES = "responses"  # OpenAI responses
    ANTHROPIC = "anthropic"
    MCP = "mcp"


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `ordered`: a call waits for the calls before it, and those after wait for it (tools/batches.py)."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of an object
    ordered: bool
    reads_only: bool = False
    declared: DeclaredTool | None = None  # of a runtime; None: built in


def _schema(required: Sequence[str], **properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_TIMEOUT = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": MAX_TIMEOUT_S,
    "description": f"Seconds until it is stopped, {DEFAULT_TIMEOUT_S} if absent.",
}
_PATH = "Path in the workspace, e.g. data.csv or /workspace/data.csv."

BUILT_IN: tuple[Tool, ...] = (
    Tool(
        "run_python",
        "Run Python code in a session that keeps its variables, imports and files between calls. Printed output, the "
        "value of the last expression and figures of matplotlib come back. numpy, pandas, matplotlib, scipy, pillow "
        "and openpyxl are installed. The working directory is /workspace.",
        _schema(["code"], code={"type": "string", "description": "Python source."}, timeout=_TIMEOUT),
        ordered=True,
    ),
    Tool(
        "run_shell",
        "Run a bash command line in /workspace. Standard output, standard error and the exit status come back. Each "
        "call is a shell of its own; several calls at once run at the same time.",
        _schema(["command"], command={"type": "string", "description": "Command line for bash."}, timeout=_TIMEOUT),
        ordered=False,
    ),
    Tool(
        "read_file",
        "Read a file of the workspace. Text comes back as text, images as images.",
        _schema(
            ["path"],
            path={"type": "string", "description": _PATH},
            offset={"type": "integer", "minimum": 0, "description": "First byte to read, 0 if absent."},
            length={"type": "integer", "minimum": 1, "description": "Bytes to read, as many as fit if absent."},
        ),
        ordered=False,
        reads_only=True,
    ),
    Tool(
        "write_file",
        "Write a text file into the workspace, replacing what was there. Missing folders are made.",
        _schema(
            ["path", "content"],
            path={"type": "string", "description": _PATH},
            content={"type": "string", "description": "The whole content of the file."},
        ),
        ordered=True,
    ),
    Tool(
        "list_files",
        "List the files of a folder of the workspace with their sizes.",
        _schema([], path={"type": "string", "description": "Folder in the workspace; the workspace itself if absent."}),
        ordered=False,
        reads_only=True,
    ),
)


def tools_of(runtime: Runtime | None) -> dict[str, Tool]:
    """All tools of a runtime by name, the built-in ones first."""
    tools = {tool.name: tool for tool in BUILT_IN}
    for each in runtime.tools if runtime is not None else ():
        tools[each.name] = Tool(each.name, each.description, each.parameters, each.ordered, declared=each)
    return tools


def describe(tools: Sequence[Tool], form: ToolFormat) -> list[dict[str, Any]]:
    """Describe tools in the form of one model API."""
    return [_FORMS[form](tool) for tool in tools]


def _chat(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _responses(tool: Tool) -> dict[str, Any]:
    # The API demands `strict`, and true would require every optional argument.
    return {"type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters,
            "strict": False}  # fmt: skip


def _anthropic(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}


def _mcp(tool: Tool) -> dict[str, Any]:
    hints = {"readOnlyHint": tool.reads_only, "openWorldHint": False}
    return {"name": tool.name, "description": tool.description, "inputSchema": tool.parameters, "annotations": hints}


_FORMS = {
    ToolFormat.CHAT: _chat,
    ToolFormat.RESPONSES: _responses,
    ToolFormat.ANTHROPIC: _anthropic,
    ToolFormat.MCP: _mcp,
}
