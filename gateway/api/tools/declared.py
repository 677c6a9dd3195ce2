"""Tools that a runtime declares (spec.wakegate.tools): from a model's arguments to an argv.

A command is an argv, never shell text, so no argument can break out of its place. A Python function runs in a fresh
interpreter of the sandbox; what it returns is printed, as JSON unless it is text.
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
    """One call. Raises ArgumentError where the arguments do not fit the tool's schema."""
    await asyncio.to_thread(check, tool, arguments)  # up to 8 MiB of arguments, by validators written in Python
    return await execute(sandbox, argv(tool, arguments), tool.timeout)


def check(tool: DeclaredTool, arguments: Mapping[str, Any]) -> None:
    """Check the arguments against the tool's schema. Raises ArgumentError that names the place."""
    error = first_error(tool.parameters, dict(arguments))
    if error is not None:
        raise ArgumentError(error)


def argv(tool: DeclaredTool, arguments: Mapping[str, Any]) -> list[str]:
    """The command to run. Raises ArgumentError for what no command could take."""
    if tool.function:
        words = ["python3", "-c", _CALL_FUNCTION, tool.source, tool.function, orjson.dumps(dict(arguments)).decode()]
    else:
        words = [word for each in tool.command if (word := _filled(each, arguments)) is not None]
    for word in words:
        if "\0" in word or len(word.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT:
            raise ArgumentError(f"an argument holds a NUL character, or is larger than {MAX_ARGUMENT} bytes")
    return words


def _filled(word: str, arguments: Mapping[str, Any]) -> str | None:
    """One word of the template; None where it is nothing but a place whose argument is absent."""
    whole = PLACE.fullmatch(word)
    if whole is not None and arguments.get(whole[1]) is None:
        return None
    return PLACE.sub(lambda place: _as_word(arguments.get(place[1])), word)


def _as_word(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
