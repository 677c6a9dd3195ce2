"""What a session uses of its egress, counted against its limits. Pure: times are handed in."""

from __future__ import annotations

from gateway.egress.policy import Limits

_BURST_S = 0.25  # of a rate that may go at once: below it, a fast transfer would stop and go
# At 300 bytes 20 lines per second are 0.5 GB of audit trail in a day for one session that tries all ports it can.
_LINES_PER_S, _LINE_BURST = 20.0, 200.0  # of the access log, for one session
ACCEPTS_PER_S, _ACCEPT_BURST = 500.0, 1000.0  # connections that one sandbox may open


class Bucket:
    """A token bucket. `take` may overdraw it, and says how long to wait then."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, now

    def take(self, amount: float, now: float) -> float:
        """Take an amount; seconds until the bucket is not overdrawn, 0: now."""
        # Overdrawn instead of refused: bytes have been read when they are counted. At 20 MiB/s a piece of 256 KiB is a
        # pause of 12.5 ms, in which the source's window closes, so that the sender slows down and nothing is dropped.
        self._level = min(self._burst, self._level + (now - self._at) * self._rate) - amount
        self._at = now
        return max(0.0, -self._level / self._rate)

    def try_take(self, now: float) -> bool:
        """Take one, if there is one."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Account:
    """Of one sandbox, from its binding to a session until the next. Bytes are those that were passed on."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.connections = 0
        self.up = 0  # from the sandbox
        self.down = 0
        self._rate = Bucket(limits.rate, limits.rate * _BURST_S, now) if limits.rate else None
        self._lines = Bucket(_LINES_PER_S, _LINE_BURST, now)
        self.lines_left_out = 0

    def excess(self) -> str:
        """Which limit a new connection would exceed, for people; empty: none."""
        if self.connections >= self.limits.connections:
            return f"{self.limits.connections} connections of this session are open, the most that its runtime allows"
        if self.is_spent:
            return f"this session has moved {self.limits.bytes} bytes, the most that its runtime allows"
        return ""

    @property
    def is_spent(self) -> bool:
        """Whether all bytes that the session may move have been moved."""
        return bool(self.limits.bytes) and self.up + self.down >= self.limits.bytes

    def moved(self, up: int, down: int, now: float) -> float:
        """Count bytes. Returns the seconds after which the next may follow."""
        self.up += up
        self.down += down
        return 0.0 if self._rate is None else self._rate.take(up + down, now)

    def may_log(self, now: float) -> bool:
        """Whether a line of the access log may be written; counts those that may not."""
        if self._lines.try_take(now):
            return True
        self.lines_left_out += 1
        return False


def accepts(now: float) -> Bucket:
    """The connections that a sandbox may open."""
    return Bucket(ACCEPTS_PER_S, _ACCEPT_BURST, now)
