"""What a session may reach and what it reached: GET /v1/sessions/{id}/egress."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.core.errors import BadRequestError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import SessionId
from gateway.core.units import rfc3339
from gateway.egress.log import Access, Outcome
from gateway.egress.records import MAX_LINES, EgressRecords, SessionEgress
from gateway.identity.tenants import TenantDirectory
from gateway.sessions.lifecycle import Lifecycle

_USUAL_LINES = 100


class EgressAPI:
    """The handler that shows what a session may reach and has reached.

    `records`: what sessions of this gateway reached lately.
    """

    def __init__(
        self, lifecycle: Lifecycle, catalog: RuntimeCatalog, tenants: TenantDirectory, records: EgressRecords
    ) -> None:
        self._lifecycle, self._catalog, self._tenants, self._records = lifecycle, catalog, tenants, records

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"get_session_egress": self._get}

    async def _get(self, request: Request) -> Response:
        unknown = sorted(request.query_params.keys() - {"limit"})
        if unknown:
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected limit")
        limit = request.query_params.get("limit", str(_USUAL_LINES))
        if len(limit) > 3 or not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MAX_LINES:
            raise BadRequestError(f"limit: expected a whole number from 1 to {MAX_LINES}, got {limit[:64]!r}")
        session = await self._lifecycle.get_here(SessionId(request.path_params["session_id"]))
        runtime = self._catalog.get(session.runtime)
        allowed = {
            "runtime": list(runtime.egress) if runtime is not None else [],
            "session": None if session.egress is None else list(session.egress),
            "tenant": self._tenants.limits(session.tenant).egress,
        }
        found = self._records.of(session.id) or SessionEgress()
        return JSON({"allowed": allowed, **_sums(found), "log": [_line(each) for each in found.lines()[: int(limit)]]})


def _sums(found: SessionEgress) -> dict[str, Any]:
    counts = {each.value: found.counts.get(each, 0) for each in Outcome if each is not Outcome.OPEN}
    return {
        "connections": {**counts, "open": len(found.open)},
        "bytesSent": found.up,
        "bytesReceived": found.down,
        "leftOut": found.left_out,
    }


def _line(line: Access) -> dict[str, Any]:
    return {
        "at": rfc3339(line.at),
        "outcome": line.outcome,
        "protocol": line.protocol,
        "host": line.host,
        "port": line.port,
        "address": line.address,
        "rule": line.rule,
        "reason": line.reason,
        "setting": line.setting,
        "bytesSent": line.up,
        "bytesReceived": line.down,
        "seconds": line.seconds,
        "requests": line.requests,
        "cached": line.cached,
        "secrets": line.secrets,
    }
