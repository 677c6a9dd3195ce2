"""API keys and session tokens over HTTP: create, list, revoke, rotate. Errors: `{"error": text, "code": CODE}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON, read_object, read_seconds
from gateway.core.errors import BadRequestError, ConflictError, SessionNotFoundError
from gateway.core.identity import KEY_ROLES, Role, current
from gateway.core.model import DEFAULT_TENANT, SessionId, SessionState
from gateway.core.units import rfc3339
from gateway.identity.authenticator import Authenticator
from gateway.identity.keys import APIKey, e2b_spelling
from gateway.sessions.lifecycle import Lifecycle

DEFAULT_TOKEN_LIFETIME_S = 3600.0
# After a leak, the usual reason to rotate, an old key that stays valid is the danger. Who wants time to roll out the
# new one asks for it.
_DEFAULT_OVERLAP_S = 0.0
# For answers that hold a key, or list who has one: no cache on the way may keep them.
_NO_STORE = {"cache-control": "no-store"}


class KeysAPI:
    """Handlers over the gateway's authenticator; `authenticator` None: the gateway runs without authentication."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        # Set when the gateway's parts are wired, if authentication is on.
        self.authenticator: Authenticator | None = None
        self._lifecycle = lifecycle

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "create_key": self._create,
            "list_keys": self._list,
            "revoke_key": self._revoke,
            "rotate_key": self._rotate,
            "create_session_token": self._create_token,
            "get_caller": _caller,
        }

    def _required(self) -> Authenticator:
        if self.authenticator is None:
            raise ConflictError(
                "this gateway has no authentication: start it with --auth, or with --admin-key-file, to use keys"
            )
        return self.authenticator

    async def _create(self, request: Request) -> Response:
        authenticator = self._required()
        body = await read_object(request)
        _refuse_unknown(body, {"role", "tenant", "name", "user", "runtimes", "expires"})
        text, key = await authenticator.directory.create(
            role=_role(body),
            tenant=_text(body, "tenant") or DEFAULT_TENANT,
            name=_text(body, "name"),
            user=_text(body, "user"),
            runtimes=_texts(body, "runtimes"),
            lifetime=read_seconds(body, "expires"),
        )
        return JSON({"key": text, "e2bKey": e2b_spelling(text), **key_document(key)}, 201, _NO_STORE)

    async def _list(self, request: Request) -> Response:
        found = await self._required().directory.list(request.query_params.get("tenant"))
        return JSON({"keys": [key_document(key) for key in found]}, headers=_NO_STORE)

    async def _revoke(self, request: Request) -> Response:
        authenticator = self._required()
        await authenticator.directory.revoke(request.path_params["key_id"])
        authenticator.forget_all()
        return Response(status_code=204)

    async def _rotate(self, request: Request) -> Response:
        authenticator = self._required()
        body = await read_object(request)
        _refuse_unknown(body, {"overlap"})
        overlap = read_seconds(body, "overlap")
        text, key = await authenticator.directory.rotate(
            request.path_params["key_id"], overlap=_DEFAULT_OVERLAP_S if overlap is None else overlap
        )
        authenticator.forget_all()
        return JSON({"key": text, "e2bKey": e2b_spelling(text), **key_document(key)}, 201, _NO_STORE)

    async def _create_token(self, request: Request) -> Response:
        authenticator = self._required()
        body = await read_object(request)
        _refuse_unknown(body, {"ttl", "paths", "ports"})
        session_id = SessionId(request.path_params["session_id"])
        session = await self._lifecycle.get(session_id)
        # Its record is kept for a while, but a token for it could never be used.
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"session {session_id} has ended")
        ports = body.get("ports", [])
        # By type and not by isinstance: True is an int too.
        if not isinstance(ports, list) or not all(type(port) is int for port in ports):
            raise BadRequestError("ports: expected a list of numbers")
        lifetime = read_seconds(body, "ttl")
        lifetime = DEFAULT_TOKEN_LIFETIME_S if lifetime is None else lifetime
        token, expires_at = authenticator.issue_session_token(
            session, lifetime, subject=current().subject, paths=_texts(body, "paths"), ports=tuple(ports)
        )
        return JSON({"token": token, "expiresAt": rfc3339(expires_at)}, 201, _NO_STORE)


async def _caller(_: Request) -> Response:
    caller = current()
    return JSON({
        "subject": caller.subject,
        "tenant": caller.tenant,
        "user": caller.user,
        "role": caller.role,
        "runtimes": sorted(caller.runtimes),
        "expiresAt": None if caller.expires_at == float("inf") else rfc3339(caller.expires_at),
    })  # fmt: skip


def key_document(key: APIKey) -> dict[str, Any]:
    """A key as the API shows it: never the key itself."""
    return {
        "id": key.id,
        "role": key.role,
        "tenant": key.tenant,
        "name": key.name,
        "user": key.user,
        "runtimes": sorted(key.runtimes),
        "createdAt": rfc3339(key.created_at),
        "expiresAt": None if key.expires_at is None else rfc3339(key.expires_at),
        "lastUsedAt": None if key.last_used_at is None else rfc3339(key.last_used_at),
    }


def _refuse_unknown(body: Mapping[str, Any], known: set[str]) -> None:
    # Refused and not ignored: a key made with `expire` in place of `expires` would be valid for ever.
    unknown = sorted(body.keys() - known)
    if unknown:
        raise BadRequestError(f"{unknown[0][:64]}: unknown field; expected {', '.join(sorted(known))}")


def _role(body: Mapping[str, Any]) -> Role:
    value = body.get("role")
    if value not in KEY_ROLES:
        raise BadRequestError(f"role: expected one of {', '.join(KEY_ROLES)}; got {repr(value)[:64]}")
    return Role(value)


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise BadRequestError(f"{name}: expected text")
    return value


def _texts(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = body.get(name, [])
    if not isinstance(value, list) or len(value) > 64 or not all(isinstance(each, str) for each in value):
        raise BadRequestError(f"{name}: expected a list of at most 64 texts")
    return tuple(value)
