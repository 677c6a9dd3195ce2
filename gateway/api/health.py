"""Health, readiness and metrics: what orchestrators, load balancers and Prometheus ask a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.core.errors import WakegateError, public_message, without_host_paths
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider, SessionStore
from gateway.core.settings import probe_state_dir


class HealthAPI:
    """Handlers of the health checks and of /metrics.

    `render_metrics` takes an Accept header and returns a body with its content type. `unready`: a reason of another
    part's, the audit trail's, for which this gateway cannot serve; empty: there is none.
    """

    def __init__(
        self,
        store: SessionStore,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        state_dir: Path,
        *,
        is_draining: Callable[[], bool],
        render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
        unready: Callable[[], str] = str,
    ) -> None:
        self._store = store
        self._provider = provider
        self._catalog = catalog
        self._state_dir = state_dir
        self._is_draining = is_draining
        self._render_metrics = render_metrics
        self._unready = unready
        self._pools_settled = False  # whether every pool has had a sandbox since the start
        self._store_answered = False  # whether the store has answered since the start

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "render_metrics": self._metrics,
            "check_liveness": self._healthz,
            "check_readiness": self._readyz,
            "check_agentcube_readiness": self._health_ready,
        }

    async def _metrics(self, request: Request) -> Response:
        body, content_type = await self._render_metrics(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def _healthz(self, _: Request) -> Response:
        return JSON({"status": "alive"})

    async def _readyz(self, _: Request) -> Response:
        store_problems = await self._store_problems()
        # In a thread: it writes a file, which a full or remote disk may hold up.
        unwritable = await asyncio.to_thread(probe_state_dir, self._state_dir)
        reasons = [
            *self._draining(),
            *store_problems,
            *([unwritable] if unwritable else []),
            *filter(None, [self._unready()]),
            *await self._pools_without_sandbox(),
        ]
        reasons = [without_host_paths(reason) for reason in reasons]  # probes need no key
        document = {"status": "not ready", "reasons": reasons} if reasons else {"status": "ready"}
        # The store is asked for warnings only if it has just answered: a probe has to be answered within its own
        # timeout.
        warnings = [] if store_problems else await self._store.warnings()
        return JSON(document | ({"warnings": list(warnings)} if warnings else {}), 503 if reasons else 200)

    async def _health_ready(self, _: Request) -> Response:
        """Like /readyz, except that an outage of the store does not fail it once the store has answered.

        Live sessions are served without the store. All replicas lose it at the same time, and if each of them failed
        its readiness check then, the load balancer would have none left.
        """
        reasons = [
            *self._draining(),
            *([] if self._store_answered else await self._store_problems()),
            *await self._pools_without_sandbox(),
        ]
        if reasons:
            return JSON({"error": without_host_paths("; ".join(reasons)), "status": "not ready"}, 503)
        return JSON({"status": "ready"})

    def _draining(self) -> list[str]:
        return ["this gateway is shutting down"] if self._is_draining() else []

    async def _store_problems(self) -> list[str]:
        try:
            await self._store.ping()
        except WakegateError as error:
            return [f"the session store does not answer: {public_message(error)}"]
        self._store_answered = True
        return []

    async def _pools_without_sandbox(self) -> list[str]:
        """Pools that have no sandbox yet. After the first time that all of them have one, this is no longer checked.

        A runtime that is added later, and whose image is still being pulled, must not make a serving gateway unready.
        Nor do revisions of agents count: one that hangs while it starts would keep every new gateway unready for three
        start timeouts.
        """
        if self._pools_settled:
            return []
        reasons = []
        for runtime in (each for each in self._catalog.all() if not each.key.revision):
            status = await self._provider.status(runtime.key)
            if not status.settled:
                failure = f"; last failure: {status.last_error}" if status.last_error else ""
                reasons.append(f"{runtime.key}: no warm sandbox yet, {status.starting} starting{failure}")
        self._pools_settled = not reasons
        return reasons
