"""A record of a gateway while a trace was replayed on it: claims, pool, starts. Saved and loaded as JSON.

Times are seconds since the beginning of the replayed part of the trace; lead times and waits are seconds.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

_READY = re.compile(r"^sandbox \S+ of (\S+) is ready (\d+\.\d+) s after its order(; surplus)?")
_POOL = re.compile(r"^(\S+): pool of (\d+), before it was \d+: (.*)")


@dataclass
class Recording:
    """Everything recorded in one run."""

    name: str  # of the trace
    compress: float  # how many times as fast as the original
    arrivals: list[float]  # when requests were due
    seconds: float  # length of the run
    warm_up: float  # the part at the beginning that is not compared
    tick: float  # of the gateway's autoscaler
    mode: str  # fixed | predictive
    size: int  # warmPoolSize
    max: int
    miss_rate: float  # targetMissRate
    joins: bool  # a miss gets the next sandbox that becomes ready
    claims: list[tuple[float, str, float, float]] = field(default_factory=list)  # (sent, start kind, wait, answered in)
    pool: list[tuple[float, int, int, int, float, float]] = field(
        default_factory=list
    )  # (time, target, ready, starting, p50 and p90 of lead times or 0)
    starts: list[tuple[float, float, bool]] = field(default_factory=list)  # (ordered, lead time, a claim was waiting)
    orders: list[tuple[float, int, str]] = field(default_factory=list)  # (time, target, why)
    errors: dict[str, int] = field(default_factory=dict)

    def failed(self, error: str) -> None:
        """Count a request that failed, by its error."""
        self.errors = dict(Counter(self.errors) + Counter([error]))

    def read_log(self, lines: Iterable[str], runtime: str, began: float) -> None:
        """Read starts and orders from a gateway's JSON log. `began`: epoch seconds of time 0."""
        for line in lines:
            if not line.startswith("{"):
                continue
            entry = json.loads(line)
            event = str(entry.get("event", ""))
            at = datetime.fromisoformat(entry["timestamp"]).timestamp() - began
            if (found := _READY.match(event)) and found[1].endswith(runtime):
                lead = float(found[2])
                self.starts.append((at - lead, lead, found[3] is None))
            elif (found := _POOL.match(event)) and found[1].endswith(runtime):
                self.orders.append((at, int(found[2]), found[3]))
        self.starts.sort()

    def save(self, path: Path) -> None:
        """Write the recording to a JSON file."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read what `save` wrote. Raises OSError, ValueError, TypeError."""
        return cls(**json.loads(path.read_text()))
