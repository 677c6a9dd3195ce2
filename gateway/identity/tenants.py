"""Tenants and their limits: those of the file and those of the store, all in memory, followed in the store.

A tenant exists without being made here: a key names it. What the API sets for a tenant replaces what the file says of
it; a tenant for which neither says anything has the file's `defaults`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import BadRequestError, StaleWriteError
from gateway.core.identity import is_tenant
from gateway.identity.budgets import Budget
from gateway.identity.tenant_limits import OWN, TenantLimits, parse_limits
from gateway.identity.tenants_file import NO_FILE, TenantsFile

logger = logging.getLogger(__name__)

KIND = "tenant"
MAX_TENANTS = 10_000
_WRITE_ATTEMPTS = 5
_NEW_S = 10.0  # after joining others: by then each bucket of the usual burst, of a second, would be full


class TenantDirectory:
    """The limits of every tenant, from memory. `budget` hands out what counts a tenant's requests."""

    def __init__(self, documents: DocumentStore, file: TenantsFile = NO_FILE) -> None:
        self._documents = documents
        self._file = file
        self._revision = -1
        self._stored: dict[str, TenantLimits | None] = {}  # None: the tenant was deleted
        self._budgets: dict[str, Budget] = {}
        self._gateways = 1
        self._refilled: float | None = None
        self._new_s = 0.0

    def __repr__(self) -> str:
        return f"<TenantDirectory of {len(self.names())} tenants>"

    @property
    def revision(self) -> int:
        """Grows with each change that this gateway has seen."""
        return self._revision

    async def follow(self) -> bool:
        """Read again what has changed. Returns whether anything has. Raises StoreUnavailableError."""
        revision = await self._documents.revision(KIND)
        if revision == self._revision:
            return False
        found: dict[str, TenantLimits | None] = {}
        for document in await self._documents.list(KIND):
            try:
                value = document.value
                found[document.name] = None if value.get("deleted") else parse_limits(value["limits"])
            except (KeyError, TypeError, ValueError) as error:
                # The limits that it had, not the defaults: those may be none at all.
                logger.error("tenant %s is unreadable in the store; it keeps its limits: %r", document.name, error)
                if document.name in self._stored:
                    found[document.name] = self._stored[document.name]
        changed = found != self._stored
        self._stored, self._revision = found, revision
        self._resize_budgets()
        return changed

    def limits(self, tenant: str) -> TenantLimits:
        """What a tenant may use: as the API set it, else as the file says, else the file's defaults."""
        stored = self._stored.get(tenant)
        return stored if stored is not None else self._file.tenants.get(tenant, self._file.defaults)

    @property
    def limits_amounts(self) -> bool:
        """Whether what sessions hold is limited for any tenant."""
        known = (self._file.defaults, *self._file.tenants.values(), *self._stored.values())
        return any(limits is not None and limits.amounts for limits in known)

    def is_deleted(self, tenant: str) -> bool:
        """Whether a tenant was deleted, and not created again since: its keys and tokens are refused."""
        return tenant in self._stored and self._stored[tenant] is None

    def names(self) -> list[str]:
        """The tenants that the file or the API has limits for, by name."""
        return sorted(name for name in {*self._stored, *self._file.tenants} if not self.is_deleted(name))

    async def put(self, tenant: str, limits: TenantLimits) -> bool:
        """Set the limits of a tenant. Returns whether it had none of its own in the store.

        Raises BadRequestError, StoreUnavailableError.
        """
        if not is_tenant(tenant) or tenant == OWN:
            raise BadRequestError(
                f"tenant: expected a name of a-z, 0-9 and '-', at most 63 long, other than {OWN}; got {tenant[:64]!r}"
            )
        if tenant not in self._stored and len(self._stored) >= MAX_TENANTS:
            raise BadRequestError(f"there are {MAX_TENANTS} tenants, the most that a store holds")
        made = self._stored.get(tenant) is None  # deleted counts as none: it is made anew
        await self._write(tenant, {"limits": limits.document()})
        return made

    async def delete(self, tenant: str) -> None:
        """Refuse whoever acts for a tenant. A mark stays, so that tokens which name it are refused too."""
        await self._write(tenant, {"deleted": True})

    async def _write(self, tenant: str, value: Mapping[str, Any]) -> None:
        for attempt in range(_WRITE_ATTEMPTS):
            kept = await self._documents.get(KIND, tenant) or Document(KIND, tenant, {})
            try:
                await self._documents.put(replace(kept, value=value))
                break
            except StaleWriteError:  # another administrator was faster; the last one wins
                if attempt == _WRITE_ATTEMPTS - 1:
                    raise
        await self.follow()

    def budget(self, tenant: str) -> Budget | None:
        """What counts a tenant's requests here; None: they are not limited."""
        limits = self.limits(tenant)
        if limits.requests_per_second is None:
            return None
        found = self._budgets.get(tenant)
        if found is None:
            found = self._budgets[tenant] = Budget()
            found.resize(limits.requests_per_second, limits.request_burst, self._gateways)
            if self._new_s > 0:
                found.hold_one()
        return found

    def refill(self, now: float) -> None:
        """Add to each budget what came in since the last call. `now` is of a monotonic clock."""
        # All at once from one loop: a request then only subtracts, and reads no clock.
        since = 0.0 if self._refilled is None else now - self._refilled
        self._refilled = now
        self._new_s -= since
        for budget in self._budgets.values():
            budget.refill(since)

    @property
    def has_rates(self) -> bool:
        """Whether the requests of any tenant are limited."""
        known = (self._file.defaults, *self._file.tenants.values(), *self._stored.values())
        return any(limits is not None and limits.requests_per_second is not None for limits in known)

    def join(self, gateways: int) -> None:
        """Begin with this gateway's part of each rate beside others', and with no burst: they have it."""
        self.share_among(gateways)
        if gateways > 1:
            self._new_s = _NEW_S

    def share_among(self, gateways: int) -> None:
        """Let this gateway give each tenant its part of the rate: one of `gateways`."""
        if gateways != self._gateways:
            self._gateways = gateways
            self._resize_budgets()

    def _resize_budgets(self) -> None:
        for tenant, budget in list(self._budgets.items()):
            limits = self.limits(tenant)
            if limits.requests_per_second is None:
                budget.lift()  # identities in memory keep the object, and must not be limited by it any more
                del self._budgets[tenant]
            else:
                budget.resize(limits.requests_per_second, limits.request_burst, self._gateways)
