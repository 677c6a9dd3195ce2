"""Reads YAML files within bounds: a hostile file must not take much of the gateway's time or memory.

Size is checked before parsing, depth and number of values during parsing, and the size of expanded aliases before
construction. A `kind: List`, as `kubectl get -o yaml` writes it, is read as the documents in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as _Loader  # thirty times as fast: 1 MiB takes 0.3 s instead of 10
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

MAX_FILE_BYTES = 1 << 20  # a manifest has a few KiB; etcd takes objects of at most 1.5 MiB
_MAX_VALUES = 100_000  # in one file, with aliases expanded
_MAX_DEPTH = 100
_MAX_SCALAR_CHARS = 400  # of numbers and dates: Python parses sexagesimal numbers in quadratic time
_MAX_DIRECTIVES = 32  # libyaml compares each one with all before it: 26 s for 1 MiB of them
_TEXT = "tag:yaml.org,2002:str"
_LISTS = {"List": "", "CodeInterpreterList": "CodeInterpreter", "AgentRuntimeList": "AgentRuntime"}


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
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)  # the last byte shows that there is more
        if len(data) > MAX_FILE_BYTES:
            problems.append(f"{file}: is larger than {MAX_FILE_BYTES >> 20} MiB; expected a manifest")
            return []
        documents = [document for document in load_documents(data) if document is not None]
    except OSError as error:
        problems.append(f"{file}: cannot be read: {error.strerror}")
        return []
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: what Python does not take for a date, a number or UTF-8, though the syntax is right.
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problems.append(f"{file}:{line} is not YAML: {str(getattr(error, 'problem', None) or error)[:500]}")
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
            documents.append(loader.construct_document(node))
    finally:
        loader.dispose()
    return documents


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


def _weigh(node: yaml.Node, weights: dict[int, int]) -> int:
    """How many values a node has with its aliases expanded, in time linear in its written size.

    Ten levels of ten aliases each are 10 billion values from 100 written ones ("billion laughs").
    """
    weight = weights.get(id(node))
    if weight is None:
        weights[id(node)] = 0  # marks it as being weighed: met again below, it contains itself
        inner = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        weight = 1 + (sum(_weigh(each, weights) for each in inner) if isinstance(node, yaml.CollectionNode) else 0)
        weights[id(node)] = weight
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT and len(node.value) > _MAX_SCALAR_CHARS:
            raise yaml.YAMLError(f"a number or date of more than {_MAX_SCALAR_CHARS} characters; put text in quotes")
    elif not weight:
        raise yaml.YAMLError("an anchor contains itself")
    return weight
