"""Runs tools that a runtime declares (spec.wakegate.tools): checks a model's arguments and builds the command.

A command is an argv and never shell text, so no argument can change the command. A Python function runs in a new
interpreter in the sandbox, and its return value is printed, as JSON unless it is a string.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.api.tools.actions import execute
from gateway.api.tools.arguments import ArgumentError
from gateway.api.tools.results import ToolResult
from gateway.api.tools.sandbox import ToolSandbox
from gateway.core.model import DeclaredTool
from gateway.runtimes.tool_schema import first_error
from gateway.runtimes.tools import MAX_ARGUMENT, PLACE

# Source and arguments come as words of the command, which no shell reads. They are taken out of sys.argv again, since
# the function's author knows nothing of them.
_CALL_FUNCTION = """
import json, sys
source, function, arguments = sys.argv[1:4]
sys.argv[1:] = []
space = {"__name__": "__tool__"}
exec(compile(source, "<tool>", "exec"), space)
value = space[function](**json.loads(arguments))
if value is not None:
    print(value if isinstance(value, str) else json.dumps(value, default=str))
"""


async def run_declared(sandbox: ToolSandbox, tool: DeclaredTool, arguments: Mapping[str, Any]) -> ToolResult:
    """Run a call. Raises ArgumentError if the arguments do not match the tool's schema."""
    await asyncio.to_thread(check, tool, arguments)  # up to 8 MiB of arguments, by validators written in Python
    return await execute(sandbox, argv(tool, arguments), tool.timeout)


def check(tool: DeclaredTool, arguments: Mapping[str, Any]) -> None:
    """Check the arguments against the tool's schema. Raises ArgumentError with the path of the first error."""
    error = first_error(tool.parameters, dict(arguments))
    if error is not None:
        raise ArgumentError(error)


def argv(tool: DeclaredTool, arguments: Mapping[str, Any]) -> list[str]:
    """Build the command. Raises ArgumentError for arguments that execve refuses: NUL, or too long."""
    if tool.function:
        words = ["python3", "-c", _CALL_FUNCTION, tool.source, tool.function, orjson.dumps(dict(arguments)).decode()]
    else:
        words = [word for each in tool.command if (word := _filled(each, arguments)) is not None]
    for word in words:
        # Linux refuses a single word of more than 128 KiB (MAX_ARG_STRLEN), and NUL ends one.
        if "\0" in word or len(word.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT:
            raise ArgumentError(f"an argument holds a NUL character, or is larger than {MAX_ARGUMENT} bytes")
    return words


def _filled(word: str, arguments: Mapping[str, Any]) -> str | None:
    """One word of the template with its placeholders replaced; None if it is one placeholder without an argument."""
    whole = PLACE.fullmatch(word)
    if whole is not None and arguments.get(whole[1]) is None:
        return None
    return PLACE.sub(lambda place: _as_word(arguments.get(place[1])), word)


def _as_word(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
