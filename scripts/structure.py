"""Print the packages, what imports what, import cycles, the longest modules and functions, and how many comments.

`--check` fails on a cycle, and on a package that docs/architecture.md does not name.

    .venv/bin/python scripts/structure.py [--check] [--functions N]

Imports under `if TYPE_CHECKING` and inside functions count like any other: the reader has to follow them all the same.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

TOP = ("gateway", "picod", "wakegate_client")
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOR_TOOLS = ("#!", "# fmt:", "# noqa", "# type:", "# pragma")


def unit(module: str) -> str:
    """The package or module, one level below the top, that a module belongs to."""
    return ".".join(module.split(".")[:2])


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node, by Tarjan's algorithm (SIAM J. Comput. 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        # `low` is the smallest index that the node's subtree reaches; where it is the node's own, the subtree above it
        # on the stack is one component.
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            # A node that has left the stack belongs to a component that is complete.
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def layers(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Nodes by their longest path down, the lowest layer first; empty if there is a cycle."""
    depth: dict[str, int] = {}
    try:
        for node in TopologicalSorter(edges).static_order():
            # static_order gives a node after everything that it imports, so those depths are known.
            depth[node] = 1 + max((depth[other] for other in edges.get(node, ())), default=-1)
    except CycleError:
        return []
    return [sorted(n for n in depth if depth[n] == level) for level in range(max(depth.values()) + 1)]


def functions() -> list[tuple[int, str]]:
    """(lines, path:line name) of every function, longest first."""
    found = []
    for top in TOP:
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    found.append((lines, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"))
    return sorted(found, reverse=True)


def comments(path: Path) -> tuple[int, int]:
    """(lines of comments, lines of code) of a module. Blank lines and docstrings are neither.

    A comment beside code counts as one, and so does each line of a longer one. What only tools read does not.
    """
    found, code = 0, set[int]()
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    before = tokenize.NEWLINE
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                found += not token.string.startswith(FOR_TOOLS)
                continue
            # A string that begins a statement is a docstring.
            is_docstring = token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT)
            if token.type not in skipped and not is_docstring:
                code.update(range(token.start[0], token.end[0] + 1))
            if token.type not in (tokenize.NL, tokenize.DEDENT, tokenize.ENCODING):
                before = token.type
    return found, len(code)


def print_sizes(top: str, longest: int) -> None:
    """Print the longest modules of a top package, and how many comments each of its packages has."""
    lines: list[tuple[int, str]] = []
    counted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path in sorted((ROOT / top).rglob("*.py")):
        lines.append((len(path.read_text().splitlines()), str(path.relative_to(ROOT))))
        found, code = comments(path)
        inside = path.relative_to(ROOT / top).parts
        for name in {top, f"{top}/{inside[0]}" if len(inside) > 1 else top}:
            counted[name][0] += found
            counted[name][1] += code
    print(f"\n{top}: lines of comments per 100 of code, and the longest modules (lines):")
    for name, (found, code) in sorted(counted.items()):
        print(f"  {100 * found / max(code, 1):4.1f} {name}")
    for number, name in sorted(lines, reverse=True)[:longest]:
        print(f"  {number:4} {name}")


def read_imports() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """What each module imports, and what each package or module right below a top does."""
    # Without a cache: it would lie in the checkout.
    graph = grimp.build_graph(*TOP, cache_dir=None)
    modules: dict[str, set[str]] = {}
    units: dict[str, set[str]] = defaultdict(set)
    for module in sorted(graph.modules):
        # `from gateway import __version__` does not count: the top package itself imports nothing.
        modules[module] = set(graph.find_modules_directly_imported_by(module)) - set(TOP)
        units[unit(module)] |= {unit(other) for other in modules[module]} - {unit(module)}
    return modules, units


def print_packages(top: str, modules: Mapping[str, set[str]], units: Mapping[str, set[str]]) -> None:
    """Print one line for each package, the highest layer first."""
    inner = {
        name: {other for other in others if other.startswith(f"{top}.")}
        for name, others in units.items()
        if name.startswith(f"{top}.")
    }
    levels = layers(inner)
    edges = sum(len(others) for others in inner.values())
    print(f"\n{top}: {len(inner)} packages and modules, {len(levels)} layers, {edges} import edges")
    for number, level in reversed(list(enumerate(levels, 1))):
        for name in level:
            size = sum(1 for module in modules if unit(module) == name)
            imported = ", ".join(sorted(other.split(".")[1] for other in inner[name])) or "none of them"
            print(f"  {number}  {name.partition('.')[2]:15} {size:3} modules  imports {imported}")


def unnamed(modules: Mapping[str, set[str]]) -> list[str]:
    """Packages and top-level modules that the tables of docs/architecture.md do not name, as `gateway/core`.

    A row names in its first cell what it is about, in full or without the folder that the name before it has:
    `gateway/app`, `build`. A package inside another may be named in the row of that one instead: `openai/`.
    """
    named = set()
    for first, rest in re.findall(r"^\| (`[^|]*) \|(.*)", PAGE.read_text(), re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", first):
            folder, _, last = name.rpartition("/") if "/" in name else (folder, "", name)
            named.add(f"{folder}/{last}")
            named.update(f"{folder}/{last}/{inner}" for inner in re.findall(r"`(\w+)/`", rest))
    found = {unit(module) for module in modules if module not in TOP}
    found |= {name for name in modules if name not in TOP and (ROOT / name.replace(".", "/")).is_dir()}
    # A package that only holds others is named by them: gateway/provider by gateway/provider/local.
    holders = {name.rpartition("/")[0] for name in named}
    paths = {name.replace(".", "/") for name in found if not name.endswith("__main__")}
    return sorted(paths - named - holders)


def main() -> int:
    """Print the structure. Returns the exit status, 1 with --check if it is not as it should be."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="print only what is wrong, and fail if anything is")
    options.add_argument("--functions", type=int, default=20, metavar="N", help="how many of the longest functions")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    modules, units = read_imports()
    circles = [("modules", part) for part in cycles(modules)] + [("packages", part) for part in cycles(units)]
    for kind, part in circles:
        print(f"import cycle of {kind}: {' '.join(part)}")
    missing = unnamed(modules)
    for name in missing:
        print(
            f"{name} is not in the tables of {PAGE.relative_to(ROOT)}: add a row, or name it in the row of its folder"
        )
    if arguments.check:
        return 1 if circles or missing else 0
    for top in TOP:
        print_packages(top, modules, units)
    if not circles:
        print("\nno import cycles")
    for top in TOP:
        print_sizes(top, 10)
    print(f"\nthe {arguments.functions} longest functions (lines):")
    for lines, name in functions()[: arguments.functions]:
        print(f"  {lines:4} {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
