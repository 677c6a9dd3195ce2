"""One local sandbox while it exists: what belongs to it, its state, what it used and why it ended."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gateway.core.model import Endpoint, Limits, Runtime, Sandbox, SandboxId, SessionId, StartKind
from gateway.provider.local import consumption
from gateway.provider.local.booking import Booking
from gateway.provider.local.cgroups import Cgroup
from gateway.provider.local.process import Process, describe_exit
from gateway.provider.local.sandbox_users import SandboxIds


class SandboxState(StrEnum):
    """States only move forward: warm -> claimed -> ended, or warm -> ended."""

    WARM = "warm"
    CLAIMED = "claimed"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class LocalSandbox:
    """A running sandbox and all that belongs to it."""

    id: SandboxId
    runtime: Runtime
    endpoint: Endpoint
    workspace: Path
    process: Process
    group: Cgroup
    created_at: float  # epoch seconds
    born: float  # Clock.monotonic
    ids: SandboxIds | None = None  # its users outside; None: it has the gateway's
    booking: Booking | None = None  # of what its runtime requests
    resized: Limits | None = None  # its limits, where they are not those of its runtime any more
    state: SandboxState = SandboxState.WARM
    start: StartKind = StartKind.WARM
    session_id: SessionId | None = None
    keeps_workspace: bool = False  # its end leaves the workspace in place
    cpu_unbound_s: float = float("inf")  # CPU time before it was bound; infinite until that was measured
    cpu_bound_s: float = 0.0  # and since, as last read
    end_cause: str = ""  # why the provider ended its processes, for the session's owner

    @property
    def limits(self) -> Limits:
        """Its limits now: its session's where it was resized, else its runtime's."""
        return self.resized or self.runtime.limits

    @property
    def is_alive(self) -> bool:
        """Its processes have not ended."""
        return self.state is not SandboxState.ENDED and not self.process.has_ended

    def claim(self, session: SessionId, start: StartKind) -> Sandbox:
        """Bind it to a session, once. Raises RuntimeError when it is not warm."""
        if self.state is not SandboxState.WARM:
            raise RuntimeError(f"sandbox {self.id} is {self.state} and cannot be bound to session {session}")
        self.state, self.session_id, self.start = SandboxState.CLAIMED, session, start
        return self.describe()

    def begin_cpu_count(self) -> None:
        """What it has used until now is not its session's. Blocks; to be called soon after `claim`."""
        self.cpu_unbound_s = consumption.cpu_s(self.group, self.process.pid)

    def describe(self) -> Sandbox:
        """As the SandboxProvider interface has it."""
        return Sandbox(self.id, self.runtime.key, self.endpoint, self.start, self.created_at, self.session_id)

    def read_cpu(self) -> float:
        """Seconds of CPU since it was bound, 0 until `begin_cpu_count`. Never less than before."""
        # Without a group the sum is over the processes that live: one that its parent did not wait for is missing once
        # it has ended.
        if self.session_id is not None:
            now = consumption.cpu_s(self.group, self.process.pid)
            self.cpu_bound_s = max(self.cpu_bound_s, now - self.cpu_unbound_s)
        return self.cpu_bound_s

    def end_reason(self) -> str:
        """Why it exited unasked, for people. Call it before its control group is removed."""
        if self.end_cause:
            return self.end_cause
        code = self.process.exited.result()
        status = describe_exit(code)
        if code == 128 + signal.SIGKILL and self.group.oom_kills():
            return f"out of memory: over its limit of {self.limits.memory} bytes ({status})"
        words = self.process.final_output() if self.runtime.agent is not None else ""
        return f"{status}: {words}" if words else status
