"""How often one client address may come without a valid credential: a token bucket per address, in a bounded table.

Only requests that were refused pay, so that those who share an address with an attacker (behind a NAT, or a proxy that
`--trusted-proxies` does not name) go on working with their valid keys. Requests with a credential that is remembered
never come here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.types import Scope

from gateway.core.errors import RateLimitError

MAX_ADDRESSES = 10_000  # about 2 MB; one beyond that makes the table forget who came longest ago
BURST_S = 5.0  # seconds' worth of requests that may come at once
_IPV6_PREFIX = 64  # what one host is given: its addresses within that are its own choice


def client_address(scope: Scope) -> str:
    """The address that a request came from, or that a trusted proxy names; "" on a unix socket."""
    client = scope.get("client")
    return client[0] if client else ""


class ClientRates:
    """Counts refused requests by client. `rate`: per second and address; 0: any number. `now` in monotonic seconds."""

    def __init__(self, rate: float, now: Callable[[], float]) -> None:
        self._rate, self._now = rate, now
        self._burst = max(1.0, rate * BURST_S)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, when), latest comers last

    def __len__(self) -> int:
        return len(self._buckets)

    def refused(self, address: str) -> None:
        """Count a request that was refused. `address` "": not known, as on a unix socket.

        Raises RateLimitError when there were too many.
        """
        if not self._rate or not address:
            return
        key, now = _network(address), self._now()
        tokens, at = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        self._buckets[key] = (max(0.0, tokens - 1.0), now) if tokens >= 1.0 else (tokens, now)
        while len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if tokens < 1.0:
            raise RateLimitError(
                f"too many requests without a valid key from {key}: {self._rate:g} per second are answered; send a key,"
                " or try again later",
                limit="unauthenticatedRate",
                value=self._rate,
                retry_after=(1.0 - tokens) / self._rate,
            )


@lru_cache(maxsize=4096)
def _network(address: str) -> str:
    """An IPv4 address as it is, also one in IPv6 form; of IPv6 the network of a host."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ip_network((found, _IPV6_PREFIX), strict=False))
