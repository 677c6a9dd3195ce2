"""Parses and checks the tools for models that a runtime declares (spec.wakegate.tools), when the runtime is read.

tools:
  - name: count_words
    description: Count the words of a file.
    parameters: {type: object, properties: {path: {type: string}}, required: [path]}
    command: [wc, -w, "{path}"]        # an argv; {name} is an argument, alone or within a word
  - name: rate
    description: The rate of a currency.
    parameters: {type: object, properties: {currency: {type: string}}}
    python: {file: rates.py, function: rate}   # beside the manifest; or `source:` with the code itself
    parallel: true                     # may run beside other calls of the same message
    timeout: 30s
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.core.model import DeclaredTool
from gateway.core.read_file import read_file
from gateway.core.units import parse_duration
from gateway.runtimes.files import Files
from gateway.runtimes.schema_wakegate import TOOL_NAME
from gateway.runtimes.tool_schema import schema_problems

Problem = Callable[[str, str, Any], None]  # (field path, what would be right, what was there)

BUILT_IN_NAMES = frozenset(("run_python", "run_shell", "read_file", "write_file", "list_files"))
PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")  # of an argument in a command
# Linux takes at most 128 KiB in one argument of a command (MAX_ARG_STRLEN).
MAX_ARGUMENT = 120 << 10
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what OpenAI and Anthropic take for a function's name
_MAX_TIMEOUT_S = 3600.0


def parse_tools(entries: Sequence[Any], prefix: str, files: Files | None, problem: Problem) -> tuple[DeclaredTool, ...]:
    """Parse all entries; problems go to `problem`. `files`: those that may define functions, None for none."""
    tools: dict[str, DeclaredTool] = {}
    for index, entry in enumerate(entries):
        path = f"{prefix}[{index}]"
        tool = None if entry is None else _parse(entry, path, files, problem)
        if tool is not None and tool.name in tools:
            problem(f"{path}.name", "expected a name that no other tool has", tool.name)
        elif tool is not None:
            tools[tool.name] = tool
    return tuple(tools.values())


def _parse(entry: Mapping[str, Any], path: str, files: Files | None, problem: Problem) -> DeclaredTool | None:
    name, description = entry["name"], entry["description"].strip()
    if not _NAME.fullmatch(name) or name in BUILT_IN_NAMES:  # the schema's $ lets a line's end through
        problem(f"{path}.name", f"expected {TOOL_NAME}", name)
        return None
    if not description:
        problem(f"{path}.description", "expected text that tells a model what it does", entry["description"])
        return None
    parameters = _parameters(entry.get("parameters"), f"{path}.parameters", problem)
    if ("command" in entry) == ("python" in entry):
        problem(path, "expected either command or python", sorted(map(str, entry)))
        return None
    command = _command(entry["command"], parameters, f"{path}.command", problem) if "command" in entry else ()
    function, source = _function(entry["python"], f"{path}.python", files, problem) if "python" in entry else ("", "")
    return DeclaredTool(
        name,
        description,
        parameters,
        command,
        function,
        source,
        ordered=not entry.get("parallel", False),
        timeout=read_timeout(entry.get("timeout"), f"{path}.timeout", problem),
    )


def _parameters(value: Mapping[str, Any] | None, path: str, problem: Problem) -> Mapping[str, Any]:
    if value is None:  # no arguments at all, rather than any: a model that invents one gets an error
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if value.get("type") != "object":
        problem(path, "expected a JSON schema with type: object", value)
        return {}
    for where, expected, found in schema_problems(value):
        problem(f"{path}.{where}" if where else path, expected, found)
    return dict(value)


def _command(words: Sequence[str], parameters: Mapping[str, Any], path: str, problem: Problem) -> tuple[str, ...]:
    if any("\0" in word for word in words):
        problem(path, "expected a list of words, the program first", list(words))
        return ()
    known = parameters.get("properties")
    for word in words:
        for place in PLACE.findall(word):
            if not isinstance(known, Mapping) or place not in known:
                problem(path, f"{{{place}}} stands for no parameter; expected one of the schema's properties", word)
    return tuple(words)


def _function(value: Mapping[str, Any], path: str, files: Files | None, problem: Problem) -> tuple[str, str]:
    """The function's name and the code that defines it; both empty if either is invalid."""
    source = value.get("source")
    where = f"{path}.source"
    if source is None:
        where = f"{path}.file"
        source = _read(value.get("file"), where, files, problem)
    if not isinstance(source, str) or not source:
        if "source" in value:
            problem(where, "expected Python code", source)
        return "", ""
    if len(source.encode("utf-8", "replace")) > MAX_ARGUMENT:
        problem(where, f"expected at most {MAX_ARGUMENT} bytes", len(source))
        return "", ""
    # Parsed and never imported here: a manifest's author is not trusted with code in the gateway.
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        problem(where, f"expected Python code: {error}", value.get("file", "the source"))
        return "", ""
    if not any(isinstance(each, ast.FunctionDef) and each.name == value["function"] for each in tree.body):
        problem(f"{path}.function", "expected the name of a function that the code defines", value["function"])
    return value["function"], source


def _read(name: Any, path: str, files: Files | None, problem: Problem) -> str:
    if not isinstance(name, str) or not name:
        problem(path, "expected the name of a Python file", name)
    elif files is None:
        problem(path, "there are no files beside this manifest; expected `source` with the code itself", name)
    else:
        try:
            return read_file(files.resolve(name), MAX_ARGUMENT).decode("utf-8")
        except (OSError, ValueError) as error:
            problem(path, f"cannot be read: {getattr(error, 'strerror', None) or error}", name)
    return ""


def read_timeout(value: Any, path: str, problem: Problem) -> float:
    """Seconds that a call may take."""
    if value is None:
        return 60.0
    try:
        seconds = parse_duration(value) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        seconds = -1.0
    if not 0 < seconds <= _MAX_TIMEOUT_S:  # written this way round, NaN fails too
        problem(path, "expected a duration above zero, at most 1h", value)
        return 60.0
    return seconds
