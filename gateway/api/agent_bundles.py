"""Uploads of agents' files: `POST /v1/agent-bundles` with a tar archive answers its digest, which an agent names."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from gateway.agents.bundles import MAX_UPLOAD_BYTES, BundleStore
from gateway.api.errors import Handler
from gateway.api.http import JSON, read_bytes
from gateway.core.errors import ConflictError


class AgentBundlesAPI:
    """Handlers. `bundles` None: this engine has none."""

    def __init__(self, bundles: BundleStore | None) -> None:
        self._bundles = bundles
        # One at a time: each is held in memory, and its files are written to the disk of the gateway.
        self._slot = asyncio.Semaphore(1)

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"create_agent_bundle": self._create}

    async def _create(self, request: Request) -> Response:
        if self._bundles is None:
            raise ConflictError("in a cluster an agent's files are in its image")
        async with self._slot:
            archive = await read_bytes(request, MAX_UPLOAD_BYTES)
            request.state.body = b""  # the audit trail does not need it
            digest = await asyncio.to_thread(self._bundles.add, archive)
        return JSON({"digest": digest, "bytes": len(archive)}, 201)
