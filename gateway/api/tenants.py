"""Tenants over HTTP: limits, usage of them, and deletion. Errors: `{"error": text, "code": CODE}`."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON, read_object
from gateway.core.errors import BadRequestError, ConflictError, NotFoundError, SessionNotFoundError, WakegateError
from gateway.core.identity import current
from gateway.core.interfaces import SessionStore
from gateway.core.model import DEFAULT_TENANT, SessionId, SessionState
from gateway.core.quota import Resource
from gateway.identity.authenticator import Authenticator
from gateway.identity.tenant_limits import parse_limits
from gateway.identity.tenants import TenantDirectory
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import ElsewhereError
from gateway.sessions.restorability import all_sessions

# A tenant may have thousands of sessions: one after another they would take minutes, all at once the whole gateway.
_END_CONCURRENCY = 16
_NO_STORE = {"cache-control": "no-store"}


class TenantsAPI:
    """Handlers over the tenants' directory; `authenticator` None: there are no keys to revoke."""

    def __init__(self, tenants: TenantDirectory, store: SessionStore, lifecycle: Lifecycle) -> None:
        self.authenticator: Authenticator | None = None
        self._tenants = tenants
        self._store = store
        self._lifecycle = lifecycle

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "list_tenants": self._list,
            "get_own_tenant": self._get_own,
            "get_tenant": self._get,
            "put_tenant": self._put,
            "delete_tenant": self._delete,
        }

    async def _list(self, _: Request) -> Response:
        # A tenant exists as soon as a key names it; it is in the directory only if it has limits.
        names = sorted({*self._tenants.names(), *await self._tenants_of_keys()})
        return JSON({"tenants": [await self._document(name) for name in names]}, headers=_NO_STORE)

    async def _get_own(self, _: Request) -> Response:
        return JSON(await self._document(current().tenant or DEFAULT_TENANT), headers=_NO_STORE)

    async def _get(self, request: Request) -> Response:
        return JSON(await self._document(await self._existing(request)), headers=_NO_STORE)

    async def _put(self, request: Request) -> Response:
        name = request.path_params["tenant"]
        body = await read_object(request)
        if unknown := sorted(body.keys() - {"limits"}):
            raise BadRequestError(f"{unknown[0][:64]}: unknown field; expected limits")
        try:
            limits = parse_limits(body.get("limits", {}), "limits.")
        except ValueError as error:
            raise BadRequestError("; ".join(str(error).splitlines())) from None
        made = await self._tenants.put(name, limits)
        if self.authenticator is not None:
            self.authenticator.forget_all()  # identities carry what counts their requests
        return JSON(await self._document(name), 201 if made else 200, _NO_STORE)

    async def _delete(self, request: Request) -> Response:
        wanted = request.query_params.get("sessions", "keep")
        if wanted not in ("keep", "end"):
            raise BadRequestError(f"sessions: expected keep or end, got {wanted[:64]!r}")
        name = await self._existing(request)
        if self.authenticator is None and name == DEFAULT_TENANT:
            raise ConflictError(
                f"without authentication everybody acts for the tenant {DEFAULT_TENANT}, which therefore cannot be "
                "deleted; DELETE /v1/sessions/ID ends a session"
            )
        # First, so that no request of the tenant, and no new key for it, comes between the list of its keys and their
        # end.
        await self._tenants.delete(name)
        if self.authenticator is not None:
            self.authenticator.forget_all()
            for key in await self.authenticator.directory.list(name):
                await self.authenticator.directory.revoke(key.id)
        if wanted == "end":
            await self._end_sessions(name)
        return Response(status_code=204)

    async def _existing(self, request: Request) -> str:
        """The tenant of the path. Raises NotFoundError if neither a key nor limits name it."""
        name: str = request.path_params["tenant"]
        known = name == DEFAULT_TENANT or name in self._tenants.names()
        if self._tenants.is_deleted(name) or not (known or name in await self._tenants_of_keys()):
            raise NotFoundError(f"no tenant {name[:64]!r}: no key names it, and it has no limits of its own")
        return name

    async def _tenants_of_keys(self) -> set[str]:
        found = [] if self.authenticator is None else await self.authenticator.directory.list()
        return {key.tenant for key in found}

    async def _document(self, name: str) -> dict[str, Any]:
        limits = self._tenants.limits(name)
        # Only what is limited is counted, so without limits there is nothing to show.
        used = await self._store.quotas.used(name) if limits.amounts else {}
        counted: dict[str, float] = {each.value: used.get(each, 0) for each in Resource} if limits.amounts else {}
        if counted:
            # The ledger counts thousandths.
            counted[Resource.VCPU.value] /= 1000
        return {"name": name, "limits": limits.document(), "used": counted}

    async def _end_sessions(self, tenant: str) -> None:
        slots = asyncio.Semaphore(_END_CONCURRENCY)

        async def end(session_id: SessionId) -> None:
            async with slots:
                try:
                    await self._lifecycle.terminate(session_id, "its tenant was deleted")
                except ElsewhereError:
                    await self._lifecycle.update(session_id, ttl=0.0)  # the gateway that has it ends it in its sweep
                except SessionNotFoundError:
                    pass

        ending = [
            asyncio.create_task(end(session.id))
            async for session in all_sessions(self._store)
            if session.tenant == tenant and session.state is not SessionState.TERMINATED
        ]
        # To the end, whatever fails: one sandbox that does not answer must not keep the other sessions alive.
        results = await asyncio.gather(*ending, return_exceptions=True)
        failures = [each for each in results if isinstance(each, WakegateError)]
        if failures:
            raise failures[0]  # the remaining sessions end by their own timeouts, or with the next attempt
