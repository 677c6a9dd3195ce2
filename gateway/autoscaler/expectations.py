"""Intent, written down before acting on a slow provider, so that nothing is ordered twice while it catches up.

`resize` sets a level and is idempotent where the provider answers at once. Where it answers through a watch (a
cluster), the status may show the old target for a while; without a memory of what was ordered every tick would order
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class _Expected:
    target: int
    since: float


class Expectations(Generic[K]):
    """Targets that were ordered and that the provider's status does not show yet.

    An expectation that is not met in `expiry` seconds is dropped.
    """

    def __init__(self, expiry: float = 60.0) -> None:
        self._expiry = expiry
        self._expected: dict[K, _Expected] = {}

    def should_order(self, key: K, wanted: int, shown: int, now: float) -> bool:
        """Whether to tell the provider `wanted`, when its status shows `shown`."""
        expected = self._expected.get(key)
        if expected is not None and (shown == expected.target or not 0.0 <= now - expected.since < self._expiry):
            del self._expected[key]
            expected = None
        return wanted != (shown if expected is None else expected.target)

    def ordered(self, key: K, target: int, now: float) -> None:
        """About to tell the provider this."""
        self._expected[key] = _Expected(target, now)

    def failed(self, key: K) -> None:
        """Forget an order that the provider refused."""
        self._expected.pop(key, None)
