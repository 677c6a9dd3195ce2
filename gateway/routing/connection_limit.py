"""A bound on client connections, below the process's limit of file descriptors.

Without one, idle sockets of strangers use up the descriptors, and requests of live sessions fail because their
sandboxes cannot be dialled. At the bound the connections that were idle for longest are closed, as nginx does when it
runs out of connections; a new one is refused only when every other has a request under way. Rejected: to stop
accepting, as HAProxy does; the new client would wait for idle ones to leave, which they need not.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable

from gateway.core.errors import UnavailableError

logger = logging.getLogger(__name__)

MIN_RESERVED = 256  # descriptors for sandboxes, the store and files: a dial, two pipes and a log for some 60 sandboxes
_BATCH = 16  # this part of all is closed at a time, so that a flood costs one pass over all for so many connections
# Times the number of connections: the rest after a pass that found nothing to close. A pass costs some 0.2 us for each,
# so refusing a flood of new ones costs a tenth of a core at most.
_REST_PER_CONNECTION_S = 2e-6
_WARN_EVERY_S = 10.0


class TooManyConnectionsError(UnavailableError):
    """All client connections that the gateway may have are in use by requests."""

    code = "TOO_MANY_CONNECTIONS"


class Reclaimable(ABC):
    """A client connection that may be closed while no request is under way on it."""

    @abstractmethod
    def idle_since(self) -> float | None:
        """Loop time of its last answer, or of its beginning; None while a request is under way."""

    @abstractmethod
    def reclaim(self) -> None:
        """Close the connection, which is idle, to make room for another one."""


def connection_limit(configured: int, descriptors: int) -> int:
    """How many client connections to allow. `configured` 0: what the limit of `descriptors` leaves.

    A quarter of the descriptors, at least 256 of them, are kept for the gateway itself: of 1,024 clients get 768, of
    20,000 they get 15,000. Never less than 16 for clients.
    """
    most = max(16, descriptors - max(MIN_RESERVED, descriptors // 4))
    if configured > most:
        logger.warning(
            "max_connections %d is more than the limit of %d file descriptors allows; it is %d. Raise `ulimit -n`",
            configured,
            descriptors,
            most,
        )
    return min(configured or most, most)


class ConnectionLimit:
    """Decides on each new connection. State: when it last found nothing to close, and last warned. Loop time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rest_until = 0.0
        self._warn_from = 0.0

    def admit(self, connections: Iterable[object], count: int, now: float) -> None:
        """Make place for a connection that is among the `count` ones. Raises TooManyConnectionsError."""
        if count <= self.limit:
            return
        if now >= self._warn_from:
            self._warn_from = now + _WARN_EVERY_S
            logger.warning("%d client connections are open, which is the limit; idle ones are closed", self.limit)
        if now >= self._rest_until:
            idle = [
                (since, number, connection)
                for number, connection in enumerate(connections)
                if isinstance(connection, Reclaimable) and (since := connection.idle_since()) is not None
            ]
            # The newest one is the one that asks.
            chosen = sorted(idle)[: min(max(1, self.limit // _BATCH), len(idle) - 1)]
            for _, _, connection in chosen:
                connection.reclaim()
            if chosen:
                return
            self._rest_until = now + count * _REST_PER_CONNECTION_S
        raise TooManyConnectionsError(
            f"{self.limit} client connections are in use, which is all that this gateway may have; try again shortly"
        )
