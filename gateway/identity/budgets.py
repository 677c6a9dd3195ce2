"""A tenant's requests per second at one gateway: a token bucket in memory, which a request costs one subtraction."""

from __future__ import annotations

from gateway.core.errors import RateLimitError, rate_limit_fields


class Budget:
    """Tokens of one tenant. `left` is read and lowered by the data path; `refill` adds what time has brought.

    A bucket that is filled by a loop needs no clock per request. Refilled each 0.1 s, it lets a rate of 50/s through in
    steps of five; a bucket holds at least one token, whatever the rate.
    """

    __slots__ = ("_burst", "_rate", "_value", "left")

    def __init__(self) -> None:
        self.left = 1.0
        self._rate = self._burst = self._value = 1.0

    def resize(self, rate: float, burst: int | None, gateways: int) -> None:
        """Take one part in `gateways` of a rate per second and of a burst (None: a second's requests)."""
        had = self._burst
        self._value = rate
        self._rate = rate / gateways
        self._burst = max(1.0, (rate if burst is None else burst) / gateways)
        # A new bucket is full (unless `hold_one` follows). One that grows does not fill up by that: otherwise each
        # gateway that leaves, and each change of limits, would hand a tenant another burst.
        self.left = self._burst if had == 1.0 and self.left == 1.0 else min(self.left, self._burst)

    def hold_one(self) -> None:
        """Begin with one request: at a gateway that has joined others, at which all of the burst may just be used."""
        self.left = min(self.left, 1.0)

    def lift(self) -> None:
        """Let every request through from now on."""
        self.left = self._burst = self._rate = float("inf")

    def refill(self, seconds: float) -> None:
        """Add what came in since the last refill."""
        self.left = min(self._burst, self.left + self._rate * seconds)

    def fields(self) -> dict[str, str]:
        """RateLimit-* of an answer, of this gateway's part of the rate; empty once it was lifted."""
        if self._rate == float("inf"):
            return {}
        return rate_limit_fields(self._value, int(self.left), (self._burst - self.left) / self._rate)

    def refusal(self) -> RateLimitError:
        """The error of a request for which there was no token."""
        wait = (1.0 - self.left) / self._rate  # e.g. 0.4 left at 2/s: the next token is whole after 0.3 s
        return RateLimitError(
            f"requestsPerSecond: this tenant may send {self._value:g} requests per second; all of them are used",
            limit="requestsPerSecond",
            value=self._value,
            used=self._value,
            retry_after=wait,
        )
