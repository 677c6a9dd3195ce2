"""Which gateway has what, when several share one store.

An engine of this machine makes sandboxes that only its own gateway reaches. So a session's record names its `owner`
while it has a sandbox or a parked workspace there, and each gateway announces its address under the lease
`gateway:<id>`. A request that arrives elsewhere is passed on to the owner (docs/adr/0005-several-gateways.md). Where
every gateway reaches every sandbox, `me` is empty, records name no owner, and nothing is announced.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.interfaces import SessionStore
from gateway.core.model import Lease, SandboxId

BEATS = 4  # announcements per `takeover_after`: two may be lost without a takeover


@dataclass(frozen=True, slots=True)
class Peer:
    """Another gateway. `seen` grows with each of its announcements; `alive` says that the last one still holds.

    `leaving`: it ends in order, and hibernates its sessions before it does. Nothing new is sent to it.
    """

    id: str
    address: str
    seen: float
    alive: bool
    leaving: bool = False


class Membership:
    """This gateway among the others. `address` is where they reach it, once it listens."""

    def __init__(self, store: SessionStore, clock: Clock, me: str, *, takeover_after: float) -> None:
        self.me = me
        self.address = ""
        self._store = store
        self._clock = clock
        self._takeover_after = takeover_after
        self._lease: Lease | None = None
        self._leaving = False

    def __repr__(self) -> str:
        return f"<Membership me={self.me!r} at {self.address}>"

    async def find(self, owner: str) -> Peer:
        """The gateway that has this id. Raises StoreUnavailableError."""
        lease = await self._store.lease(_name(owner))
        if lease is None:
            return Peer(owner, "", 0.0, alive=False)
        now = self._clock.now()
        alive = lease.expires_at > now
        notice = await self._store.lease(_leaving_name(owner)) if alive else None
        leaving = notice is not None and notice.expires_at > now
        return Peer(owner, lease.holder, lease.expires_at, alive=alive, leaving=leaving)

    async def announce(self) -> bool:
        """Say once more that this gateway is here. False: it had been silent for so long that others may have acted."""
        name = _name(self.me)
        now = self._clock.now()
        in_time = self._lease is not None and now < self._lease.expires_at
        if self._leaving:
            await self._store.acquire_lease(_leaving_name(self.me), self.address, self._takeover_after)
        if self._lease is not None:
            self._lease = await self._store.renew_lease(self._lease, self._takeover_after)
        if self._lease is None:
            # An id is one state folder's, and a state folder one process's: an earlier process of this id is dead.
            for stale in (name,) if self._leaving else (name, _leaving_name(self.me)):
                earlier = await self._store.lease(stale)
                if earlier is not None:
                    await self._store.release_lease(earlier)
            self._lease = await self._store.acquire_lease(name, self.address, self._takeover_after)
        return in_time

    async def announce_leaving(self) -> None:
        """Tell the others that this gateway is about to end: they hold requests for its sessions until it has.

        A lease beside the announcement, not another holder of it: to change hands it would have to be free for a
        moment, in which this gateway would look dead.
        """
        self._leaving = True
        await self.announce()

    async def leave(self) -> None:
        """End the announcements: this gateway has no sessions any more."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._store.release_lease(lease)
        notice = await self._store.lease(_leaving_name(self.me)) if self._leaving else None
        if notice is not None:
            await self._store.release_lease(notice)

    @property
    def beat(self) -> float:
        """Seconds between announcements."""
        return self._takeover_after / BEATS

    async def wait_beat(self) -> None:
        """The pause between two reads of what becomes of another gateway."""
        await asyncio.sleep(min(0.25, self.beat))


class ElsewhereError(WakegateError):
    """What is asked for is another gateway's to do; the request goes there. Never reaches a client."""

    status = 421
    code = "ELSEWHERE"

    def __init__(self, peer: Peer) -> None:
        super().__init__(f"gateway {peer.id} at {peer.address} has this session")
        self.peer = peer


def peer_sandbox(peer: Peer) -> SandboxId:
    """What stands for a session's sandbox while another gateway has it."""
    return SandboxId(f"gateway:{peer.id}")


def _name(owner: str) -> str:
    return f"gateway:{owner}"


def _leaving_name(owner: str) -> str:
    return f"leaving:{owner}"
