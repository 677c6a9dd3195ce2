"""`resources` of a session: how much of the machine it may use, where that is not what its runtime has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.core.errors import BadRequestError
from gateway.core.model import Resources
from gateway.core.units import parse_quantity

_FIELDS = {"cpu": "cpus", "memory": "memory", "processes": "processes"}  # of the API, and of Resources
_MAX = 2.0**53  # of what JSON keeps exactly; no machine has as much


def read_resources(body: Mapping[str, Any]) -> dict[str, float | None]:
    """`resources`: what is to change, by the fields of Resources; null: back to what the runtime has.

    Raises BadRequestError.
    """
    value = body["resources"]
    if value is None:
        return dict.fromkeys(_FIELDS.values())
    if not isinstance(value, dict) or not value:
        raise BadRequestError("resources: expected an object with cpu, memory or processes")
    if unknown := sorted(value.keys() - _FIELDS.keys()):
        raise BadRequestError(f"resources.{unknown[0][:64]}: unknown field; expected cpu, memory or processes")
    return {_FIELDS[name]: None if amount is None else _amount(name, amount) for name, amount in value.items()}


def _amount(name: str, value: Any) -> float:
    try:
        number = parse_quantity(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    # float(True) is 1.0. A whole number of bytes or processes; 1.5Gi is one.
    if isinstance(value, bool) or not 0 < number < _MAX or (name != "cpu" and number != int(number)):
        example = {"cpu": "2 or 500m", "memory": "2Gi", "processes": "512"}[name]
        raise BadRequestError(
            f"resources.{name}: expected an amount above zero such as {example}, got {repr(value)[:64]}"
        )
    return number if name == "cpu" else int(number)


def resources_document(size: Resources | None) -> dict[str, float] | None:
    """What a session has of its own: cores, bytes and processes; None: all is as its runtime has it."""
    if size is None:
        return None
    pairs = ((name, getattr(size, field)) for name, field in _FIELDS.items())
    return {name: value for name, value in pairs if value is not None}
