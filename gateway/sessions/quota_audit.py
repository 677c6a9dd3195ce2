"""Compares the quota ledger with the records of sessions, and corrects the ledger.

Three things make them differ: a gateway that died between a reservation and its record, or between a record and its
settlement; a tenant whose sessions were there before it had limits; and a store that lost a part of the ledger.
"""

from __future__ import annotations

import logging

from gateway.core.clock import Clock
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Session, SessionId, SessionState
from gateway.core.quota import Entry, QuotaLedger
from gateway.identity.tenants import TenantDirectory
from gateway.sessions.quotas import RESERVATION_S, amounts_of
from gateway.sessions.records import Records
from gateway.sessions.restorability import all_sessions

logger = logging.getLogger(__name__)

AUDIT_INTERVAL_S = 30.0  # for how long a wrong entry may refuse what would fit


class QuotaAudit:
    """One pass is `run`, by the gateway that leads the sweeps."""

    def __init__(
        self,
        ledger: QuotaLedger,
        tenants: TenantDirectory,
        records: Records,
        catalog: RuntimeCatalog,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._tenants = tenants
        self._records = records
        self._catalog = catalog
        self._clock = clock
        self._next_at = float("-inf")
        self._revision: int | None = None

    async def run_if_due(self) -> int:
        """Audit when limits have changed, and each AUDIT_INTERVAL_S while there are any. Returns the corrections."""
        revision, now = self._tenants.revision, self._clock.monotonic()
        if revision == self._revision and (now < self._next_at or not self._tenants.limits_amounts):
            return 0
        self._next_at = now + AUDIT_INTERVAL_S
        corrected = await self.run() if self._tenants.limits_amounts or self._revision is not None else 0
        self._revision = revision
        return corrected

    async def run(self) -> int:
        """Correct every entry that differs. Returns how many did. Raises StoreUnavailableError."""
        # Entries are read before records, and an entry is only changed if it is still the one that was read. So a
        # reservation that was made since, whose record is newer than the one read here, is left alone.
        entries: dict[tuple[str, SessionId], Entry] = {}
        for tenant in await self._ledger.tenants():
            for entry in await self._ledger.entries(tenant):
                entries[tenant, entry.session_id] = entry
        corrected = 0
        async for session in all_sessions(self._records.store):
            corrected += await self._correct(session, entries.pop((session.tenant, session.id), None))
        for (tenant, session_id), entry in entries.items():
            if self._is_pending(entry) or await self._records.store.get(session_id) is not None:
                continue
            corrected += await self._ledger.settle(tenant, session_id, {}, mark=entry.mark)
        if corrected:
            logger.info("quotas: corrected what %d sessions hold", corrected)
        return corrected

    async def _correct(self, session: Session, entry: Entry | None) -> bool:
        limited = bool(self._tenants.limits(session.tenant).amounts)
        amounts = amounts_of(session, self._catalog.get(session.runtime)) if limited else {}
        if entry is None:
            if not amounts or session.state is SessionState.TERMINATED:
                return False
            return await self._ledger.settle(session.tenant, session.id, amounts, mark=0)
        if self._is_pending(entry) or (entry.until == 0.0 and entry.amounts == amounts):
            return False
        return await self._ledger.settle(session.tenant, session.id, amounts, mark=entry.mark)

    def _is_pending(self, entry: Entry) -> bool:
        """Whether an operation under way has reserved it, and will settle it.

        One that ends later than any reservation that is made now was made before the clock was set back.
        """
        now = self._clock.now()
        return now < entry.until <= now + 2 * RESERVATION_S
