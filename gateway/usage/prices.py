"""What things cost, from a TOML file that the operator writes. docs/usage.md has an example."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gateway.core.errors import SettingsError
from gateway.core.read_file import read_file
from gateway.core.usage import Quantity
from gateway.usage.meter import Size

GIB = 1 << 30
_HOUR_S = 3600.0
_MONTH_S = 730 * _HOUR_S  # as cloud providers count months


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices in the file's currency. Cores and memory of a sandbox cost what its limits are, used or not."""

    vcpu_hour: float = 0.0  # a core of the limit, for an hour
    gib_hour: float = 0.0  # a GiB of the memory limit
    gpu_hour: float = 0.0
    cpu_used_hour: float = 0.0  # an hour of CPU time really used, in addition
    gib_used_hour: float = 0.0  # a GiB of memory really used
    stored_gib_month: float = 0.0  # a GiB of kept workspaces for 730 hours
    egress_gib: float = 0.0
    network_sent_gib: float = 0.0  # a GiB that code in sandboxes sent, through the egress proxy
    network_received_gib: float = 0.0
    million_requests: float = 0.0
    start: float = 0.0  # of any kind
    cold_start: float = 0.0  # what a claim without a warm sandbox is worth to you; sizes warm pools, is on no bill

    def sandbox(self, size: Size, seconds: float) -> float:
        """What a sandbox of this size costs for that long."""
        # e.g. 2 cores at 0.04 and 4 GiB at 0.005 for half an hour: (0.08 + 0.02) / 2 = 0.05.
        per_hour = size.cpus * self.vcpu_hour + size.memory / GIB * self.gib_hour + size.gpus * self.gpu_hour
        return per_hour * seconds / _HOUR_S

    def stored(self, byte_seconds: float) -> float:
        """What kept workspaces cost."""
        return byte_seconds / GIB / _MONTH_S * self.stored_gib_month

    def others(self, amounts: Mapping[str, float]) -> float:
        """What everything but sandboxes by their limits and kept workspaces costs."""
        starts = sum(amounts.get(each, 0.0) for each in STARTS)
        return (
            amounts.get(Quantity.CPU_SECONDS, 0.0) / _HOUR_S * self.cpu_used_hour
            + amounts.get(Quantity.MEMORY_BYTE_SECONDS, 0.0) / GIB / _HOUR_S * self.gib_used_hour
            + amounts.get(Quantity.EGRESS_BYTES, 0.0) / GIB * self.egress_gib
            + amounts.get(Quantity.NETWORK_SENT_BYTES, 0.0) / GIB * self.network_sent_gib
            + amounts.get(Quantity.NETWORK_RECEIVED_BYTES, 0.0) / GIB * self.network_received_gib
            + amounts.get(Quantity.REQUESTS, 0.0) / 1e6 * self.million_requests
            + starts * self.start
        )


STARTS = (Quantity.STARTS_WARM, Quantity.STARTS_COLD, Quantity.STARTS_WAKE, Quantity.STARTS_WAKE_COLD)
_RATES = tuple(each.name for each in fields(Rates))


@dataclass(frozen=True, slots=True)
class Prices:
    """Rates for all runtimes, and those of single ones by `namespace/name`."""

    currency: str = ""
    rates: Rates = Rates()
    runtimes: Mapping[str, Rates] = field(default_factory=dict)

    def of(self, runtime: str) -> Rates:
        """The rates of a runtime, whose text is as rows have it: `code-interpreters/default/NAME`."""
        return self.runtimes.get(runtime.partition("/")[2], self.rates)


def load_prices(path: Path) -> Prices:
    """Read a file of prices. Raises SettingsError with every problem, each with its key."""
    try:
        document = tomllib.loads(read_file(path).decode())
    except OSError as error:
        raise SettingsError([f"--prices {path}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise SettingsError([f"--prices {path}: {error}"]) from error
    problems: list[str] = []
    currency = document.pop("currency", "")
    if not isinstance(currency, str):
        problems.append(f"currency: expected text, got {currency!r}")
    runtimes = document.pop("runtimes", {})
    if not isinstance(runtimes, dict):
        problems.append(f"runtimes: expected tables such as [runtimes.'default/my-interpreter'], got {runtimes!r}")
        runtimes = {}
    rates = _rates(Rates(), document, "", problems)
    by_runtime = {}
    for name, table in runtimes.items():
        if name.count("/") != 1:
            problems.append(f"runtimes.{name!r}: expected namespace/name in quotes, such as 'default/my-interpreter'")
        elif not isinstance(table, dict):
            problems.append(f"runtimes.{name!r}: expected a table of prices, got {table!r}")
        else:
            by_runtime[name] = _rates(rates, table, f"runtimes.{name!r}.", problems)
    if problems:
        raise SettingsError([f"--prices {path}: {problem}" for problem in problems])
    return Prices(currency, rates, by_runtime)


def _rates(base: Rates, table: Mapping[str, Any], place: str, problems: list[str]) -> Rates:
    """The rates of a table; what it does not name stays as in `base`."""
    read = {}
    for name, value in table.items():
        if name not in _RATES:
            problems.append(f"{place}{name}: unknown price; expected one of {', '.join(_RATES)}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
            problems.append(f"{place}{name}: expected a number from 0 on, got {value!r}")
        else:
            read[name] = float(value)
    return replace(base, **read)
