"""Tools that a runtime declares: read from its manifest, and turned into commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.api.tools.arguments import ArgumentError
from gateway.api.tools.catalogue import BUILT_IN
from gateway.api.tools.declared import argv, check
from gateway.core.model import DeclaredTool
from gateway.runtimes.files import Files
from gateway.runtimes.manifest import parse_runtime
from gateway.runtimes.schema import API_VERSION
from gateway.runtimes.tools import BUILT_IN_NAMES, MAX_ARGUMENT

SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "n": {"type": "integer", "minimum": 1}},
    "required": ["path"],
    "additionalProperties": False,
}
USUAL: dict[str, Any] = {"name": "t", "description": "d", "parameters": SCHEMA, "command": ["wc"]}
SOURCE = "import math\ndef area(r, unit='m'):\n    return {'area': round(math.pi * r * r, 2), 'unit': unit}\n"


def parse(*entries: Any, folder: Path | None = None) -> tuple[tuple[DeclaredTool, ...], list[str]]:
    problems: list[str] = []
    files = None if folder is None else Files(folder)
    spec = {"template": {}, "wakegate": {"tools": list(entries)}}
    document = {"apiVersion": API_VERSION, "kind": "CodeInterpreter", "metadata": {"name": "x"}, "spec": spec}
    runtime = parse_runtime(document, "m", problems, files=files)
    return runtime.tools if runtime else (), [problem.removeprefix("m: spec.wakegate.") for problem in problems]


def test_declared_tool_is_read_with_its_defaults(tmp_path: Path) -> None:
    """A command, and a function from a file beside the manifest or from the manifest itself."""
    (tmp_path / "area.py").write_text(SOURCE)
    python = {"name": "area", "description": "d", "parallel": True, "timeout": "5s"}
    tools, problems = parse(
        {**USUAL, "command": ["wc", "-w", "{path}"]},
        {**python, "python": {"file": "area.py", "function": "area"}},
        {**python, "name": "same", "python": {"source": SOURCE, "function": "area"}},
        folder=tmp_path,
    )
    assert problems == []
    assert tools[0] == DeclaredTool("t", "d", SCHEMA, ("wc", "-w", "{path}"), ordered=True, timeout=60.0)
    assert (tools[1].function, tools[1].source, tools[1].ordered, tools[1].timeout) == ("area", SOURCE, False, 5.0)
    assert tools[2].source == SOURCE
    assert tools[1].parameters == {"type": "object", "properties": {}, "additionalProperties": False}


def test_declared_tools_cannot_take_built_in_names() -> None:
    """The list that manifests are checked against is that of the tools there are."""
    assert frozenset(tool.name for tool in BUILT_IN) == BUILT_IN_NAMES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "run_python"}, "tools[0].name"),
        ({"name": "a b"}, "tools[0].name"),
        ({"description": ""}, "tools[0].description"),
        ({"parameters": {"type": "array"}}, "tools[0].parameters"),
        ({"parameters": {"type": "object", "properties": {"a": {"type": "text"}}}}, "tools[0].parameters.properties.a"),
        ({"command": "wc"}, "tools[0].command"),
        ({"command": ["wc", "{file}"]}, "{file} stands for no parameter"),
        ({"python": {"source": "x", "function": "f"}}, "either command or python"),
        ({"colour": 1}, "tools[0].colour: unknown field"),
        ({"timeout": "never"}, "tools[0].timeout"),
        ({"parallel": "yes"}, "tools[0].parallel"),
    ],
)
def test_declared_tool_that_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    """With the field's path."""
    _, problems = parse({**USUAL, **change})
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ({"function": "f"}, "python.file"),
        ({"file": "absent.py", "function": "f"}, "cannot be read: No such file"),
        ({"source": "def f(:", "function": "f"}, "expected Python code"),
        ({"source": "def g(): pass", "function": "f"}, "python.function"),
        ({"source": "#" * MAX_ARGUMENT + "\ndef f(): pass", "function": "f"}, "at most"),
        ([], "expected a mapping with function"),
    ],
)
def test_declared_function_that_is_wrong_is_named(python: Any, message: str, tmp_path: Path) -> None:
    """Before anything starts, not when a model calls it."""
    _, problems = parse({"name": "t", "description": "d", "python": python}, folder=tmp_path)
    assert len(problems) == 1
    assert message in problems[0]


def test_tool_declared_twice_is_refused() -> None:
    """A name means one tool."""
    assert parse(USUAL, USUAL)[1] == ["tools[1].name: expected a name that no other tool has, got 't'"]


def test_declared_arguments_are_checked_against_the_schema() -> None:
    """Errors have the path of the argument; a reference resolves to nothing outside of the schema."""
    tool = DeclaredTool("t", "d", SCHEMA, ("wc",))
    check(tool, {"path": "x", "n": 2})
    for wrong, message in (
        ({}, "'path' is a required property"),
        ({"path": 5}, "path: 5 is not"),
        ({"path": "x", "n": 0}, "n:"),
    ):
        with pytest.raises(ArgumentError, match=message):
            check(tool, wrong)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 100_000 + "!"),
        ({"patternProperties": {"^(a|a)*$": {"type": "string"}}, "type": "object"}, {"a" * 50_000 + "!": "", "aa": 5}),
        ({"patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False, "type": "object"},
         {"a" * 50_000 + "!": 1}),
        ({"type": "array", "uniqueItems": True}, [[index, {"a": "b"}] for index in range(50_000)] + [5, 5.0]),
    ],
)  # fmt: skip
def test_declared_schema_is_applied_in_linear_time(schema: dict[str, Any], value: Any) -> None:
    """Expressions that Python's own engine takes years for, and lists that were compared each with each."""
    tool = DeclaredTool("t", "d", {"type": "object", "properties": {"x": schema}}, ("wc",))
    with pytest.raises(ArgumentError, match=r"^x"):
        check(tool, {"x": value})


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": {"x": {"type": "string", "pattern": "^(?!a)"}}}, "parameters.properties.x.pattern"),
        ({"patternProperties": {"(a)\\1": {}}}, "parameters.patternProperties"),
        ({"allOf": [{"pattern": "x{2000}"}]}, "parameters.allOf[0].pattern"),
        ({"unevaluatedProperties": False}, "parameters.unevaluatedProperties"),
    ],
)
def test_declared_schema_that_cannot_be_applied_in_linear_time_is_refused(schema: dict[str, Any], path: str) -> None:
    """When the runtime is read, naming the place."""
    (problem,) = parse({**USUAL, "parameters": {"type": "object", **schema}, "command": ["wc"]})[1]
    assert path in problem


def test_declared_command_is_an_argv_that_no_argument_breaks_out_of() -> None:
    """Each place is one word or a part of one; an absent optional word is left out."""
    tool = DeclaredTool("t", "d", SCHEMA, ("head", "-n", "{n}", "--file={path}", "{path}", "{n}"))
    assert argv(tool, {"path": "a b; rm -rf /'\"$(x)"}) == [
        "head",
        "-n",
        "--file=a b; rm -rf /'\"$(x)",
        "a b; rm -rf /'\"$(x)",
    ]
    assert argv(tool, {"path": "{n}", "n": 3})[2:] == ["3", "--file={n}", "{n}", "3"]
    for path in ("a\0b", "x" * MAX_ARGUMENT * 2):
        with pytest.raises(ArgumentError):
            argv(tool, {"path": path})


def test_declared_function_is_called_with_the_arguments_as_keywords() -> None:
    """What it returns is printed, as JSON unless it is text; what it raises is its failure."""
    tool = DeclaredTool("area", "d", {"type": "object"}, function="area", source=SOURCE)

    def run(**arguments: Any) -> subprocess.CompletedProcess[str]:
        command = argv(tool, arguments)
        return subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False)

    assert run(r=1).stdout == '{"area": 3.14, "unit": "m"}\n'
    failed = run(radius=1)
    assert failed.returncode == 1
    assert "unexpected keyword argument 'radius'" in failed.stderr
