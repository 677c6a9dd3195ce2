"""GET /v1/sessions/{id}/metrics: what one session uses now and has used, as JSON or for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError
from gateway.core.interfaces import LoadReader, RuntimeCatalog, SandboxProvider
from gateway.core.model import Limits, Session, SessionId, StartKind
from gateway.core.units import rfc3339
from gateway.core.usage import Quantity, SandboxLoad
from gateway.observability.counters import SessionTotals
from gateway.sessions.lifecycle import Lifecycle

_STARTS = {
    StartKind.WARM: Quantity.STARTS_WARM,
    StartKind.COLD: Quantity.STARTS_COLD,
    StartKind.WAKE: Quantity.STARTS_WAKE,
    StartKind.WAKE_COLD: Quantity.STARTS_WAKE_COLD,
}
# Of the sandbox, and of the session: field of the document, name and kind for Prometheus.
_NOW = {
    "cores": ("wakegate_session_cores", "gauge"),
    "cpuLimit": ("wakegate_session_cores_limit", "gauge"),
    "memoryBytes": ("wakegate_session_memory_bytes", "gauge"),
    "memoryLimit": ("wakegate_session_memory_limit_bytes", "gauge"),
    "processes": ("wakegate_session_processes", "gauge"),
    "processesLimit": ("wakegate_session_processes_limit", "gauge"),
    "diskBytes": ("wakegate_session_disk_bytes", "gauge"),
    "diskLimit": ("wakegate_session_disk_limit_bytes", "gauge"),
}
_SINCE = {
    "cpuSeconds": ("wakegate_session_cpu_seconds_total", "counter"),
    "requests": ("wakegate_session_requests_total", "counter"),
    "egressBytes": ("wakegate_session_egress_bytes_total", "counter"),
    "sandboxSeconds": ("wakegate_session_sandbox_seconds_total", "counter"),
    "hibernatedSeconds": ("wakegate_session_hibernated_seconds_total", "counter"),
}


class SessionMetricsAPI:
    """The handler that shows what one session uses and has used.

    `totals`: what sessions have used since this gateway's start, as the usage meter has written it.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        totals: SessionTotals,
        clock: Clock,
    ) -> None:
        self._lifecycle, self._catalog, self._totals = lifecycle, catalog, totals
        self._engine: LoadReader | None = provider if isinstance(provider, LoadReader) else None
        self._since = clock.now()

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"get_session_metrics": self._get}

    async def _get(self, request: Request) -> Response:
        if unknown := sorted(request.query_params.keys()):
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; there is none")
        session = await self._lifecycle.get_here(SessionId(request.path_params["session_id"]))
        document = await self._document(session)
        accept = request.headers.get("accept", "")
        if "text/plain" in accept or "openmetrics" in accept:
            # Of the classic format and not OpenMetrics: every Prometheus reads it, whatever it asked for.
            return Response("".join(render(document)), media_type="text/plain; version=0.0.4")
        return JSON(document)

    async def _document(self, session: Session) -> dict[str, Any]:
        runtime, used = self._catalog.get(session.runtime), self._totals.of(session.id)
        limits = None if runtime is None else runtime.limits.resized(session.resources)
        load = None
        if session.sandbox is not None and self._engine is not None:
            load = await self._engine.load(session.sandbox.id)
        return {
            "session": session.id,
            "state": session.state,
            "since": rfc3339(self._since),
            "sandbox": None if load is None else _load(load, limits),
            "requests": round(used.get(Quantity.REQUESTS, 0)),
            "egressBytes": round(used.get(Quantity.EGRESS_BYTES, 0)),
            "sandboxSeconds": used.get(Quantity.SANDBOX_SECONDS, 0.0),
            "hibernatedSeconds": used.get(Quantity.HIBERNATED_SECONDS, 0.0),
            "cpuSeconds": used.get(Quantity.CPU_SECONDS, 0.0),
            "starts": {kind.value: round(used.get(quantity, 0)) for kind, quantity in _STARTS.items()},
        }


def _load(load: SandboxLoad, limits: Limits | None) -> dict[str, Any]:
    return {
        "cpuSeconds": load.cpu_s,
        "cores": load.cores,
        "cpuLimit": None if limits is None else limits.cpus,
        "memoryBytes": load.memory_bytes,
        "memoryLimit": None if limits is None else limits.memory,
        "processes": load.processes,
        "processesLimit": None if limits is None else limits.processes,
        "diskBytes": load.disk_bytes,
        "diskLimit": None if limits is None else limits.workspace_size,
    }


def render(document: dict[str, Any]) -> Iterator[str]:
    """The document in the text format of Prometheus; what is not known has no line."""
    # A session's id is letters, digits and a few marks, none of which the format escapes (sessions/new_session.py).
    label = f'session="{document["session"]}"'
    values = [(_NOW[name], (document["sandbox"] or {}).get(name)) for name in _NOW]
    values += [(_SINCE[name], document[name]) for name in _SINCE]
    for (name, kind), value in values:
        if value is not None:
            yield f"# TYPE {name} {kind}\n{name}{{{label}}} {value}\n"
    yield "# TYPE wakegate_session_starts_total counter\n"
    for start, count in document["starts"].items():
        yield f'wakegate_session_starts_total{{{label},start="{start}"}} {count}\n'
