"""AgentCube's control plane (its WorkloadManager): create and delete sessions the way its SDK does.

Errors have the shape `{"message": text}`. Unlike theirs, `ttl` and `metadata` are honoured.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.body import JSON, error_headers, read_metadata, read_object, read_seconds
from gateway.api.relay import relay
from gateway.core.errors import (
    ActivationTimeoutError,
    BadRequestError,
    NotFoundError,
    SessionNotFoundError,
    WakegateError,
)
from gateway.core.model import Kind, RuntimeKey, SessionId, StartKind
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import ElsewhereError


class AgentCubeAPI:
    """Handlers over the lifecycle."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def routes(self) -> list[Route]:
        """Both kinds' paths and the health checks of both of AgentCube's planes."""
        routes = [
            Route("/health", _fixed({"status": "healthy"}), methods=["GET"]),
            Route("/health/live", _fixed({"status": "alive"}), methods=["GET"]),
        ]
        for kind in Kind:
            routes.append(Route(f"/v1/{kind.singular}", self._creator(kind), methods=["POST"]))
            routes.append(Route(f"/v1/{kind.singular}/sessions/{{session_id}}", self._delete, methods=["DELETE"]))
        return routes

    def _creator(self, kind: Kind):  # type: ignore[no-untyped-def]
        async def create(request: Request) -> Response:
            try:
                return await self._create(kind, request)
            except WakegateError as error:
                return _answer(error)

        return create

    async def _create(self, kind: Kind, request: Request) -> Response:
        try:
            body = await read_object(request)
        except BadRequestError:
            raise BadRequestError("Invalid request body") from None
        key = RuntimeKey(_required(body, "namespace"), _required(body, "name"), kind)
        ttl, metadata = read_seconds(body, "ttl"), read_metadata(body)
        try:
            async with self._lifecycle.claims.held(key):
                opened = await self._lifecycle.create(key, ttl=ttl, metadata=metadata)
        except NotFoundError:
            raise NotFoundError(f"{kind.singular.replace('-', ' ')} not found") from None
        except ActivationTimeoutError:
            return JSON({"message": "sandbox creation timed out"}, 504)
        # Clients cannot dial a sandbox; its entry point is this gateway, which routes by the session header.
        entry = {"path": "/", "protocol": request.url.scheme.upper(), "endpoint": request.url.netloc}
        return JSON({
            "kind": "Sandbox" if opened.start is StartKind.COLD else "SandboxClaim",
            "sessionId": opened.session.id,
            "sandboxId": opened.sandbox.id,
            "sandboxName": f"{key.name}-{opened.sandbox.id}",
            "entryPoints": [entry],
        })  # fmt: skip

    async def _delete(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        try:
            try:
                await self._lifecycle.terminate(session_id, "deleted by its user")
            except ElsewhereError as elsewhere:
                return await relay(request, elsewhere)
        except SessionNotFoundError:
            return JSON({"message": f"Session ID {session_id} not found, maybe already deleted"}, 404)
        except WakegateError as error:
            return _answer(error)
        return JSON({"message": "Sandbox deleted successfully"})


def _required(body: object, name: str) -> str:
    value = body.get(name) if isinstance(body, dict) else None
    if value is None or value == "":
        raise BadRequestError(f"{name} is required")
    if not isinstance(value, str):
        raise BadRequestError("Invalid request body")
    return value


def _answer(error: WakegateError) -> Response:
    return JSON({"message": str(error)}, error.status, error_headers(error))


def _fixed(content: dict[str, str]):  # type: ignore[no-untyped-def]
    async def answer(_: Request) -> Response:
        return JSON(content)

    return answer
