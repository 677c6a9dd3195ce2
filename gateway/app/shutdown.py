"""The steps before a gateway ends: it announces that it leaves, then takes in no more sessions.

Requests go on through both; `lifespan` ends the parts after them.
"""

from __future__ import annotations

import logging

from gateway.core.background import Tasks
from gateway.core.errors import WakegateError
from gateway.routing.activator import TRUSTED_S, Activator
from gateway.sessions.membership import Membership

logger = logging.getLogger(__name__)


class Shutdown:
    """`leave`, then `drain` after `notice_s`. `notices` are what other gateways are still being told."""

    def __init__(self, activator: Activator, membership: Membership) -> None:
        self.notices = Tasks()
        self._activator = activator
        self._membership = membership

    def leave(self) -> None:
        """Announce the shutdown: readiness fails and other gateways are notified; requests are still accepted."""
        self._activator.leaving = True
        if self._membership.me:
            self.notices.spawn(self._announce(), name="notice of leaving")

    @property
    def notice_s(self) -> float:
        """Seconds from `leave` to `drain` after which other gateways forward no more requests to this one.

        They cache a session's owner for TRUSTED_S, so a request that was sent on a cached owner must still be served.
        """
        return 2 * TRUSTED_S if self._membership.me else 0.0

    def drain(self) -> None:
        """Reject requests that need a new sandbox; requests in flight continue."""
        if not self._activator.leaving:  # it ends without a signal, after an error
            self.leave()
        self._activator.draining = True

    async def _announce(self) -> None:
        try:
            await self._membership.announce_leaving()
        except WakegateError as error:
            logger.warning("cannot notify other gateways of this shutdown: %s", error)
