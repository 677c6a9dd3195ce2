"""Reads YAML files within bounds: a hostile file must not take much of the gateway's time or memory.

Size is checked before parsing, depth and number of values during parsing, and the size of expanded aliases before
construction. A `kind: List`, as `kubectl get -o yaml` writes it, is read as the documents in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gateway.core.read_file import read_file

try:
    from yaml import CSafeLoader as _AnyLoader  # thirty times as fast: 1 MiB takes 0.3 s instead of 10
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader as _AnyLoader  # type: ignore[assignment]

MAX_FILE_BYTES = 1 << 20  # a manifest has a few KiB; etcd takes objects of at most 1.5 MiB
_MAX_VALUES = 100_000  # in one file, with aliases expanded
_MAX_DEPTH = 100
_MAX_SCALAR_CHARS = 400  # of numbers and dates: Python parses sexagesimal numbers in quadratic time
_MAX_DIRECTIVES = 32  # libyaml compares each one with all before it: 26 s for 1 MiB of them
_YAML = "tag:yaml.org,2002:"
_TEXT = _YAML + "str"
_DATE = _YAML + "timestamp"
_MERGE = _YAML + "merge"
# What JSON has, and so a manifest; and the merge of a mapping.
_JSON_TAGS = frozenset(
    (_MERGE, *(_YAML + each for each in ("str", "int", "float", "bool", "null", "map", "seq", "value")))
)
_LISTS = {"List": "", "CodeInterpreterList": "CodeInterpreter", "AgentRuntimeList": "AgentRuntime"}


class _Loader(_AnyLoader):
    """Leaves dates as text, as Kubernetes does: JSON has none. And whole numbers have 64 bits."""


def _whole_number(loader: Any, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if not -(1 << 63) <= value < 1 << 63:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a whole number of more than 64 bits")
    return value


_Loader.add_constructor(_YAML + "int", _whole_number)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
    for first, resolvers in _AnyLoader.yaml_implicit_resolvers.items()
}


def find_files(paths: Iterable[Path], problems: list[str]) -> list[Path]:
    """Expand paths to files: of a folder, those that end in .yaml or .yml, sorted by name."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml") and p.is_file())
            if not inside:
                problems.append(f"{path}: no *.yaml or *.yml file in this folder")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            problems.append(f"{path}: no such file or folder")
    return files


def read_documents(file: Path, problems: list[str]) -> list[tuple[str, Any]]:
    """(where, document) of each document in a file; `where` is the file and, if it has several, the number."""
    try:
        data = read_file(file, MAX_FILE_BYTES)
        documents = [document for document in load_documents(data) if document is not None]
    except OSError as error:
        problems.append(f"{file}: cannot be read: {error.strerror}")
        return []
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: what Python does not take for a date, a number or UTF-8, though the syntax is right.
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        reason = str(getattr(error, "problem", None) or error)[:500].replace("\n", " ")
        problems.append(f"{file}:{line} is not YAML: {reason}")
        return []
    many = len(documents) > 1
    found: list[tuple[str, Any]] = []
    for index, document in enumerate(documents, 1):
        found += _items(f"{file} (document {index})" if many else str(file), document)
    return found


def _items(where: str, document: Any) -> Iterator[tuple[str, Any]]:
    """The document itself, or the items of a List. Items of a typed list have no `kind`, which is added."""
    items = document.get("items") if isinstance(document, Mapping) and document.get("kind") in _LISTS else None
    if not isinstance(items, list):
        yield where, document
        return
    # An item's own apiVersion and kind win over the list's, as later keys do.
    kind = _LISTS[document["kind"]]
    for index, item in enumerate(items):
        if kind and isinstance(item, Mapping):
            item = {"apiVersion": document.get("apiVersion"), "kind": kind, **item}
        yield from _items(f"{where} items[{index}]", item)


def load_documents(data: bytes) -> list[Any]:
    """Parse all documents. Raises yaml.YAMLError, also if it is too deep, too large, or contains itself; ValueError."""
    _check_events(data)
    loader = _Loader(data)
    documents: list[Any] = []
    left = _MAX_VALUES
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # check_node has just found one
            left -= _weigh(node, {})
            if left < 0:
                raise yaml.YAMLError(f"its anchors stand for more than {_MAX_VALUES} values")
            documents.append(_constructed(loader, node))
    finally:
        loader.dispose()
    return documents


def _constructed(loader: Any, node: yaml.Node) -> Any:
    """The document of a node. Raises yaml.YAMLError also for tags that do not fit their values."""
    try:
        return loader.construct_document(node)
    except (LookupError, AttributeError, TypeError, OverflowError) as error:  # `!!bool maybe`, `!!int ""`
        raise yaml.YAMLError(f"a value does not fit its tag: {error}") from None


def _check_events(data: bytes) -> None:
    """Check depth and number of values on parser events: composing recurses, and libyaml does not bound it."""
    if data.replace(b"\0", b"").count(b"%TAG") > _MAX_DIRECTIVES:  # \0: in UTF-16 too
        raise yaml.YAMLError(f"it has more than {_MAX_DIRECTIVES} %TAG directives")
    depth = values = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.NodeEvent):
            values += 1
            if values > _MAX_VALUES:
                raise yaml.YAMLError(f"it has more than {_MAX_VALUES} values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise yaml.YAMLError(f"it is nested more than {_MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that is there twice: YAML 1.2 has none, and readers differ in which one they take."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value[:64]!r} is there twice")
            seen.add(key.value)


def _weigh(node: yaml.Node, weights: dict[int, int]) -> int:
    """How many values a node has with its aliases expanded, in time linear in its written size.

    Ten levels of ten aliases each are 10 billion values from 100 written ones ("billion laughs").
    """
    weight = weights.get(id(node))
    if weight is None:
        weights[id(node)] = 0  # marks it as being weighed: met again below, it contains itself
        inner = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        if node.tag not in _JSON_TAGS and node.tag.startswith(_YAML):
            what = node.tag.removeprefix(_YAML)
            raise yaml.YAMLError(f"!!{what} is nothing that a manifest has; put text in quotes")
        weight = 1 + (sum(_weigh(each, weights) for each in inner) if isinstance(node, yaml.CollectionNode) else 0)
        weights[id(node)] = weight
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT and len(node.value) > _MAX_SCALAR_CHARS:
            raise yaml.YAMLError(f"a number or date of more than {_MAX_SCALAR_CHARS} characters; put text in quotes")
    elif not weight:
        raise yaml.YAMLError("an anchor contains itself")
    return weight
