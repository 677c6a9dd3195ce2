"""What a session uses of its egress, counted against its limits. Pure: times are handed in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gateway.core.quota import WHOLE_RATE, Part, Wish
from gateway.egress.policy import Limits

_BURST_S = 0.25  # of a rate that may go at once: below it, a fast transfer would stop and go
# At 300 bytes 20 lines per second are 0.5 GB of audit trail in a day for one session that tries all ports it can.
_LINES_PER_S, _LINE_BURST = 20.0, 200.0  # of the access log, for one session
ACCEPTS_PER_S, _ACCEPT_BURST = 500.0, 1000.0  # connections that one sandbox may open
# Connections that a gateway holds beyond those that are open, so that not each has to be asked for: an eighth at most.
_MAX_BLOCK, _BLOCK_SHARE = 16, 8
# Bytes that a gateway takes at once: a 32nd at most, which is what a gateway that dies hides, and an idle one holds.
_MIN_CHUNK, _MAX_CHUNK, _CHUNK_SHARE = 1 << 16, 64 << 20, 32
# Of a transfer whose bytes are used up while more are asked for: an answer takes some milliseconds. If it takes longer,
# the store is away or slow, and a piece of 256 KiB in half a second is all that goes on without being counted there.
_SHORT_PAUSE_S, _PATIENCE_S, _LONG_PAUSE_S = 0.03, 0.2, 0.5
_EMPTY_PAUSE_S = 0.1  # of a transfer at a gateway that has no share of the rate yet


class Bucket:
    """A token bucket. `take` may overdraw it, and says how long to wait then. One without a rate gets nothing."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, now

    def take(self, amount: float, now: float) -> float:
        """Take an amount; seconds until the bucket is not overdrawn, 0: now."""
        # Overdrawn instead of refused: bytes have been read when they are counted. At 20 MiB/s a piece of 256 KiB is a
        # pause of 12.5 ms, in which the source's window closes, so that the sender slows down and nothing is dropped.
        self._fill(now)
        self._level -= amount
        if not self._rate:
            return 0.0 if self._level > 0 else _EMPTY_PAUSE_S
        return max(0.0, -self._level / self._rate)

    def resize(self, rate: float, burst: float, now: float) -> None:
        """Take another rate from now on; what has been saved up is cut to the new burst."""
        self._fill(now)  # the time before was at the old rate: with a new one of more, it would give too much
        self._rate, self._burst, self._level = rate, burst, min(self._level, burst)

    def try_take(self, now: float) -> bool:
        """Take one, if there is one."""
        self._fill(now)
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now


class Share:
    """This gateway's part of a session's limits, where several gateways serve one session: nothing but what was given
    (core/quota.py, QuotaLedger.part) may be used. `ask()` has more asked for at once, unless that is under way; what it
    returns is done when the answer was taken.
    """

    def __init__(self, ask: Callable[[], Awaitable[None]]) -> None:
        self.ask = ask
        self.asked_at = float("-inf")
        self.units = 0  # connections
        self.bytes = 0
        self.of_rate = 0  # millionths
        self.is_behind = False  # others have to give up some of the rate
        self.unknown = False  # the latest question had no answer
        self._all_units = self._all_bytes = False  # no more of them to be had, when it was asked

    def wish(self, limits: Limits, connections: int, moved: int) -> Wish:
        """The share of connections and bytes to ask the store for, a block at a time."""
        units = connections + max(1, min(_MAX_BLOCK, limits.connections // _BLOCK_SHARE))
        chunk = _chunk(limits) if self.is_low(limits, moved) else 0
        return Wish(min(limits.connections, units), limits.connections, chunk, limits.bytes)

    def leftover(self, limits: Limits, moved: int) -> Wish:
        """What to give back at the end."""
        return Wish(0, limits.connections, -max(0, self.bytes - moved), limits.bytes)

    def take(self, wish: Wish, part: Part | None) -> None:
        """The answer to a wish; None: there was none."""
        self.unknown = part is None
        if part is not None:
            self.units, self.of_rate, self.is_behind = part.units, part.share, part.is_behind
            self.bytes += part.amount
            self._all_units = part.units < wish.units
            self._all_bytes = part.amount < wish.amount

    def hope(self) -> None:
        """Ask again for what was not to be had: others give back."""
        self._all_units = self._all_bytes = False

    def pause(self, limits: Limits, moved: int, now: float, *, again: bool) -> float:
        """Seconds for which a transfer waits for more bytes. Has them asked for.

        `again`: it has waited, and moved nothing since.
        """
        if self._all_bytes or not self.is_low(limits, moved):
            return 0.0
        self.ask()
        if moved < self.bytes:
            return 0.0
        if now - self.asked_at < _PATIENCE_S:
            return _SHORT_PAUSE_S
        return 0.0 if again else _LONG_PAUSE_S

    def is_low(self, limits: Limits, moved: int) -> bool:
        """Whether more bytes should be asked for, before those that were given are used up."""
        return bool(limits.bytes) and self.bytes - moved < _chunk(limits) // 2

    def is_short(self, limits: Limits, connections: int, moved: int) -> bool:
        """Whether more has to be asked for before another connection, and may be had."""
        if connections >= limits.connections:
            return False
        needs_bytes = bool(limits.bytes) and moved >= self.bytes
        return (connections >= self.units and not self._all_units) or (needs_bytes and not self._all_bytes)

    def is_spent(self, moved: int) -> bool:
        """Whether all bytes have been moved that are to be had."""
        return moved >= self.bytes and self._all_bytes


def _chunk(limits: Limits) -> int:
    return min(limits.bytes, max(_MIN_CHUNK, min(_MAX_CHUNK, limits.bytes // _CHUNK_SHARE)))


class Account:
    """Of one sandbox, from its binding to a session until the next. Bytes are those that were passed on.

    `share`: this gateway's part of the limits; None: no other gateway serves this sandbox.
    """

    def __init__(self, limits: Limits, now: float, share: Share | None = None) -> None:
        self.limits, self.share = limits, share
        self.connections = 0
        self.up = 0  # from the sandbox
        self.down = 0
        rate = limits.rate if share is None else 0  # nothing until the store has said how much
        self._rate = Bucket(rate, rate * _BURST_S, now) if limits.rate else None
        self._lines = Bucket(_LINES_PER_S, _LINE_BURST, now)
        self.lines_left_out = 0

    async def room(self) -> None:
        """Have more asked for, if another connection needs more than was given. `excess` says whether it came."""
        share = self.share
        # One answer serves all that wait: who finds that others have used it asks again.
        while share is not None and share.is_short(self.limits, self.connections, self._moved):
            await share.ask()
            if share.unknown:
                return

    def excess(self) -> str:
        """Which limit a new connection would exceed, for people; empty: none."""
        share = self.share
        if share is not None and share.unknown and share.is_short(self.limits, self.connections, self._moved):
            return "what other gateways use of this session's limits is not known, as the session store does not answer"
        if self.connections >= (self.limits.connections if share is None else share.units):
            return f"{self.limits.connections} connections of this session are open, the most that its runtime allows"
        if self.is_spent:
            return f"this session has moved {self.limits.bytes} bytes, the most that its runtime allows"
        return ""

    @property
    def is_spent(self) -> bool:
        """Whether all bytes that the session may move have been moved."""
        if not self.limits.bytes:
            return False
        return self._moved >= self.limits.bytes if self.share is None else self.share.is_spent(self._moved)

    def moved(self, up: int, down: int, now: float) -> float:
        """Count bytes, which may be none. Returns the seconds after which the next may follow."""
        self.up += up
        self.down += down
        delay = 0.0 if self._rate is None else self._rate.take(up + down, now)
        if self.share is None:
            return delay
        # No longer at once: the share of the rate may have grown by then.
        delay = min(delay, _LONG_PAUSE_S)
        return max(delay, self.share.pause(self.limits, self._moved, now, again=not (up or down)))

    def wish(self) -> Wish:
        """What to ask for, of a share."""
        assert self.share is not None
        return self.share.wish(self.limits, self.connections, self._moved)

    def leftover(self) -> Wish:
        """What to give back of a share, at the end."""
        assert self.share is not None
        return self.share.leftover(self.limits, self._moved)

    def take(self, wish: Wish, part: Part | None, now: float) -> None:
        """The answer to a wish; None: there was none."""
        assert self.share is not None
        self.share.take(wish, part)
        if self._rate is not None:
            rate = self.limits.rate * self.share.of_rate / WHOLE_RATE
            self._rate.resize(rate, rate * _BURST_S, now)

    def may_log(self, now: float) -> bool:
        """Whether a line of the access log may be written; counts those that may not."""
        if self._lines.try_take(now):
            return True
        self.lines_left_out += 1
        return False

    @property
    def _moved(self) -> int:
        return self.up + self.down


def accepts(now: float) -> Bucket:
    """The connections that a sandbox may open."""
    return Bucket(ACCEPTS_PER_S, _ACCEPT_BURST, now)
