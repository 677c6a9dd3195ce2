"""Groups rows of usage, and prices them. Pure."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.core.errors import BadRequestError
from gateway.core.units import rfc3339
from gateway.core.usage import Amounts, Quantity, UsageKey
from gateway.usage.meter import Size
from gateway.usage.prices import Prices

GROUPS = ("tenant", "runtime", "size", "session", "day", "hour")
MAX_GROUPS = 10_000  # rows of one answer: some 5 MB of JSON
COST = ("cost", "costWithoutHibernation", "idleCost", "warmPoolCost")
_SIZED: Mapping[str, Callable[[Size], float]] = {  # field -> what of a sandbox's size it is the product of
    "vcpuSeconds": lambda size: size.cpus,
    "memoryLimitByteSeconds": lambda size: size.memory,
    "gpuSeconds": lambda size: size.gpus,
}
_FIELDS = {
    "sandboxSeconds": Quantity.SANDBOX_SECONDS,
    "idleSeconds": Quantity.IDLE_SECONDS,
    "hibernatedSeconds": Quantity.HIBERNATED_SECONDS,
    "warmPoolSeconds": Quantity.WARM_SECONDS,
    "cpuSeconds": Quantity.CPU_SECONDS,
    "memoryByteSeconds": Quantity.MEMORY_BYTE_SECONDS,
    "egressBytes": Quantity.EGRESS_BYTES,
    "networkSentBytes": Quantity.NETWORK_SENT_BYTES,
    "networkReceivedBytes": Quantity.NETWORK_RECEIVED_BYTES,
    "requests": Quantity.REQUESTS,
    "startsWarm": Quantity.STARTS_WARM,
    "startsCold": Quantity.STARTS_COLD,
    "startsWake": Quantity.STARTS_WAKE,
    "startsWakeCold": Quantity.STARTS_WAKE_COLD,
}
_WHOLE = frozenset((
    "egressBytes", "networkSentBytes", "networkReceivedBytes", "requests", "startsWarm", "startsCold", "startsWake",
    "startsWakeCold",
))  # fmt: skip
AMOUNTS = (*_FIELDS, *_SIZED, "storedByteHours")


class Report:
    """Sums of rows by group. `prices` None: amounts only."""

    def __init__(self, group_by: Sequence[str], prices: Prices | None) -> None:
        self._group_by = group_by
        self._prices = prices
        self._groups: dict[tuple[str, ...], defaultdict[str, float]] = {}

    def add(self, key: UsageKey, amounts: Amounts) -> None:
        """Count one row. Raises BadRequestError once there are more groups than an answer may have."""
        name = tuple(_part(key, each) for each in self._group_by)
        group = self._groups.get(name)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                raise BadRequestError(
                    f"the answer would have more than {MAX_GROUPS} rows; ask for less time or group by less"
                )
            group = self._groups[name] = defaultdict(float)
        size = Size.parse(key.size)
        for field, quantity in _FIELDS.items():
            group[field] += amounts.get(quantity, 0.0)
        for field, part in _SIZED.items():
            group[field] += amounts.get(Quantity.SANDBOX_SECONDS, 0.0) * part(size)
        group["storedByteHours"] += amounts.get(Quantity.STORED_BYTE_SECONDS, 0.0) / 3600
        if self._prices is not None:
            for field, cost in costs(self._prices, key, size, amounts).items():
                group[field] += cost

    @property
    def columns(self) -> Sequence[str]:
        """The names of all fields of a row."""
        return (*self._group_by, *AMOUNTS, *(COST if self._prices is not None else ()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """A document per group, in their order."""
        for name, sums in sorted(self._groups.items()):
            yield dict(zip(self._group_by, name, strict=True)) | {
                field: _rounded(field, sums[field]) for field in self.columns[len(self._group_by) :]
            }


def _part(key: UsageKey, group: str) -> str:
    if group == "day":
        return datetime.fromtimestamp(key.hour, UTC).date().isoformat()
    return rfc3339(key.hour) if group == "hour" else str(getattr(key, group))


def costs(prices: Prices, key: UsageKey, size: Size, amounts: Amounts) -> Mapping[str, float]:
    """What a row costs, and what it would have cost had its sessions kept their sandboxes while hibernated."""
    rates = prices.of(key.runtime)
    sandbox = rates.sandbox(size, amounts.get(Quantity.SANDBOX_SECONDS, 0.0))
    stored, others = rates.stored(amounts.get(Quantity.STORED_BYTE_SECONDS, 0.0)), rates.others(amounts)
    awake = rates.sandbox(size, amounts.get(Quantity.HIBERNATED_SECONDS, 0.0))
    return {
        "cost": sandbox + stored + others,
        "costWithoutHibernation": sandbox + awake + others,
        "idleCost": rates.sandbox(size, amounts.get(Quantity.IDLE_SECONDS, 0.0)),
        "warmPoolCost": rates.sandbox(size, amounts.get(Quantity.WARM_SECONDS, 0.0)),
    }


def _rounded(field: str, value: float) -> float | int:
    return round(value) if field in _WHOLE else round(value, 6)


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as CSV (RFC 4180) with a header line.

    A spreadsheet takes text that begins with one of = + - @ for a formula, and would run it: such text gets a ' before.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_harmless(row[column]) for column in columns])
    return text.getvalue().encode()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
