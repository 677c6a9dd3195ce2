"""Records orders before they are sent, so that nothing is ordered twice while a slow provider catches up.

`resize` sets a level, so repeating it is harmless where the status shows the new target at once. In a cluster the
status comes from a watch and shows the old target for a while; without this record every tick would order again.
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
        # Target 3 ordered, the status shows 2: to order 3 again is refused, 4 is let through. Once the status shows 3,
        # it is the measure again.
        return wanted != (shown if expected is None else expected.target)

    def ordered(self, key: K, target: int, now: float) -> None:
        """Record an order that is about to be sent."""
        self._expected[key] = _Expected(target, now)

    def failed(self, key: K) -> None:
        """Forget an order that the provider refused."""
        self._expected.pop(key, None)
