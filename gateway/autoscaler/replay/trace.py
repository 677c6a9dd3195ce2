"""A recorded or made-up arrival process: what every policy of the laboratory is replayed on."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.autoscaler.forecast import Floats


@dataclass(frozen=True)
class Trace:
    """Arrivals in [start, end), sorted, seconds since the epoch (or since the trace's start, taken as a midnight)."""

    name: str
    arrivals: Floats
    start: float
    end: float
    bin_width: float = 60.0  # seconds; the width of the counts that it was made from

    @property
    def span(self) -> float:
        """Length of the trace in seconds."""
        return self.end - self.start

    def cut(self, seconds: float) -> Trace:
        """The first `seconds` of the trace."""
        end = min(self.end, self.start + seconds)
        return Trace(self.name, self.arrivals[self.arrivals < end], self.start, end, self.bin_width)
