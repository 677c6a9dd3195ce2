"""No regular expression takes more than linear time on what a stranger sends.

Every pattern of both packages is found in the source, with the methods that are called on it. An adversary's inputs
are made from the pattern's own characters: a beginning, a piece repeated, an end that does not match. The steps of a
backtracking match may double with the input, not more.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.units import parse_duration, parse_quantity
from picod.compat import go_format
from tests.support.backtracking import worst_growth

_TOP = Path(__file__).resolve().parents[2]
_ANYWHERE = ("search", "sub", "subn", "split", "findall", "finditer")
_METHODS = (*_ANYWHERE, "match", "fullmatch")


_MAKES_PATTERNS = re.compile(rf"\bre\.(?:compile|{'|'.join(_METHODS)})\b")


def _modules() -> Iterator[tuple[Path, str]]:
    for package in ("gateway", "picod", "wakegate_client"):
        for file in sorted((_TOP / package).rglob("*.py")):
            yield file, file.read_text(encoding="utf-8")


def _is_re(call: ast.Call, names: tuple[str, ...]) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
        and function.attr in names
    )


def _texts(tree: ast.Module) -> dict[str, Any]:
    """Constants at the top of a module by name: modules that import `re` late have their patterns there as text."""
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }


def _patterns() -> list[tuple[str, re.Pattern[Any], str]]:
    """(where, pattern, the most demanding method that is called on it); a pattern that cannot be found fails.

    Each worker of a test run does this, so only what makes patterns is parsed (of all modules it takes 5 s of CPU), and
    what is called on them is looked for in the text, where a comment may make a pattern's test stricter.
    """
    modules = list(_modules())
    compiled: list[tuple[Path, ast.Call, str]] = []
    found: list[tuple[str, re.Pattern[Any], str]] = []
    for file, source in modules:
        if not _MAKES_PATTERNS.search(source):
            continue
        tree = ast.parse(source)
        known = set()
        texts = _texts(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _is_re(node.value, ("compile",)):
                assert isinstance(node.targets[0], ast.Name), f"{file}:{node.lineno}: name the pattern"
                compiled.append((file, node.value, node.targets[0].id))
                known.add(node.value)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _is_re(node, _METHODS) and node not in known:
                where = f"{file.relative_to(_TOP)}:{node.lineno}"
                first = node.args[0]
                text = first.value if isinstance(first, ast.Constant) else texts.get(getattr(first, "id", ""))
                assert isinstance(text, str | bytes), f"{where}: only constant patterns can be checked"
                assert isinstance(node.func, ast.Attribute)
                found.append((where, re.compile(text), node.func.attr))
            elif isinstance(node, ast.Call) and _is_re(node, ("compile",)):
                assert node in known, f"{file}:{node.lineno}: compile patterns at the top of the module, by name"
    used: dict[str, set[str]] = {}
    uses = re.compile(rf"\b({'|'.join({name for _, _, name in compiled})})\.({'|'.join(_METHODS)})\b")
    for _, source in modules:
        for name, method in uses.findall(source):
            used.setdefault(name, set()).add(method)
    for file, call, name in compiled:
        methods = used.get(name, set())
        method = next((each for each in _ANYWHERE if each in methods), "match" if "match" in methods else "fullmatch")
        found.append((f"{file.relative_to(_TOP)}:{call.lineno}", _evaluate(call, file, name), method))
    return found


def _evaluate(call: ast.Call, file: Path, name: str) -> re.Pattern[Any]:
    """The pattern as the call says it, else the module's own: not every module of userside can be imported here."""
    try:
        pattern = eval(compile(ast.Expression(call), str(file), "eval"), {"re": re})
    except NameError:
        module = importlib.import_module(".".join(file.relative_to(_TOP).with_suffix("").parts))
        pattern = getattr(module, name)
    assert isinstance(pattern, re.Pattern)
    return pattern


@pytest.mark.parametrize(("where", "pattern", "method"), [pytest.param(*each, id=each[0]) for each in _patterns()])
def test_steps_of_a_pattern_grow_no_faster_than_its_input(where: str, pattern: re.Pattern[Any], method: str) -> None:
    """Twice the input is at most twice the steps; quadratic ones take four times as many."""
    growth, piece = worst_growth(pattern, method)

    assert growth < 2.5, f"{where}: {pattern.pattern!r} under {method} grows {growth:.1f}-fold with {piece!r} doubled"


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"(\d+(?:\.\d*)?|\.\d+)(ns|us|ms|s|m|h)", "finditer"),
        (r"(a+)+b", "fullmatch"),
        (r"(a|a)*b", "fullmatch"),
        (r"\s*,\s*\s*x", "search"),
        (r"a*a*b", "match"),
        (r"(.*)=(.*);", "search"),
    ],
)
def test_the_measure_finds_superlinear_patterns(pattern: str, method: str) -> None:
    """Nested, ambiguous and adjacent repeats, and a search that starts anew within a repeat."""
    assert worst_growth(re.compile(pattern), method)[0] > 2.5


@pytest.mark.parametrize("text", ["9" * 200_000 + "x", "9" * 200_000, "1s" * 100_000, "." * 200_000, "0" * 65 + "s"])
def test_notations_are_refused_by_length_before_they_are_read(text: str) -> None:
    """Durations and quantities have 64 characters at most, and the error quotes no more of them."""
    for parse in (parse_duration, parse_quantity, go_format.parse_duration):
        with pytest.raises(ValueError, match=r"duration|quantity") as caught:
            parse(text)
        assert len(str(caught.value)) < 300
