"""Adds up what sandboxes and sessions use, in rows by hour. Pure: times and measurements are handed in.

A second counts when it has passed: `tick` counts, for each sandbox that is held, the time since the last tick; `end`
counts the rest. `take` hands out what has come together since the last call, which then counts as written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.core.model import SandboxId
from gateway.core.usage import HOUR_S, Quantity, Rows, UsageKey

MAX_ROWS_PER_BATCH = 500  # a batch is one transaction of the store, or one script
MAX_SESSIONS_PER_HOUR = 5000  # with rows of their own; what others use counts under OTHER_SESSIONS
OTHER_SESSIONS = "(other)"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """What a sandbox may use: cores, bytes of memory, GPUs. 0: as much as the machine has, or no GPU."""

    cpus: float = 0.0
    memory: int = 0
    gpus: float = 0.0

    def __str__(self) -> str:
        """Such as `1cpu-512Mi` or `8cpu-65536Mi-1gpu`; the form in which it is stored."""
        gpus = f"-{self.gpus:g}gpu" if self.gpus else ""
        return f"{self.cpus:g}cpu-{self.memory / _MIB:.10g}Mi{gpus}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """The inverse of str(); no limits for any other text."""
        try:
            cpus, memory, *gpus = text.split("-")
            return cls(
                float(cpus.removesuffix("cpu")),
                round(float(memory.removesuffix("Mi")) * _MIB),
                float(gpus[0].removesuffix("gpu")) if gpus else 0.0,
            )
        except ValueError:
            return cls()


@dataclass(frozen=True, slots=True)
class Account:
    """On which rows something counts. `session` empty: on totals only."""

    tenant: str
    runtime: str
    size: str
    session: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, on both clocks: hours are the wall clock's, lengths of intervals the monotonic one's, which never jumps."""

    wall: float
    monotonic: float


@dataclass(slots=True)
class _Held:
    account: Account
    counted: float  # monotonic second up to which its time has been counted
    unmeasured: float = 0.0  # seconds counted since the last measurement
    cpu_s: float = 0.0  # this much CPU time has been counted
    memory: float = 0.0  # bytes at the last measurement


class Meter:
    """Usage since the last `take`. `longest_gap`: seconds between two ticks beyond which the gap does not count.

    Gateways that can take sessions over from each other set it: one that was suspended for longer cannot know how much
    of that time another gateway has already counted.
    """

    def __init__(self, *, longest_gap: float = float("inf"), max_sessions: int = MAX_SESSIONS_PER_HOUR) -> None:
        self._longest_gap = longest_gap
        self._max_sessions = max_sessions
        self._held: dict[SandboxId, _Held] = {}
        self._ended: dict[SandboxId, _Held] = {}  # whose last measurement may still come
        self._rows: defaultdict[UsageKey, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._sessions: dict[int, set[str]] = {}  # hour -> sessions with rows of their own

    @property
    def measurable(self) -> list[SandboxId]:
        """Sandboxes whose measurements count: those held, and those that ended since the last `forget_ended`."""
        return [*self._held, *self._ended]

    @property
    def ended(self) -> list[SandboxId]:
        """Those of `measurable` that are not held any more."""
        return list(self._ended)

    @property
    def held(self) -> dict[SandboxId, Account]:
        """The sandboxes whose time counts."""
        return {sandbox_id: held.account for sandbox_id, held in self._held.items()}

    def begin(self, sandbox_id: SandboxId, account: Account, now: Moment) -> None:
        """Count the sandbox's time from now on. One that is held already goes on."""
        if sandbox_id not in self._held:
            self._held[sandbox_id] = _Held(account, now.monotonic)

    def change(self, sandbox_id: SandboxId, account: Account, now: Moment, idle_since: float | None = None) -> None:
        """Count the sandbox's time on other rows from now on. One that is not held is not an error."""
        held = self._held.get(sandbox_id)
        if held is not None and held.account != account:
            self._count(held, now, idle_since)
            held.account = account

    def end(self, sandbox_id: SandboxId, now: Moment, idle_since: float | None = None) -> None:
        """Count the rest of the sandbox's time. One that is not held is not an error."""
        held = self._held.pop(sandbox_id, None)
        if held is not None:
            self._count(held, now, idle_since)
            self._ended[sandbox_id] = held

    def tick(self, now: Moment, idle_since: Callable[[str], float | None] = lambda _: None) -> None:
        """Count the time since the last tick. `idle_since(session)`: wall time of its last use; None: unknown."""
        for held in self._held.values():
            self._count(held, now, idle_since(held.account.session))

    def _count(self, held: _Held, now: Moment, idle_since: float | None) -> None:
        passed, held.counted = now.monotonic - held.counted, now.monotonic
        if not 0 < passed <= self._longest_gap:
            return  # not even the part up to the limit: another gateway may have begun to count right away
        held.unmeasured += passed
        self.span(held.account, Quantity.SANDBOX_SECONDS, passed, now.wall)
        if idle_since is not None:
            idle = min(passed, max(0.0, now.wall - idle_since))
            self.span(held.account, Quantity.IDLE_SECONDS, idle, now.wall)

    def forget_all(self) -> None:
        """Let go of all sandboxes without counting their time since the last tick: another gateway counts it."""
        self._held.clear()
        self._ended.clear()

    def measured(
        self,
        sandbox_id: SandboxId,
        cpu_s: float | None,
        memory_bytes: float | None,
        now: Moment,
        *,
        cores: float | None = None,
    ) -> None:
        """Count what the sandbox used in the time that was counted since its last measurement.

        `cpu_s`: seconds of CPU since it was bound. `memory_bytes`: what it holds now, taken for the whole interval;
        None: it has ended, and is taken to have held what it did before. `cores`: in place of `cpu_s`, where an engine
        tells how many cores it keeps busy on average.
        """
        held = self._held.get(sandbox_id) or self._ended.get(sandbox_id)
        if held is None:
            return
        passed, held.unmeasured = held.unmeasured, 0.0
        held.memory = held.memory if memory_bytes is None else memory_bytes
        # The difference to what was counted, as engines report totals: a measurement that is missed loses nothing.
        if cpu_s is not None and cpu_s > held.cpu_s:
            self.span(held.account, Quantity.CPU_SECONDS, cpu_s - held.cpu_s, now.wall, over=passed)
            held.cpu_s = cpu_s
        elif cores is not None:
            self.span(held.account, Quantity.CPU_SECONDS, cores * passed, now.wall, over=passed)
        self.span(held.account, Quantity.MEMORY_BYTE_SECONDS, held.memory * passed, now.wall, over=passed)

    def forget_ended(self, sandboxes: Sequence[SandboxId]) -> None:
        """No measurement of these comes any more."""
        for sandbox_id in sandboxes:
            self._ended.pop(sandbox_id, None)

    def add(self, account: Account, quantity: Quantity, amount: float, at: float) -> None:
        """Count an amount at that epoch second."""
        if amount > 0:
            self._add(account, quantity, amount, int(at // HOUR_S) * HOUR_S)

    def span(
        self, account: Account, quantity: Quantity, amount: float, until: float, *, over: float | None = None
    ) -> None:
        """Count an amount that came evenly over `over` seconds (if absent: `amount` seconds) until an epoch second.

        Over the turn of an hour it is divided: 30 s until 00:00:10 are 20 s of the last hour and 10 s of this one.
        """
        if amount <= 0:
            return
        length = amount if over is None else over
        hour = int(until // HOUR_S) * HOUR_S
        left = amount
        while length > 0 and until - length < hour:
            part = left * (until - hour) / length
            self._add(account, quantity, part, hour)
            left, length, until, hour = left - part, length - (until - hour), hour, hour - HOUR_S
        self._add(account, quantity, left, hour)

    def _add(self, account: Account, quantity: Quantity, amount: float, hour: int) -> None:
        if amount <= 0:
            return
        self._rows[UsageKey(hour, account.tenant, account.runtime, account.size)][quantity] += amount
        if account.session:
            session = self._session(hour, account.session)
            self._rows[UsageKey(hour, account.tenant, account.runtime, account.size, session)][quantity] += amount

    def _session(self, hour: int, session: str) -> str:
        known = self._sessions.get(hour)
        if known is None:
            for old in sorted(self._sessions)[:-1]:  # two hours are enough: time is counted as it passes
                del self._sessions[old]
            known = self._sessions[hour] = set()
        if session not in known:
            if len(known) >= self._max_sessions:
                return OTHER_SESSIONS
            known.add(session)
        return session

    def take(self) -> list[Rows]:
        """What has come together since the last call, in batches for the store."""
        rows = [(key, dict(amounts)) for key, amounts in self._rows.items()]
        self._rows.clear()
        return [dict(rows[start : start + MAX_ROWS_PER_BATCH]) for start in range(0, len(rows), MAX_ROWS_PER_BATCH)]
