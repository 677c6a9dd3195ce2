"""Finds what to run in a folder of Python code: by its syntax tree, without running any of it. Pure.

| kind | found by | how it is run |
|---|---|---|
| asgi | a module's `NAME = FastAPI(...)`, `Starlette(...)`, `Quart(...)` | uvicorn |
| wsgi | `NAME = Flask(...)` | a threaded server of the standard library |
| agentapp | `NAME = AgentApp(...)` | its own `run` |
| runnable | `NAME = ....compile(...)`, `create_agent(...)`, `a | b` of LangChain ... | an adapter: POST /invoke |
| named | any other object that was named | by what it has, in its sandbox |
| script | anything else | `python3 FILE`, which listens on $PORT |
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CANDIDATES = ("agent.py", "app.py", "main.py", "server.py", "agent_app.py", "graph.py")
_KINDS: Mapping[str, str] = {
    "FastAPI": "asgi", "Starlette": "asgi", "Quart": "asgi", "Flask": "wsgi", "AgentApp": "agentapp",
    "compile": "runnable", "create_agent": "runnable", "create_react_agent": "runnable", "RunnableLambda": "runnable",
    "RunnableSequence": "runnable", "AgentExecutor": "runnable",
}  # fmt: skip


class EntryError(Exception):
    """Nothing to run was found; the text says what was looked for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What to run: a module's object, or a script, relative to the folder."""

    kind: str
    file: str
    name: str = ""

    @property
    def module(self) -> str:
        """The module's dotted name."""
        return self.file.removesuffix(".py").replace("/", ".")


def find_entry(sources: Mapping[str, str], wanted: str = "") -> Entry:
    """The entry among files by their relative names. `wanted`: FILE.py, FILE.py:NAME or MODULE:NAME.

    Raises EntryError.
    """
    file, _, name = wanted.partition(":")
    if file and not file.endswith(".py"):
        file = file.replace(".", "/") + ".py"
    if file and file not in sources:
        raise EntryError(f"{file} is not in the folder")
    order = [file] if file else _ordered(sources)
    for each in order:
        for kind, found in _apps(each, sources[each]):
            if not name or found == name:
                return Entry(kind, each, found)
    if name:
        return Entry("named", file, name)  # what it is, is seen where it is imported
    for each in order:
        if file or "__main__" in sources[each] or len(order) == 1:
            return Entry("script", each)
    raise EntryError(
        "found no agent: expected FastAPI, Starlette, Flask, AgentApp or a LangChain runnable in a file such as"
        f" {', '.join(CANDIDATES[:3])}, or a script with `if __name__ == '__main__'`; name it with --entry"
    )


def _ordered(sources: Mapping[str, str]) -> Sequence[str]:
    first = [name for name in CANDIDATES if name in sources]
    return [*first, *sorted(name for name in sources if "/" not in name and name not in first)]


def _apps(file: str, source: str) -> list[tuple[str, str]]:
    """(kind, name) of each object at a module's top level that a server could take, the last one first."""
    # Parsed and never imported: an import runs the agent here, with this person's rights and without its packages.
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise EntryError(f"{file}, line {error.lineno}: {error.msg}: {(error.text or '').strip()[:200]}") from None
    except (ValueError, RecursionError) as error:
        raise EntryError(f"{file}: {error}") from None
    found = []
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        kind = _kind_of(value)
        if kind == "chain":
            kind = "runnable" if "langchain" in source else ""
        if kind:
            found += [(kind, target.id) for target in targets if isinstance(target, ast.Name)]
    return found[::-1]


def _kind_of(value: ast.expr | None) -> str:
    """What an expression makes; chain: `prompt | model`, which is a union of sets where nobody imports LangChain."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        return "chain"
    if not isinstance(value, ast.Call):
        return ""
    called = value.func
    kind = _KINDS.get(called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", ""), "")
    return "" if kind == "runnable" and _is_regex(called) else kind


def _is_regex(called: ast.expr) -> bool:
    """`re.compile(...)` makes no graph."""
    return (
        isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id in ("re", "regex")
    )
