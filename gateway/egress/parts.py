"""Has the gateway asked for parts of limits: of sandboxes that come by the entrance, so perhaps to several gateways.

A part is held for some seconds and asked for again while the sandbox has connections; what is left of it is given back
when the sandbox ends here. One question for each sandbox at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gateway.core.quota import Part, Wish
from gateway.egress.limits import Account, Share
from gateway.egress.policy import Limits

PART_TTL_S = 12.0  # for which units are held: three heartbeats
# Where there is a rate, a gateway that joins waits for the others to ask again; it has nothing before.
_BEAT_S, _RATE_BEAT_S, _BEHIND_BEAT_S = 4.0, 0.5, 0.2
_ANSWER_TIMEOUT_S = 10.0
_RETRY_S = 0.5  # after a question without an answer


@dataclass(slots=True, eq=False)
class _Asker:
    name: str
    account: Account
    share: Share
    asking: asyncio.Future[None] | None = None
    holds: bool = False  # units that nobody uses are given back once


class Parts:
    """Asks the gateway for this service's parts of the limits that several gateways share.

    `send` takes a message to the gateway, which answers with `answered`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[dict[str, Any]], None]) -> None:
        self._loop, self._send = loop, send
        self._askers: dict[Account, _Asker] = {}
        self._wishes: dict[int, tuple[_Asker, Wish]] = {}
        self._number = 0

    def account(self, name: str, limits: Limits) -> Account:
        """One whose limits are shared under this name."""
        share = Share(lambda: self._ask(asker))
        account = Account(limits, self._loop.time(), share)
        asker = self._askers[account] = _Asker(name, account, share)
        return account

    def answered(self, number: int, part: Part | None) -> None:
        """The gateway's answer; None: the store is away."""
        found = self._wishes.pop(number, None)
        if found is not None:
            asker, wish = found
            asker.account.take(wish, part, self._loop.time())
            asking, asker.asking = asker.asking, None
            if part is not None:
                asker.holds = bool(wish.units)
            if asking is not None and not asking.done():
                asking.set_result(None)
            if asker.account.connections > asker.share.units and not wish.units:
                self._ask(asker)  # one has come while its unit was given back

    def beat(self) -> None:
        """Ask for what is due: again in time, and to hold no longer what nobody uses."""
        now = self._loop.time()
        for asker in self._askers.values():
            account, since = asker.account, now - asker.share.asked_at
            if asker.asking is None and since >= _RETRY_S:
                asker.share.hope()
            if (account.connections or asker.holds) and since >= _beat_s(asker):
                self._ask(asker, idle=not account.connections)

    def leave(self, account: Account) -> None:
        """It ends: give back what is left."""
        asker = self._askers.pop(account, None)
        if asker is not None and asker.share.asked_at > float("-inf"):
            self._say(asker, account.leftover(), 0)

    def _ask(self, asker: _Asker, *, idle: bool = False) -> asyncio.Future[None]:
        now = self._loop.time()
        if asker.asking is not None:
            return asker.asking
        asking = self._loop.create_future()
        if asker.share.unknown and now - asker.share.asked_at < _RETRY_S:
            asking.set_result(None)  # not yet again: it is as unknown as it was
            return asking
        asker.asking, asker.share.asked_at = asking, now
        account = asker.account
        wish = Wish(0, account.limits.connections, 0, account.limits.bytes) if idle else account.wish()
        self._number += 1
        self._wishes[self._number] = asker, wish
        self._loop.call_later(_ANSWER_TIMEOUT_S, self.answered, self._number, None)
        self._say(asker, wish, self._number)
        return asking

    def _say(self, asker: _Asker, wish: Wish, number: int) -> None:
        """A question; 0 as its number: nobody waits for the answer."""
        self._send({"op": "part", "number": number, "name": asker.name, "wish": asdict(wish)})


def _beat_s(asker: _Asker) -> float:
    """Seconds from one question to the next."""
    if not asker.account.limits.rate:
        return _BEAT_S
    return _BEHIND_BEAT_S if asker.share.is_behind else _RATE_BEAT_S
