"""usage: what was used, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import over_api
from gateway.cli.remote.screen import Format, Output, print_document, print_table, span
from wakegate_client import Client

_FIELDS = ("tenant", "runtime", "size", "session", "day", "hour")
_SPANS = {"SANDBOX": "sandboxSeconds", "IDLE": "idleSeconds", "ASLEEP": "hibernatedSeconds", "CPU": "cpuSeconds"}
_COUNTS = {"REQUESTS": "requests", "WARM": "startsWarm", "COLD": "startsCold", "WAKES": "startsWake"}
_COSTS = {"COST": "cost", "WITHOUT SLEEP": "costWithoutHibernation"}


@over_api
def usage(
    gateway: Client,
    since: Annotated[str, typer.Option("--from", help="RFC 3339; a day before --to if absent.")] = "",
    until: Annotated[str, typer.Option("--to", help="RFC 3339; now if absent.")] = "",
    by: Annotated[str, typer.Option(help="Some of tenant, runtime, size, session, day, hour.")] = "tenant",
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """What tenants have used, and what it costs where the gateway knows prices.

    \b
    wakegate usage --by day,runtime --from 2026-01-01T00:00:00Z
    """
    found = gateway.usage(**{"from": since, "to": until, "group_by": by, "tenant": tenant})
    if output is not Format.TABLE:
        print_document(found, output)
        return
    rows: list[Mapping[str, Any]] = found["usage"]
    columns: dict[str, Callable[[Mapping[str, Any]], object]] = {}
    for name in by.split(","):
        if name in _FIELDS:
            columns[name.upper()] = _column(name, str, "")
    columns |= {title: _column(name, span) for title, name in _SPANS.items()}
    columns |= {title: _column(name, "{:g}".format) for title, name in _COUNTS.items()}
    # Where the gateway knows prices: a column of zeros would be read as free.
    if any("cost" in row for row in rows):
        columns |= {title: _column(name, "{:.4f}".format) for title, name in _COSTS.items()}
    print_table(rows, columns)


def _column(name: str, shown: Callable[[Any], str], absent: float | str = 0) -> Callable[[Mapping[str, Any]], object]:
    return lambda row: shown(row.get(name, absent))
