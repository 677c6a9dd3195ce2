"""Tenants and their limits: read from a file and from the store, all of them in memory, followed in the store.

A tenant exists without being made here: a key names it. What the API sets for a tenant replaces what the file says of
it; a tenant for which neither says anything has the file's `defaults`.
"""

from __future__ import annotations

import difflib
import logging
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import BadRequestError, SettingsError, StaleWriteError
from gateway.core.identity import is_tenant, runtime_scope
from gateway.core.model import RuntimeKey
from gateway.core.quota import Amounts, Resource
from gateway.core.units import parse_duration, parse_quantity
from gateway.egress.policy import Entry, parse_rules
from gateway.identity.budgets import Budget

logger = logging.getLogger(__name__)

KIND = "tenant"
OWN = "self"  # in paths of the API: the caller's tenant
MAX_TENANTS = 10_000
_MOST = float(1 << 53)  # up to here Lua and JSON know whole numbers exactly
_MAX_RUNTIMES = 256
_WRITE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may use. None, or no runtimes: not limited. `amounts` are those of core/quota.py, in its units."""

    amounts: Amounts = field(default_factory=dict)
    requests_per_second: float | None = None
    request_burst: int | None = None  # requests that may come at once; None: those of a second
    creates_per_minute: float | None = None
    max_duration: float | None = None  # seconds
    runtimes: frozenset[str] = frozenset()  # "namespace/name"
    egress: tuple[Entry, ...] | None = None  # the most that its sandboxes may reach, as in spec.wakegate.egress

    def __bool__(self) -> bool:
        return self != _UNLIMITED

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
            "egress": None if self.egress is None else list(self.egress),
        }
        return {name: value for name, value in shown.items() if value is not None}


_UNLIMITED = TenantLimits()


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
        read.get("egress"),
    )


def _number(value: Any, expected: str, low: float = 0.0) -> float:
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
    "egress": _egress,
}


@dataclass(frozen=True, slots=True)
class TenantsFile:
    """What an operator's file says: `defaults` for tenants without an entry, and those with one."""

    defaults: TenantLimits = _UNLIMITED
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)


def read_tenants_file(path: Path) -> TenantsFile:
    """Read `defaults` and `tenants` from YAML, or from TOML by the file's name. Raises SettingsError, with all that is
    wrong; an empty path: nothing is limited."""
    if path == Path():
        return TenantsFile()
    try:
        text = path.read_text()
        document = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise SettingsError([f"--tenants {path}: {error}"]) from error
    problems = [f"--tenants {path}: {problem}" for problem in _shape_problems(document)]
    if problems:
        raise SettingsError(problems)
    found: dict[str, TenantLimits] = {}
    named = {"": document.get("defaults") or {}, **(document.get("tenants") or {})}
    for name, limits in named.items():
        where = f"tenants.{name}." if name else "defaults."
        try:
            found[name] = parse_limits(limits or {}, where)
        except ValueError as error:
            problems += [f"--tenants {path}: {line}" for line in str(error).splitlines()]
    if problems:
        raise SettingsError(problems)
    return TenantsFile(found.pop(""), found)


def _shape_problems(document: Any) -> Iterator[str]:
    if not isinstance(document, dict):
        yield "expected `defaults:` and `tenants:`"
        return
    for name in document.keys() - {"defaults", "tenants"}:
        yield f"{str(name)[:64]}: unknown field; expected defaults, tenants"
    tenants = document.get("tenants") or {}
    if not isinstance(tenants, dict):
        yield "tenants: expected the name of each tenant with its limits"
        return
    for name in tenants:
        if not isinstance(name, str) or not is_tenant(name) or name == OWN:
            yield f"tenants.{str(name)[:64]}: expected a name of a-z, 0-9 and '-', at most 63 long, other than {OWN}"


class TenantDirectory:
    """The limits of every tenant, from memory. `budget` hands out what counts a tenant's requests."""

    def __init__(self, documents: DocumentStore, file: TenantsFile = TenantsFile()) -> None:
        self._documents = documents
        self._file = file
        self._revision = -1
        self._stored: dict[str, TenantLimits | None] = {}  # None: the tenant was deleted
        self._budgets: dict[str, Budget] = {}
        self._gateways = 1
        self._refilled: float | None = None

    def __repr__(self) -> str:
        return f"<TenantDirectory of {len(self.names())} tenants>"

    @property
    def revision(self) -> int:
        """Grows with each change that this gateway has seen."""
        return self._revision

    async def follow(self) -> bool:
        """Read again what has changed. Returns whether anything has. Raises StoreUnavailableError."""
        revision = await self._documents.revision(KIND)
        if revision == self._revision:
            return False
        found: dict[str, TenantLimits | None] = {}
        for document in await self._documents.list(KIND):
            try:
                value = document.value
                found[document.name] = None if value.get("deleted") else parse_limits(value["limits"])
            except (KeyError, TypeError, ValueError) as error:
                logger.error("tenant %s is unreadable in the store; it keeps its limits: %r", document.name, error)
                if document.name in self._stored:
                    found[document.name] = self._stored[document.name]
        changed = found != self._stored
        self._stored, self._revision = found, revision
        self._resize_budgets()
        return changed

    def limits(self, tenant: str) -> TenantLimits:
        """What a tenant may use."""
        stored = self._stored.get(tenant)
        return stored if stored is not None else self._file.tenants.get(tenant, self._file.defaults)

    @property
    def limits_amounts(self) -> bool:
        """Whether what sessions hold is limited for any tenant."""
        known = (self._file.defaults, *self._file.tenants.values(), *self._stored.values())
        return any(limits is not None and limits.amounts for limits in known)

    def is_deleted(self, tenant: str) -> bool:
        """Whether a tenant was deleted, and not made anew since: nobody may act for it."""
        return tenant in self._stored and self._stored[tenant] is None

    def names(self) -> list[str]:
        """The tenants that the file or the API has limits for, by name."""
        return sorted(name for name in {*self._stored, *self._file.tenants} if not self.is_deleted(name))

    async def put(self, tenant: str, limits: TenantLimits) -> bool:
        """Set the limits of a tenant. Returns whether it had none of its own in the store.

        Raises BadRequestError, StoreUnavailableError.
        """
        if not is_tenant(tenant) or tenant == OWN:
            raise BadRequestError(
                f"tenant: expected a name of a-z, 0-9 and '-', at most 63 long, other than {OWN}; got {tenant[:64]!r}"
            )
        if tenant not in self._stored and len(self._stored) >= MAX_TENANTS:
            raise BadRequestError(f"there are {MAX_TENANTS} tenants, the most that a store holds")
        made = self._stored.get(tenant) is None
        await self._write(tenant, {"limits": limits.document()})
        return made

    async def delete(self, tenant: str) -> None:
        """Let nobody act for a tenant. A mark stays, so that tokens which name it are refused too."""
        await self._write(tenant, {"deleted": True})

    async def _write(self, tenant: str, value: Mapping[str, Any]) -> None:
        for attempt in range(_WRITE_ATTEMPTS):
            kept = await self._documents.get(KIND, tenant) or Document(KIND, tenant, {})
            try:
                await self._documents.put(replace(kept, value=value))
                break
            except StaleWriteError:  # another administrator was faster; the last one wins
                if attempt == _WRITE_ATTEMPTS - 1:
                    raise
        await self.follow()

    def budget(self, tenant: str) -> Budget | None:
        """What counts a tenant's requests here; None: they are not limited."""
        limits = self.limits(tenant)
        if limits.requests_per_second is None:
            return None
        found = self._budgets.get(tenant)
        if found is None:
            found = self._budgets[tenant] = Budget()
            found.resize(limits.requests_per_second, limits.request_burst, self._gateways)
        return found

    def refill(self, now: float) -> None:
        """Add to each budget what came in since the last call. `now` is of a monotonic clock."""
        since = 0.0 if self._refilled is None else now - self._refilled
        self._refilled = now
        for budget in self._budgets.values():
            budget.refill(since)

    @property
    def has_rates(self) -> bool:
        """Whether any tenant's requests are counted here."""
        return bool(self._budgets)

    def share_among(self, gateways: int) -> None:
        """Let this gateway give each tenant its part of the rate: one of `gateways`."""
        if gateways != self._gateways:
            self._gateways = gateways
            self._resize_budgets()

    def _resize_budgets(self) -> None:
        for tenant, budget in list(self._budgets.items()):
            limits = self.limits(tenant)
            if limits.requests_per_second is None:
                budget.lift()  # whoever still has it in memory
                del self._budgets[tenant]
            else:
                budget.resize(limits.requests_per_second, limits.request_burst, self._gateways)
