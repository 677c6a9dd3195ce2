"""What agents are made of: their files and their packages. Each is answered with a digest, which an agent names.

`POST /v1/agent-bundles` takes a tar archive, `POST /v1/agent-environments` a list of requirements.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from gateway.agents.bundles import MAX_UPLOAD_BYTES, BundleStore
from gateway.agents.environments import EnvironmentBuilder
from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_bytes, read_object
from gateway.core.errors import ConflictError


class AgentBundlesAPI:
    """Handlers. None: this engine has none."""

    def __init__(self, bundles: BundleStore | None, environments: EnvironmentBuilder | None) -> None:
        self._bundles, self._environments = bundles, environments
        # One at a time: each is held in memory, and its files are written to the disk of the gateway.
        self._slot = asyncio.Semaphore(1)

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"create_agent_bundle": self._create, "create_agent_environment": self._create_environment}

    async def _create(self, request: Request) -> Response:
        if self._bundles is None:
            raise ConflictError("in a cluster an agent's files are in its image")
        async with self._slot:
            archive = await read_bytes(request, MAX_UPLOAD_BYTES)
            request.state.body = b""  # the audit trail does not need it
            digest = await asyncio.to_thread(self._bundles.add, archive)
        return JSON({"digest": digest, "bytes": len(archive)}, 201)

    async def _create_environment(self, request: Request) -> Response:
        if self._environments is None:
            raise ConflictError("in a cluster an agent's packages are in its image")
        body = await read_object(request)
        requirements = body.get("requirements")
        if not isinstance(requirements, str) or len(body) > 1:
            raise ParamError("requirements", "expected the text of a requirements.txt, and no other field")
        built = await self._environments.build(requirements)
        document = {"digest": built.digest, "cached": built.cached, "seconds": round(built.seconds, 3)}
        return JSON(document, 200 if built.cached else 201)
