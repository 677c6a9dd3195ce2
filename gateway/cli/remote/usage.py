"""usage: what was used, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import over_api
from gateway.cli.remote.screen import Format, Output, print_document, show, span
from gateway.core.clock import SystemClock
from gateway.core.units import parse_lifetime
from wakegate_client import Client

_FIELDS = ("tenant", "runtime", "size", "session", "day", "hour")
_SPANS = {
    "SANDBOX": "sandboxSeconds", "IDLE": "idleSeconds", "ASLEEP": "hibernatedSeconds", "WARM POOL": "warmPoolSeconds",
    "CPU": "cpuSeconds",
}  # fmt: skip
_COUNTS = {
    "REQUESTS": "requests", "WARM STARTS": "startsWarm", "COLD STARTS": "startsCold", "WAKES": "startsWake",
}  # fmt: skip
# Sandboxes that wait for a session are nobody's yet, and stand in a row of their own.
_NOBODY = "(warm pools)"
_COSTS = {"COST": "cost", "WITHOUT SLEEP": "costWithoutHibernation"}


@over_api
def usage(
    gateway: Client,
    since: Annotated[
        str, typer.Option("--from", metavar="TIME", help="RFC 3339, or 7d: so long ago. A day before --to if absent.")
    ] = "",
    until: Annotated[str, typer.Option("--to", metavar="TIME", help="The same; now if absent.")] = "",
    by: Annotated[
        str, typer.Option(metavar="FIELDS", help="Some of tenant, runtime, size, session, day, hour.")
    ] = "tenant",
    tenant: Annotated[str, typer.Option(metavar="TENANT", help="Only of this tenant.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """What tenants have used, and what it costs where the gateway knows prices.

    \b
    wakegate usage --from 7d
    wakegate usage --by day,runtime --from 2026-01-01T00:00:00Z
    """
    found = gateway.usage(**{"from": _moment(since), "to": _moment(until), "group_by": by, "tenant": tenant})
    rows: list[Mapping[str, Any]] = found["usage"]
    if output is Format.NAME:  # what it is grouped by, the only name that a row has
        show(rows, {}, output, name=lambda row: " ".join(str(row.get(name) or "-") for name in by.split(",")))
        return
    if output is not Format.TABLE:
        print_document(found, output)
        return
    columns: dict[str, Callable[[Mapping[str, Any]], object]] = {}
    for name in by.split(","):
        if name in _FIELDS:
            columns[name.upper()] = _column(name, _named, "")
    columns |= {title: _column(name, span) for title, name in _SPANS.items()}
    columns |= {title: _column(name, "{:g}".format) for title, name in _COUNTS.items()}
    # Where the gateway knows prices: a column of zeros would be read as free.
    if any("cost" in row for row in rows):
        columns |= {title: _column(name, "{:.4f}".format) for title, name in _COSTS.items()}
    show(rows, columns, output, empty="nothing was used in that time")


def _named(value: Any) -> str:
    return str(value) or _NOBODY


def _moment(text: str) -> str:
    """RFC 3339 as it is; 24h, 7d: as long ago."""
    try:
        return str(int(SystemClock().now() - parse_lifetime(text)))
    except ValueError:
        return text  # the gateway says what is wrong with it


def _column(name: str, shown: Callable[[Any], str], absent: float | str = 0) -> Callable[[Mapping[str, Any]], object]:
    return lambda row: shown(row.get(name, absent))
