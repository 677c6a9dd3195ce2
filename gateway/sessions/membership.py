"""Which gateways are alive, and where they listen, when several share one store.

Sandboxes of the local engine are reachable only by their own gateway. So a session's record names its `owner` while it
has a sandbox or a parked workspace there, and each gateway announces its address under the lease `gateway:<id>`. A
request that arrives at another gateway is forwarded to the owner (docs/adr/0005-several-gateways.md). Where every
gateway reaches every sandbox, `me` is empty, records name no owner, and nothing is announced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.interfaces import SessionStore
from gateway.core.model import Lease, SandboxId

# With the default `takeover_after` of 8 s a gateway announces itself every 2 s: two announcements in a row may be lost.
HEARTBEATS_PER_TAKEOVER = 4
POLL_INTERVAL_S = 0.25  # between two reads of another gateway's announcement, at most


@dataclass(frozen=True, slots=True)
class Peer:
    """Another gateway. `seen` grows with each of its announcements; `alive`: the latest one has not expired.

    `leaving`: it is shutting down and hibernates its sessions first. Nothing new is sent to it. `doubted`: it seems not
    to be alive, but this gateway itself was silent until just now, so that it may be about to announce itself again.
    """

    id: str
    address: str
    seen: float
    alive: bool
    leaving: bool = False
    doubted: bool = False


class Membership:
    """Announces this gateway and looks up others. `address` is where they reach this one, once it listens."""

    def __init__(
        self,
        store: SessionStore,
        clock: Clock,
        me: str,
        *,
        takeover_after: float,
        require_complete: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`require_complete` raises StoreUnavailableError while the store may have lost announcements."""
        self.me = me
        self.address = ""
        self._store = store
        self._clock = clock
        self._takeover_after = takeover_after
        self._lease: Lease | None = None
        self._leaving = False
        self._require_complete = require_complete
        self._announced_at: float | None = None
        self._trusts_from = float("-inf")  # from when on it counts as dead who has not announced itself

    def __repr__(self) -> str:
        return f"<Membership me={self.me!r} at {self.address}>"

    async def find(self, owner: str) -> Peer:
        """Look up a gateway by its id; one that is unknown is not alive. Raises StoreUnavailableError."""
        lease = await self._store.lease(_name(owner))
        if lease is None:
            if self._require_complete is not None:
                await self._require_complete()  # else a session of a gateway that lives would be taken over
            return Peer(owner, "", 0.0, alive=False, doubted=self._doubts(self._clock.now()))
        now = self._clock.now()
        alive = lease.expires_at > now
        notice = await self._store.lease(_leaving_name(owner)) if alive else None
        leaving = notice is not None and notice.expires_at > now
        doubted = not alive and self._doubts(now)
        return Peer(owner, lease.holder, lease.expires_at, alive=alive, leaving=leaving, doubted=doubted)

    def _doubts(self, now: float) -> bool:
        """Whether what kept this gateway from announcing itself may have kept the others too.

        A machine that sleeps, a virtual machine that is moved, a network without Redis: all announcements expire at
        once, and who wakes first must not take the sessions of the others, whose sandboxes still run.
        """
        return now < self._trusts_from or self._was_silent(now)

    def _was_silent(self, now: float) -> bool:
        # One announcement may be late. Whoever else was stopped for long enough to count as dead has missed three.
        return self._announced_at is not None and now - self._announced_at >= 2 * self.heartbeat_interval

    async def announce(self) -> bool:
        """Renew this gateway's announcement. False: it had expired, so others may have taken sessions over."""
        name = _name(self.me)
        now = self._clock.now()
        in_time = self._lease is not None and now < self._lease.expires_at
        if self._leaving:
            await self._store.acquire_lease(_leaving_name(self.me), self.address, self._takeover_after)
        if self._lease is not None:
            self._lease = await self._store.renew_lease(self._lease, self._takeover_after)
        if self._lease is None:
            # The id belongs to the state folder, which one process at a time may lock. So a lease that is still held
            # under it is from an earlier process, which is dead: release it and do not wait until it expires.
            for stale in (name,) if self._leaving else (name, _leaving_name(self.me)):
                earlier = await self._store.lease(stale)
                if earlier is not None:
                    await self._store.release_lease(earlier)
            self._lease = await self._store.acquire_lease(name, self.address, self._takeover_after)
        # Not again at once: one that is always late would never take over what a dead gateway has.
        if self._was_silent(now) and now >= self._trusts_from + self._takeover_after:
            self._trusts_from = self._clock.now() + self._takeover_after
        self._announced_at = now
        return in_time

    async def announce_leaving(self) -> None:
        """Announce that this gateway is shutting down: the others hold requests for its sessions until it has.

        This is a second lease. Writing it into the holder of the first would mean to release that lease and acquire it
        again, and in between this gateway would look dead.
        """
        self._leaving = True  # so that each later `announce` renews both
        await self.announce()

    async def leave(self) -> None:
        """Withdraw the announcements, once this gateway has no sessions left."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._store.release_lease(lease)
        notice = await self._store.lease(_leaving_name(self.me)) if self._leaving else None
        if notice is not None:
            await self._store.release_lease(notice)

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between announcements."""
        return self._takeover_after / HEARTBEATS_PER_TAKEOVER

    async def wait_poll_interval(self) -> None:
        """Sleep between two reads of another gateway's announcement: it is in the store, and nothing signals it."""
        await asyncio.sleep(min(POLL_INTERVAL_S, self.heartbeat_interval))


class ElsewhereError(WakegateError):
    """Another gateway owns the session, and the request is forwarded there. Clients never see this error."""

    status = 421
    code = "ELSEWHERE"

    def __init__(self, peer: Peer) -> None:
        super().__init__(f"gateway {peer.id} at {peer.address} owns this session")
        self.peer = peer


def peer_sandbox(peer: Peer) -> SandboxId:
    """The id that a route has in place of a sandbox's while another gateway owns the session."""
    return SandboxId(f"gateway:{peer.id}")


def _name(owner: str) -> str:
    return f"gateway:{owner}"


def _leaving_name(owner: str) -> str:
    return f"leaving:{owner}"
