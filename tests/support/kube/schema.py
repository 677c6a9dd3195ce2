"""Validation against the published API as kubernetes_asyncio's generated models tell it: field names and types."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from kubernetes_asyncio.client import models

_SCALARS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "object": (str, int, float, bool, list, dict),
    "datetime": (str,),
}


def problems_of(value: Any, model: str, path: str = "") -> list[str]:
    """What is wrong with `value` as that model, e.g. V1Pod: unknown fields, wrong types, missing required fields."""
    if value is None:
        return []
    if found := re.fullmatch(r"list\[(.*)\]", model):
        if not isinstance(value, list):
            return [f"{path}: expected a list, got {value!r}"]
        return [p for i, item in enumerate(value) for p in problems_of(item, found[1], f"{path}[{i}]")]
    if found := re.fullmatch(r"dict\((.*?), (.*)\)", model):
        if not isinstance(value, dict):
            return [f"{path}: expected a map, got {value!r}"]
        return [p for key, item in value.items() for p in problems_of(item, found[2], f"{path}.{key}")]
    if model in _SCALARS:
        good = isinstance(value, _SCALARS[model]) and not (isinstance(value, bool) and model in ("int", "float", "str"))
        return [] if good else [f"{path}: expected {model}, got {value!r}"]
    if not isinstance(value, dict):
        return [f"{path}: expected an object, got {value!r}"]
    types, required = _fields(model)
    wrong = [f"{path}.{key}: unknown field" for key in value if key not in types]
    wrong += [f"{path}.{key}: missing" for key in required if value.get(key) is None]
    for key, item in value.items():
        if key in types:
            wrong += problems_of(item, types[key], f"{path}.{key}".lstrip("."))
    return wrong


@lru_cache
def _fields(model: str) -> tuple[dict[str, str], frozenset[str]]:
    """JSON field -> type, and the fields that the model's constructor insists on."""
    kind = getattr(models, model)
    types = {name: kind.openapi_types[attribute] for attribute, name in kind.attribute_map.items()}
    required = frozenset(name for attribute, name in kind.attribute_map.items() if _insists(kind, attribute))
    return types, required


def _insists(kind: Any, attribute: str) -> bool:
    setter = getattr(kind, attribute).fset
    return any(isinstance(const, str) and "must not be `None`" in const for const in setter.__code__.co_consts)
