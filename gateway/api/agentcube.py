"""AgentCube's control plane (its WorkloadManager): create and delete sessions the way its SDK does.

Errors have the shape `{"message": text}`. Unlike theirs, `ttl` and `metadata` are honoured.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON, read_metadata, read_object, read_seconds
from gateway.api.sessions import DELETED_BY_USER, create_session
from gateway.core.errors import (
    ActivationTimeoutError,
    BadRequestError,
    NotFoundError,
    SessionNotFoundError,
)
from gateway.core.model import Kind, RuntimeKey, SessionId, StartKind
from gateway.sessions.lifecycle import Lifecycle


class AgentCubeAPI:
    """Handlers that create and delete sessions of both kinds, and AgentCube's health checks."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name: both kinds' paths and the health checks."""
        return {
            "create_code_interpreter": partial(self._create, Kind.CODE_INTERPRETER),
            "create_agent_runtime": partial(self._create, Kind.AGENT_RUNTIME),
            "delete_code_interpreter": self._delete,
            "delete_agent_runtime": self._delete,
            "check_agentcube_health": _health,
            "check_agentcube_liveness": _live,
        }

    async def _create(self, kind: Kind, request: Request) -> Response:
        try:
            body = await read_object(request)
        except BadRequestError:
            # The texts of AgentCube's WorkloadManager, here and below: a client that compares them sees no difference.
            raise BadRequestError("Invalid request body") from None
        key = RuntimeKey(_required(body, "namespace"), _required(body, "name"), kind)
        ttl, metadata = read_seconds(body, "ttl"), read_metadata(body)
        try:
            opened = await create_session(request, self._lifecycle, key, ttl=ttl, metadata=metadata)
        except NotFoundError:
            raise NotFoundError(f"{kind.singular.replace('-', ' ')} not found") from None
        except ActivationTimeoutError:
            raise ActivationTimeoutError("sandbox creation timed out") from None
        # Clients cannot dial a sandbox, so the entry point is this gateway, which routes by the session header.
        entry = {"path": "/", "protocol": request.url.scheme.upper(), "endpoint": request.url.netloc}
        return JSON({
            # AgentCube's words: a SandboxClaim is what took a sandbox from a warm pool.
            "kind": "Sandbox" if opened.start is StartKind.COLD else "SandboxClaim",
            "sessionId": opened.session.id,
            "sandboxId": opened.sandbox.id,
            "sandboxName": f"{key.name}-{opened.sandbox.id}",
            "entryPoints": [entry],
        })  # fmt: skip

    async def _delete(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        try:
            await self._lifecycle.terminate(session_id, DELETED_BY_USER)
        except SessionNotFoundError:
            raise SessionNotFoundError(f"Session ID {session_id} not found, maybe already deleted") from None
        return JSON({"message": "Sandbox deleted successfully"})


def _required(body: object, name: str) -> str:
    value = body.get(name) if isinstance(body, dict) else None
    if value is None or value == "":
        raise BadRequestError(f"{name} is required")
    if not isinstance(value, str):
        raise BadRequestError("Invalid request body")
    return value


async def _health(_: Request) -> Response:
    return JSON({"status": "healthy"})


async def _live(_: Request) -> Response:
    return JSON({"status": "alive"})
