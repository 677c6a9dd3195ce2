"""One local sandbox: its folders, control group, process and socket are made, checked for health, and removed."""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.model import Agent, Endpoint, Limits, Probe, Runtime, Sandbox, SandboxId, SessionId, StartKind
from gateway.provider.local import bwrap, consumption, interpreters, namespace_limits, process_tags, rlimits
from gateway.provider.local.cgroups import Cgroup, CgroupTree
from gateway.provider.local.isolation import IsolationReport
from gateway.provider.local.process import Process, StartFailedError, describe_exit
from gateway.provider.local.state_dir import StateDir
from picod import wire

BACKLOG = 1024  # connections that wait in the kernel until picod accepts
KEYS_FILE = "jwks.json"


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
    state: SandboxState = SandboxState.WARM
    start: StartKind = StartKind.WARM
    session_id: SessionId | None = None
    keeps_workspace: bool = False  # its end leaves the workspace in place
    cpu_unbound_s: float = 0.0  # CPU time before it was bound
    cpu_bound_s: float = 0.0  # and since, as last read
    end_cause: str = ""  # why the provider ended its processes, for the session's owner

    @property
    def is_alive(self) -> bool:
        """Its processes have not ended."""
        return self.state is not SandboxState.ENDED and not self.process.exited.done()

    def claim(self, session: SessionId, start: StartKind) -> Sandbox:
        """Bind it to a session, once. Raises RuntimeError when it is not warm."""
        if self.state is not SandboxState.WARM:
            raise RuntimeError(f"sandbox {self.id} is {self.state} and cannot be bound to session {session}")
        self.state, self.session_id, self.start = SandboxState.CLAIMED, session, start
        self.cpu_unbound_s = consumption.cpu_s(self.group, self.process.pid)
        return self.describe()

    def describe(self) -> Sandbox:
        """As the SandboxProvider interface has it."""
        return Sandbox(self.id, self.runtime.key, self.endpoint, self.start, self.created_at, self.session_id)

    def read_cpu(self) -> float:
        """Seconds of CPU since it was bound. Never less than before: what nobody waited for takes its time away."""
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
            return f"out of memory: over its limit of {self.runtime.limits.memory} bytes ({status})"
        words = self.process.final_output() if self.runtime.agent is not None else ""
        return f"{status}: {words}" if words else status


class SandboxFactory:
    """Makes sandboxes in one state directory and removes them."""

    def __init__(
        self,
        state_dir: StateDir,
        groups: CgroupTree,
        report: IsolationReport,
        keys: Path,
        clock: Clock,
        sandbox_python: Path | None,
        start_timeout: float,
        code_context: str,
    ) -> None:
        self._state_dir, self._groups, self._report = state_dir, groups, report
        self._keys = keys.resolve()
        self._clock = clock
        self._sandbox_python = sandbox_python
        self._start_timeout = start_timeout
        self._code_context = code_context
        self._host = bwrap.inspect_host()
        self._picod_python = interpreters.gateway_python()
        self._stuck: list[Cgroup] = []  # groups that still held a dying process when they were to be removed

    async def start(self, runtime: Runtime) -> LocalSandbox:
        """A healthy sandbox, unclaimed. Raises StartFailedError with the reason; nothing of it remains then."""
        name = SandboxId(f"sb-{secrets.token_hex(8)}")
        born, created_at = self._clock.monotonic(), self._clock.now()
        workspace = self._state_dir.workspaces / name
        path = self._state_dir.socket_path(name)
        group, process = Cgroup({}), None
        try:
            self._state_dir.make_workspace(name)
            group = self._groups.make(name, runtime.limits)
            process = await self._spawn(runtime, name, workspace, path, group)
            sandbox = LocalSandbox(name, runtime, Endpoint(uds=path), workspace, process, group, created_at, born)
            await self._check_health(sandbox)
        except BaseException as error:
            await self._remove(process, group, path, workspace)
            if isinstance(error, (OSError, ValueError)):
                raise StartFailedError(str(error)) from error
            raise
        return sandbox

    async def remove(self, sandbox: LocalSandbox) -> None:
        """End it and remove its group and socket; its workspace is discarded in one rename, unless it is kept."""
        await self._remove(
            sandbox.process,
            sandbox.group,
            sandbox.endpoint.uds or "",
            sandbox.workspace,
            keep=lambda: sandbox.keeps_workspace,
        )

    async def _remove(
        self,
        process: Process | None,
        group: Cgroup,
        path: str,
        workspace: Path,
        *,
        keep: Callable[[], bool] = lambda: False,
    ) -> None:
        try:
            if process is not None:
                await process.end()
                if self._report.isolation == "process":
                    self._end_escaped(group, workspace)
        finally:
            self._stuck = [other for other in (*self._stuck, group) if not other.remove()]
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            if not keep():  # called last: it may be decided while the processes end
                self._state_dir.discard(workspace)

    def _end_escaped(self, group: Cgroup, workspace: Path) -> None:
        """Without a pid namespace, what left picod's session is found by its group and by the tag it inherited."""
        for pidfd in (
            *group.kill(),
            *process_tags.kill_tagged(process_tags.tag(self._state_dir.owner, workspace.name)),
        ):
            os.close(pidfd)

    async def _spawn(self, runtime: Runtime, name: SandboxId, workspace: Path, path: str, group: Cgroup) -> Process:
        tag = process_tags.tag(self._state_dir.owner, name)
        python = interpreters.python_of(runtime, self._sandbox_python)
        isolated = self._report.isolation == "bubblewrap"
        planned = rlimits.plan(runtime.limits, memory_cgroup="memory" in group.folders, own_user_namespace=isolated)

        async def restrict(pid: int) -> None:
            group.join(pid)
            rlimits.apply(pid, planned)
            _prefer_as_oom_victim(pid)
            if self._report.namespace_limits:
                assert self._report.bwrap is not None
                await namespace_limits.apply(self._report.bwrap, pid)

        def command(listener: int, lifeline: int) -> list[str]:
            return interpreters.picod_command(self._picod_python, listener=listener, lifeline=lifeline)

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(BACKLOG)
            if not isolated:
                inside = str(workspace)
                environment = interpreters.command_environment(
                    python, inside, {**runtime.environment, process_tags.VARIABLE: tag}
                )
                packages = [str(interpreters.picod_folder().parent), *self._picod_python.packages]
                picod = self._picod_environment(runtime, name, inside, str(self._keys), packages, environment)
                return await Process.start_unconfined(
                    command, listener, tag, restrict, environment=picod, folder=workspace
                )

            own = {"MPLCONFIGDIR": bwrap.MATPLOTLIB, **_threads(runtime.limits), **runtime.environment}
            environment = interpreters.command_environment(python, bwrap.WORKSPACE, own)
            packages = [bwrap.PICOD_ROOT, *self._picod_python.packages]
            picod = self._picod_environment(runtime, name, bwrap.WORKSPACE, bwrap.KEYS_FOLDER, packages, environment)
            etc = {f"/etc/{file}": str(self._state_dir.etc / file) for file in bwrap.ETC_SYNTHETIC}
            readonly = {
                **interpreters.readonly_binds(self._picod_python, python),
                **etc,
                bwrap.KEYS_FOLDER: str(self._keys),
            }
            if runtime.agent is not None and runtime.agent.source:
                readonly[bwrap.AGENT_FOLDER] = runtime.agent.source
            config = bwrap.BwrapConfig(
                self._host,
                readonly,
                str(workspace),
                picod,
                runtime.limits,
                self._report.disable_userns,
                hidden=(str(self._state_dir.path),),
            )
            assert self._report.bwrap is not None
            return await Process.start_bubblewrap(
                self._report.bwrap,
                lambda fd, lifeline: bwrap.arguments(config, command(fd, lifeline)),
                listener,
                tag,
                restrict,
                syscalls=self._report.syscalls,
            )

    def _picod_environment(
        self,
        runtime: Runtime,
        name: SandboxId,
        workspace: str,
        keys: str,
        packages: list[str],
        environment: Mapping[str, str],
    ) -> dict[str, str]:
        return {
            "PATH": interpreters.SYSTEM_PATH,
            "LANG": "C.UTF-8",
            "PYTHONPATH": ":".join(packages),
            wire.ENV_AUDIENCE: name,
            wire.ENV_KEYS_FILE: f"{keys}/{KEYS_FILE}",
            wire.ENV_AUTH: "jwt" if runtime.auth else "none",
            wire.ENV_WORKSPACE: workspace,
            wire.ENV_CODE_CONTEXT: runtime.code_context or self._code_context,
            wire.ENV_AGENT: "" if runtime.agent is None else self._agent(runtime.agent),
            wire.ENV_PRELOAD: ",".join(runtime.preload),
            wire.ENV_PORTS: ",".join(f"{first}-{last}" for first, last in runtime.ports),
            wire.ENV_COMMAND_ENV: json.dumps(dict(environment)),
        }

    def _agent(self, agent: Agent) -> str:
        """The value of ENV_AGENT. Without isolation the agent runs from its source folder."""
        isolated = self._report.isolation == "bubblewrap"
        probe = agent.probe or Probe(port=agent.targets[-1][1])
        return json.dumps({
            "command": agent.command,
            "working_dir": agent.working_dir or (bwrap.AGENT_FOLDER if agent.source and isolated else agent.source),
            "targets": agent.targets,
            "probe": asdict(probe),
        })  # fmt: skip

    async def _check_health(self, sandbox: LocalSandbox) -> None:
        """One GET /health. The connection waits in the kernel until picod accepts it, so nothing is polled."""
        assert sandbox.endpoint.uds is not None
        try:
            async with asyncio.timeout(self._start_timeout):
                status = await _get_health(sandbox.endpoint.uds)
        except TimeoutError:
            output = sandbox.process.error_output() or "no message"
            raise StartFailedError(f"it did not answer within {self._start_timeout:g} s: {output}") from None
        except OSError:
            status = b""
        if b" 200 " in status:
            return
        if status:
            raise StartFailedError(f"its health check answered {status.decode(errors='replace')!r}")
        raise StartFailedError(await sandbox.process.failure())


async def _get_health(path: str) -> bytes:
    """The status line, empty when the connection ended without one."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(f"GET {wire.HEALTH_PATH} HTTP/1.1\r\nHost: picod\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass  # the peer closed first
    return line.strip()


def _threads(limits: Limits) -> dict[str, str]:
    """Numerical libraries start a thread, with 40 MiB of buffers, for each core of the machine; tell them the limit."""
    return {} if limits.cpus is None else {"OMP_NUM_THREADS": str(math.ceil(limits.cpus))}


def _prefer_as_oom_victim(pid: int) -> None:
    """When the machine itself runs out of memory, sandboxes go before the gateway."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass  # an ordinary user's held process may belong to root in /proc for a moment; a preference, not a limit
