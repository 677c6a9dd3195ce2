"""How long an exchange may take, as a whole and while one party is silent."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.errors import RequestTimeoutError, UpstreamTimeoutError, WakegateError


class ClientGoneError(WakegateError):
    """The client left before its answer was complete, so no answer is sent. 499 is nginx's status for it."""

    status = 499
    code = "CLIENT_GONE"


@dataclass(frozen=True)
class TimeLimits:
    """Idle timeouts of each direction, and the longest whole exchange (0: no limit), in seconds."""

    request_idle: float
    response_idle: float
    client_read: float
    total: float

    def exceeded(self, lasted: float, party: str, waited: float) -> WakegateError | None:
        """Which limit is over, as the error that ends the exchange. Seconds; `party` as in Exchange.waits_for.

        While the request is held, only the whole counts: the hold rule limits that wait.
        """
        if self.total and lasted > self.total:  # off by default: an agent's stream may last for hours
            return UpstreamTimeoutError(f"the whole exchange took longer than {self.total:g} s")
        if party == "client body" and waited > self.request_idle:
            return RequestTimeoutError(f"no byte of the request's body came for {self.request_idle:g} s")
        # An answer that is only sent: the client that takes none of it holds a slot and memory of the gateway.
        if party == "client read" and waited > self.client_read:
            return ClientGoneError(f"the client took no byte of its answer for {self.client_read:g} s")
        if party == "sandbox" and waited > self.response_idle:
            return UpstreamTimeoutError(f"the sandbox was silent for {self.response_idle:g} s")
        return None
