"""What a tenant may use: the limits, and how people write them in JSON, YAML or TOML. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.core.identity import runtime_scope
from gateway.core.model import RuntimeKey
from gateway.core.quota import Amounts, Resource
from gateway.core.units import parse_duration, parse_quantity
from gateway.egress.rule_entries import Entry, parse_rules

OWN = "self"  # in paths of the API: the caller's tenant, whose name no other may have
_MOST = float(1 << 53)  # up to here Lua and JSON know whole numbers exactly
_MAX_RUNTIMES = 256


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may use. None, or no runtimes: not limited. `amounts` are those of core/quota.py, in its units."""

    amounts: Amounts = field(default_factory=dict)
    requests_per_second: float | None = None
    request_burst: int | None = None  # requests that may come at once; None: those of a second
    creates_per_minute: float | None = None
    max_duration: float | None = None  # seconds
    runtimes: frozenset[str] = frozenset()  # "namespace/name"
    public_ports: bool | None = None  # False: none of its sessions has any
    egress: tuple[Entry, ...] | None = None  # the most that its sandboxes may reach, as in spec.wakegate.egress

    def __bool__(self) -> bool:
        return self != UNLIMITED

    def allows(self, runtime: RuntimeKey) -> bool:
        """Whether its sessions may be of a runtime."""
        return not self.runtimes or f"{runtime.namespace}/{runtime.name}" in self.runtimes

    def document(self) -> dict[str, Any]:
        """As the API shows and takes it, without what is not limited."""
        shown: dict[str, Any] = {
            each.value: amount / 1000 if each is Resource.VCPU else amount for each, amount in self.amounts.items()
        }
        shown |= {
            "requestsPerSecond": self.requests_per_second,
            "requestBurst": self.request_burst,
            "createsPerMinute": self.creates_per_minute,
            "maxDuration": self.max_duration,
            "runtimes": sorted(self.runtimes) or None,
            "publicPorts": self.public_ports,
            "egress": None if self.egress is None else list(self.egress),
        }
        return {name: value for name, value in shown.items() if value is not None}


UNLIMITED = TenantLimits()


def parse_limits(document: Any, where: str = "") -> TenantLimits:
    """Limits from JSON, YAML or TOML. Raises ValueError with every problem, a line each, `where` before each field."""
    if not isinstance(document, Mapping):
        raise ValueError(f"{where or 'limits'}: expected fields such as sandboxes: 20")
    problems: list[str] = []
    read: dict[str, Any] = {}
    for name, value in document.items():
        reader = _READERS.get(name)
        if reader is None:
            close = difflib.get_close_matches(str(name)[:64], _READERS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; expected some of {', '.join(_READERS)}"
            problems.append(f"{where}{str(name)[:64]}: unknown limit{hint}")
        elif value is not None:
            try:
                read[name] = reader(value)
            except ValueError as error:
                problems.append(f"{where}{name}: {error}")
    # Only once the rest is right: a rate with a typing error would otherwise be reported as missing too.
    if "requestBurst" in read and "requestsPerSecond" not in read and not problems:
        problems.append(f"{where}requestBurst: means nothing without requestsPerSecond")
    if problems:
        raise ValueError("\n".join(problems))
    return TenantLimits(
        {each: read[each] for each in Resource if each in read},
        read.get("requestsPerSecond"),
        read.get("requestBurst"),
        read.get("createsPerMinute"),
        read.get("maxDuration"),
        read.get("runtimes", frozenset()),
        read.get("publicPorts"),
        read.get("egress"),
    )


def _number(value: Any, expected: str, low: float = 0.0) -> float:
    # To Python True is the number 1, and NaN, which YAML can write, is neither below nor above anything.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < _MOST:
        raise ValueError(f"expected {expected}, got {repr(value)[:64]}")
    return float(value)


def _count(value: Any) -> int:
    number = _number(value, "a whole number, 0 or more")
    if number != int(number):
        raise ValueError(f"expected a whole number, 0 or more, got {value!r}")
    return int(number)


def _quantity(value: Any, example: str) -> float:
    if isinstance(value, str):
        try:
            value = parse_quantity(value)
        except (ValueError, OverflowError):
            raise ValueError(f"expected a number or a quantity such as {example}, got {value[:64]!r}") from None
    return _number(value, f"a number or a quantity such as {example}")


def _cores(value: Any) -> int:
    return round(_quantity(value, "500m or 8") * 1000)


def _bytes(value: Any) -> int:
    return int(_quantity(value, "512Mi or 64Gi"))


def _rate(value: Any) -> float:
    return _number(value, "a number above zero", 1e-3)


def _burst(value: Any) -> int:
    if (burst := _count(value)) < 1:
        raise ValueError("expected a whole number, 1 or more, got 0")
    return burst


def _duration(value: Any) -> float:
    try:
        seconds = parse_duration(value) if isinstance(value, str) else _number(value, "", 0.0)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 1e9:
        raise ValueError(f"expected a duration of at least 1 s, such as 8h, or a number of seconds; got {value!r:.64}")
    return seconds


def _runtimes(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or len(value) > _MAX_RUNTIMES or not all(isinstance(each, str) for each in value):
        raise ValueError(f"expected a list of at most {_MAX_RUNTIMES} names such as default/my-interpreter")
    return frozenset(map(runtime_scope, value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {repr(value)[:64]}")
    return value


def _egress(value: Any) -> tuple[Entry, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list such as [pypi, api.example.com], got {repr(value)[:64]}")
    try:
        parse_rules(value)
    except ValueError as error:
        raise ValueError(str(error).replace("\n", "; ")) from None
    return tuple(value)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys((each.value for each in Resource), _count),
    Resource.VCPU.value: _cores,
    Resource.MEMORY.value: _bytes,
    Resource.STORED.value: _bytes,
    "requestsPerSecond": _rate,
    "requestBurst": _burst,
    "createsPerMinute": _rate,
    "maxDuration": _duration,
    "runtimes": _runtimes,
    "publicPorts": _flag,
    "egress": _egress,
}
