"""What was seen of a gateway while a trace was played on it: claims, pool, starts. Written as JSON, read back.

Times are seconds since the first arrival could have come; leads and waits are seconds.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

_READY = re.compile(r"^sandbox \S+ of (\S+) is ready (\d+\.\d+) s after its order(; nobody wants it)?")
_POOL = re.compile(r"^(\S+): pool of (\d+), before it was \d+: (.*)")


@dataclass
class Recording:
    """Everything recorded in one run."""

    name: str  # of the trace
    compress: float  # how many times as fast as it was
    arrivals: list[float]  # when requests were meant to be sent
    seconds: float  # length of the run
    warm_up: float  # of it, the part that is not compared
    tick: float  # of the gateway's autoscaler
    mode: str  # fixed | predictive
    size: int  # warmPoolSize
    max: int
    miss_rate: float  # targetMissRate
    joins: bool  # a miss takes the next sandbox that gets ready
    claims: list[tuple[float, str, float, float]] = field(default_factory=list)  # (sent, start kind, wait, answered in)
    pool: list[tuple[float, int, int, int, float, float]] = field(
        default_factory=list
    )  # (time, target, ready, starting, p50 and p90 of lead times or 0)
    starts: list[tuple[float, float, bool]] = field(default_factory=list)  # (ordered, lead, somebody wanted it)
    orders: list[tuple[float, int, str]] = field(default_factory=list)  # (time, target, why)
    errors: dict[str, int] = field(default_factory=dict)

    def failed(self, error: str) -> None:
        """A request had no good answer."""
        self.errors = dict(Counter(self.errors) + Counter([error]))

    def read_log(self, lines: Iterable[str], runtime: str, began: float) -> None:
        """Take starts and orders from a gateway's log in JSON. `began`: epoch seconds of time 0."""
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
        """Write it."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read what `save` wrote. Raises OSError, ValueError, TypeError."""
        return cls(**json.loads(path.read_text()))
