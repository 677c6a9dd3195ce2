"""GET /v1/usage: what tenants have used and what it costs, as JSON or CSV. docs/usage.md explains the fields."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, PermissionDeniedError
from gateway.core.identity import current
from gateway.core.interfaces import SessionStore
from gateway.core.model import RuntimeKey
from gateway.core.units import rfc3339
from gateway.core.usage import HOUR_S, ORDINARY_RETENTION, Retention
from gateway.usage.prices import Prices
from gateway.usage.report import GROUPS, Report, as_csv

_PARAMETERS = ("from", "to", "group_by", "tenant", "format")
_DEFAULT_SPAN_S = 86400
_ROWS_PER_TURN = 1000  # then other requests get their turn: about 20 ms of the event loop
_LAST = 253402300800  # the year 10000


class UsageAPI:
    """The handler of usage. `prices` None: amounts without costs."""

    def __init__(
        self, store: SessionStore, clock: Clock, prices: Prices | None, retention: Retention = ORDINARY_RETENTION
    ) -> None:
        self._store = store
        self._clock = clock
        self._prices = prices
        self._retention = retention

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"get_usage": self._get}

    async def _get(self, request: Request) -> Response:
        query = request.query_params
        unknown = sorted(query.keys() - set(_PARAMETERS))
        if unknown:
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected {', '.join(_PARAMETERS)}")
        answer_format = query.get("format", "json")
        if answer_format not in ("json", "csv"):
            raise BadRequestError(f"format: expected json or csv, got {answer_format[:64]!r}")
        group_by = _groups(query.get("group_by", "tenant"))
        sessions, caller = "session" in group_by, current()
        if sessions and caller.user:
            raise PermissionDeniedError(
                "group_by: session would show sessions of other people of this tenant; this credential is one person's"
            )
        since, until = self._hours(query.get("from"), query.get("to"), sessions=sessions)
        report = Report(group_by, self._prices)
        count = 0
        async for key, amounts in self._store.usage.read(
            since, until, sessions=sessions, tenant=_tenant(query.get("tenant"))
        ):
            # A key that is limited to some runtimes must not learn from the bill that there are others.
            if not caller.runtimes or caller.uses(RuntimeKey.parse(key.runtime)):
                report.add(key, amounts)
            count += 1
            if count % _ROWS_PER_TURN == 0:
                await asyncio.sleep(0)
        if answer_format == "csv":
            body = await asyncio.to_thread(as_csv, report.columns, report.rows())
            return Response(body, media_type="text/csv; charset=utf-8")
        currency = {} if self._prices is None else {"currency": self._prices.currency}
        rows = await asyncio.to_thread(list, report.rows())
        return JSON({"from": rfc3339(since), "to": rfc3339(until), **currency, "usage": rows})

    def _hours(self, since: str | None, until: str | None, *, sessions: bool) -> tuple[int, int]:
        """Whole hours: the beginning is rounded down, the end up. Without a time, the last day."""
        now = self._clock.now()
        end = now if until is None else _moment("to", until)
        start = end - _DEFAULT_SPAN_S if since is None else _moment("from", since)
        if not start < end:
            raise BadRequestError(f"from: expected a time before {rfc3339(end)}, got {rfc3339(start)}")
        kept = self._retention.sessions if sessions else self._retention.totals
        # What is older is not stored, so asking for a thousand years must not cost more than asking for what there is.
        oldest = now - kept - HOUR_S
        start, end = max(start, oldest), min(end, now + HOUR_S)  # there is nothing beyond
        first, last = int(start // HOUR_S) * HOUR_S, -int(-end // HOUR_S) * HOUR_S
        return first, max(first, last)


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text[:256].split(",") if name.strip())
    for name in names:
        if name not in GROUPS:
            raise BadRequestError(f"group_by: expected some of {', '.join(GROUPS)}, got {name[:64]!r}")
    if len(set(names)) != len(names):
        raise BadRequestError(f"group_by: a name is there twice in {text[:64]!r}")
    return names


def _tenant(asked: str | None) -> str | None:
    """Whose rows are read: a caller that sees one tenant reads that one's only."""
    caller = current()
    if caller.sees_all_tenants:
        return asked
    if asked not in (None, caller.tenant):
        return "\0"  # no tenant's name: another's usage does not exist for this caller
    return caller.tenant


def _moment(name: str, text: str) -> float:
    """Epoch seconds of an RFC 3339 time or of a number of seconds. Raises BadRequestError."""
    try:
        if len(text) > 40:
            raise ValueError
        if text.isascii() and text.isdigit():
            seconds = float(text)
        else:
            # A + in a query is a space once decoded, which no time has.
            read = datetime.fromisoformat(text.replace(" ", "+"))
            seconds = (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).timestamp()
        if 0 <= seconds < _LAST:
            return seconds
    except (ValueError, OverflowError):
        pass
    raise BadRequestError(
        f"{name}: expected a time such as 2026-01-31T00:00:00Z, or seconds since 1970, got {text[:64]!r}"
    )
