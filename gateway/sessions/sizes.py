"""How large a session's sandbox may be, and what it holds while it changes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from gateway.core.errors import BadRequestError
from gateway.core.model import Limits, Resources, Runtime
from gateway.core.units import readable_size

Wish = Mapping[str, float | None]
"""Fields of Resources that are to change; None: back to what the runtime has."""

# Less is no sandbox: picod and one interpreter of it take some 40 MiB and a handful of processes, and the kernel has no
# share of a CPU below a millisecond of each period of 100.
_LEAST = Resources(cpus=0.01, memory=64 << 20, processes=8)
_NAMES = {"cpus": "cpu", "memory": "memory", "processes": "processes"}  # as the API has them


def new_size(runtime: Runtime, present: Resources | None, wish: Wish) -> Resources | None:
    """What a session has once it has what it asks for; None: what its runtime has. Raises BadRequestError."""
    changed: dict[str, Any] = {**asdict(present or Resources()), **wish}
    size = {}
    for field in fields(Resources):
        value, usual = changed[field.name], getattr(runtime.limits, field.name)
        size[field.name] = None if value == usual else value
        if value is not None and field.name in wish:
            _check(runtime, field.name, value)
    return Resources(**size) if any(value is not None for value in size.values()) else None


def larger(limits: Limits, one: Resources | None, other: Resources | None) -> Resources | None:
    """The larger of two sizes in each field: what a session counts with while it goes from one to the other."""
    if one is None and other is None:
        return None
    first, second = limits.resized(one), limits.resized(other)
    size = {}
    for field in fields(Resources):
        usual, both = getattr(limits, field.name), (getattr(first, field.name), getattr(second, field.name))
        most = None if None in both else max(both)  # None: no limit
        size[field.name] = None if most == usual else most
    return Resources(**size)


def most(runtime: Runtime, name: str) -> float | None:
    """The most that a session of a runtime may have of a field of Resources; None: there is no limit."""
    own, usual = getattr(runtime.max_resources, name), getattr(runtime.limits, name)
    return None if usual is None else usual if own is None else max(own, usual)


def _check(runtime: Runtime, name: str, value: float) -> None:
    least, ceiling = getattr(_LEAST, name), most(runtime, name)
    if value < least:
        raise BadRequestError(f"resources.{_NAMES[name]}: at least {_shown(name, least)}, got {_shown(name, value)}")
    if ceiling is not None and value > ceiling:
        raise BadRequestError(
            f"resources.{_NAMES[name]}: sessions of {runtime.key.base} may have {_shown(name, ceiling)} at most, got "
            f"{_shown(name, value)}; its manifest says how much in spec.wakegate.maxResources"
        )


def _shown(name: str, value: float) -> str:
    return readable_size(int(value)) if name == "memory" else f"{value:g}"
