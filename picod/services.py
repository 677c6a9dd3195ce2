"""The parts of one picod, created from its settings: handlers get them, and they are started and closed together."""

from __future__ import annotations

import asyncio
import os
import time
from functools import cached_property
from typing import TYPE_CHECKING

from picod.commands.command_spec import find_executable
from picod.commands.services import CommandServices
from picod.config import PicodConfig
from picod.files.services import FileServices
from picod.filesystem.paths import Workspace
from picod.interpreter.fonts import put_fonts
from picod.interpreter.services import InterpreterServices
from picod.snapshot.api import SnapshotServices, load

if TYPE_CHECKING:
    from picod.commands.disk_guard import DiskGuard
    from picod.http.idempotency import IdempotentRequests
    from picod.ports.agent import Agent
    from picod.ports.egress_way import EgressWay

_SNAPSHOT_LOAD_DELAY_S = 1.0  # after the start, so that imports do not compete with it
_CONTEXT_DELAY_S = 0.5
_CONTEXT_NICE = 10  # a warm pool that fills must not slow down the sandboxes that work
_IDLE_CORE_POLL_S, _MAX_IDLE_CORE_POLLS = 0.5, 20


class Services:
    """All services of one picod. Raises OSError if the workspace cannot be opened."""

    def __init__(self, config: PicodConfig) -> None:
        self.config = config
        self.started_at = time.monotonic()
        workspace = Workspace(config.workspace)
        self.commands = CommandServices(config, workspace)
        self.files = FileServices(config, workspace)
        self.interpreter = InterpreterServices(self.commands)
        self.snapshots = SnapshotServices(workspace, self.commands.children)
        self.agent = self._make_agent()
        self.disk_guard = self._make_disk_guard()
        self.egress = self._make_egress()

    def _make_agent(self) -> Agent | None:
        if self.config.agent is None:
            return None
        from picod.ports.agent import Agent, AgentConfig

        return Agent(self.commands, AgentConfig.from_document(self.config.agent))

    def _make_disk_guard(self) -> DiskGuard | None:
        if not self.config.disk_limits:
            return None
        from picod.commands.disk_guard import DiskGuard

        return DiskGuard(self.config.disk_limits, self.commands.children)

    def _make_egress(self) -> EgressWay | None:
        if not self.config.egress_service:
            return None
        from picod.ports.egress_way import EgressWay

        return EgressWay(self.config.egress_host)

    @cached_property
    def idempotency(self) -> IdempotentRequests:
        """The requests with an Idempotency-Key; imported and created when the first one comes."""
        from picod.http.idempotency import IdempotentRequests

        return IdempotentRequests(self.commands.workspace, self.config.max_body)

    @property
    def unattended(self) -> int:
        """How many requests with an Idempotency-Key are running although their client has left."""
        return self.idempotency.unattended if "idempotency" in vars(self) else 0

    def start(self) -> None:
        """Begin what the first request should not wait for. Call it on the loop, once the server listens."""
        path = self.config.command_env.get("PATH", "").encode()
        put_fonts(find_executable(b"python3", path, self.commands.workspace.fd), self.config.command_env)
        self.commands.preload.start()
        if self.disk_guard is not None:
            self.disk_guard.limit_file_sizes(self.config.max_file_size)
            self.commands.spawn_task(self.disk_guard.run())
        # A session that wakes on this sandbox should not wait for imports, nor should a cold start.
        loop = asyncio.get_running_loop()
        loop.call_later(_SNAPSHOT_LOAD_DELAY_S, loop.run_in_executor, None, load)
        if self.egress is not None:
            self.commands.spawn_task(self.egress.run())
        if self.agent is not None:
            self.agent.start()
        if self.config.code_context == "warm":
            self.commands.spawn_task(self._warm_context())

    async def _warm_context(self) -> None:
        """Start the default context ahead of its use, when a core is idle.

        It costs more CPU time than the rest of a sandbox's start, and short sessions rarely use it. Niceness alone does
        not give way to other sandboxes: with autogroups of the scheduler it counts within one session only.
        """
        from picod.interpreter.kernel import Ahead

        await asyncio.sleep(_CONTEXT_DELAY_S)
        for _ in range(_MAX_IDLE_CORE_POLLS):
            if runnable() <= (os.cpu_count() or 1):
                break
            await asyncio.sleep(_IDLE_CORE_POLL_S)
        self.interpreter.interpreter.warm(Ahead(_CONTEXT_NICE, tuple(self.config.preload)))

    def kill_all(self) -> None:
        """Kill every process that a session started. Blocking; for picod's end only."""
        self.commands.children.kill_all()

    def close(self) -> None:
        """Remove files outside of the workspace: sockets and folders of kernels."""
        self.interpreter.close()


def runnable() -> int:
    """How many threads of the whole machine are running or runnable, including this one; 0 if unknown."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 0
